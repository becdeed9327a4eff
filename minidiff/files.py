"""Files that are whole or not there, and folders in which one process writes at a time."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows, where no lock is taken
    fcntl = None


def write_whole(path: Path, write: Callable[[IO[bytes]], Any], by: str = "") -> None:
    """Write a file under a hidden name, flush it to the disk, then rename it.

    ``write`` is given the open file; ``by`` tells apart those who write the same file at once. Raises OSError, such as
    for a full disk, with the path; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}{by}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path} can't be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """``write_whole`` of a text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file. Raises ValueError where it can't be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a zip can be broken in many ways, and each has an exception of its own
        raise ValueError(f"{path} can't be read as an .npz file: {error}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_lock(file: IO[str]) -> bool:
    """Whether an open file's lock is now this process's.

    The kernel gives it to one holder, and takes it back when the file is closed, however that comes about: a process
    that is killed leaves nothing locked.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: its users have to know what they do
    return True
