"""A run's folder beside its checkpoints: ``metrics.jsonl``, and a lock, so that no two runs write there."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minidiff import processes
from minidiff.files import take_lock, write_text


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """While inside, no other run trains in this folder. A process that is killed leaves nothing locked.

    Of torchrun's processes the first takes the lock for all. Raises ValueError in each of them where it is taken.
    """
    with (run / ".lock").open("a") as file:
        if processes.any_of(processes.rank() == 0 and not take_lock(file)):
            raise ValueError(f"{run} is in use: another process trains there. Wait for it, or give another folder.")
        yield


def in_use(run: Path) -> bool:
    """Whether a process trains in this folder. Nothing is written."""
    if not (run / ".lock").exists():
        return False
    with (run / ".lock").open("r+") as file:
        return not take_lock(file)


def read_metrics(run: Path | str, until: float = float("inf")) -> list[dict[str, float]]:
    """The lines of metrics.jsonl up to ``until`` images; a last line that was cut off by a crash is left out."""
    path, lines = Path(run) / "metrics.jsonl", []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.get("images", math.inf) <= until:
            lines.append(line)
    return lines


def append_metrics(run: Path, line: dict[str, float]) -> None:
    """Write one more line, and have it on the disk before going on. Raises OSError that names the file."""
    path = run / "metrics.jsonl"
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"{path} can't be written: {error}") from error


def rewrite_metrics(run: Path, lines: list[dict[str, float]]) -> None:
    """Replace the file in one move."""
    write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
