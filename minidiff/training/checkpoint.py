"""What a run leaves on disk: ``RUN/checkpoints/<images>/``, each folder whole or not there at all.

A folder holds ``model.safetensors``, ``ema-<half-life>.safetensors``, ``config.json`` and ``train_state.pt``.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .build import Model, build
from .config import FORMAT, Config, check, from_dict, to_dict


@dataclass(frozen=True)
class Description:
    """What config.json says: the configuration, and the shape and levels (None: continuous) of the data."""

    config: Config
    shape: tuple[int, ...]
    levels: int | None

    def build(self) -> Model:
        """The modules, with fresh weights."""
        return build(self.config, self.shape, self.levels)

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        data = {"shape": list(self.shape), "levels": self.levels}
        return {"format": FORMAT, "config": to_dict(self.config), "examples": data}


def save(run: Path, images: int, description: Description, weights: dict[str, dict], train_state: dict) -> Path:
    """Write a checkpoint: under a temporary name, flushed to the disk, then renamed.

    ``weights`` maps ``model``, ``ema-887000`` … to state dicts. A crash at any moment leaves the older ones as they
    were. Raises OSError with the path, such as for a full disk, after the half-written folder is removed.
    """
    folder = run / "checkpoints" / str(images)
    temporary = folder.with_name(f".writing-{images}")
    old = folder.with_name(f".replaced-{images}")
    _restore(run)
    for left in folder.parent.glob(".*"):  # by runs that were killed here
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, state in weights.items():
            save_file({key: value.contiguous() for key, value in state.items()}, temporary / f"{name}.safetensors")
        torch.save(train_state, temporary / "train_state.pt")
        (temporary / "config.json").write_text(json.dumps(description.to_dict(), indent=1))
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError | RuntimeError):  # as a full disk is called here and there
            raise OSError(f"{folder} can't be written: {error}") from error
        raise
    return folder


def newest(run: Path) -> Path | None:
    """The checkpoint of a run that has seen most images, or None."""
    _restore(run)
    return max(_folders(run), key=lambda folder: int(folder.name), default=None)


def prune(run: Path, keep: int, milestone: int) -> None:
    """Remove all checkpoints but the last ``keep`` (0: none) and the first after each multiple of ``milestone`` (0: no
    such) images."""
    counts = sorted(int(folder.name) for folder in _folders(run))
    for before, images in zip([0, *counts], counts[: -keep or None] if keep else [], strict=False):
        if not milestone or images // milestone == before // milestone:
            folder = run / "checkpoints" / str(images)
            gone = folder.rename(folder.with_name(f".removed-{images}"))  # never half a folder under a whole one's name
            shutil.rmtree(gone, ignore_errors=True)


def _folders(run: Path) -> list[Path]:
    return [folder for folder in (run / "checkpoints").glob("*") if folder.name.isdecimal() and folder.is_dir()]


def _restore(run: Path) -> None:
    """Put back what was being replaced when a run was killed between the two renames of ``save``."""
    for old in (run / "checkpoints").glob(".replaced-*"):
        folder = old.with_name(old.name.removeprefix(".replaced-"))
        if not folder.exists():
            with suppress(OSError):  # another process was quicker, or may not write here
                old.rename(folder)


def read_description(folder: Path) -> Description:
    """config.json of a checkpoint folder. Raises ValueError with what is wrong with it."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        if values.get("format") != FORMAT:
            raise ValueError(f"format {values.get('format')!r}, this version of minidiff reads {FORMAT}")
        examples = values["examples"]
        shape, levels = tuple(examples["shape"]), examples["levels"]
        if not (shape and all(isinstance(n, int) and n > 0 for n in (*shape, 1 if levels is None else levels))):
            raise ValueError(f"examples={examples} are not whole numbers above 0")
        config = from_dict(values["config"])
        check(config)
        return Description(config, shape, levels)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a usable configuration: {error}") from error


def read_weights(folder: Path, name: str, model: Model) -> None:
    """Load one weight file into a model. Raises ValueError where it is damaged or belongs to another network."""
    path = folder / f"{name}.safetensors"
    if not path.exists():
        present = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors")))
        raise ValueError(f"{folder} has no weights {name!r}. There are: {present or 'none'}.")
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read: {error}. {_remedy(folder)}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its own config.json: {str(error).splitlines()[-1].strip()}") from error


def read_train_state(folder: Path) -> Any:
    """The optimiser's and the time sampler's state. Raises ValueError where the file is damaged or holds code."""
    path = folder / "train_state.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a zip or pickle can be broken in many ways, and each has an exception of its own
        raise ValueError(f"{path} can't be read: {type(error).__name__}. {_remedy(folder)}") from error


def load_model(path: Path | str, weights: str | None = None) -> tuple[Model, Description]:
    """A trained model, ready to sample from, out of a run's newest checkpoint or out of one checkpoint folder.

    ``weights`` names the file: ``model`` for the raw weights, ``ema-…`` for an average; by default the average with the
    longest half-life. Raises ValueError for a folder that holds no checkpoint, and for one that is damaged.
    """
    folder = checkpoint_folder(Path(path))
    description = read_description(folder)
    model = description.build()
    read_weights(folder, weights or f"ema-{max(description.config.training.ema)}", model)
    return model.eval().requires_grad_(False), description


def checkpoint_folder(path: Path) -> Path:
    """The folder that holds the weights, given that folder or a run. Raises ValueError where there is none."""
    folder = path if (path / "config.json").is_file() else newest(path)
    if folder is None:
        raise ValueError(f"there is no checkpoint in {path}: give the folder of a run, such as runs/digits.")
    return folder


def _remedy(folder: Path) -> str:
    return f"The checkpoint is damaged; remove {folder} to go back to the one before it."


def _flush(path: Path) -> None:
    """Ask the operating system to have a file, or a folder's list of names, on the disk before going on."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
