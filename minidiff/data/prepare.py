"""From images of any size and format to shards of one size, the same bytes on any number of processes."""

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import UnidentifiedImageError

from minidiff.files import sha256, take_lock, write_text, write_whole

from .centre_crop import RULE, centre_crop, eight_bits
from .shards import BEGUN, CARD, FORMAT, damaged, intact, read_json
from .sources import Item, Part, Source, is_named_as_image, open_source

SHARD = 2**28  # bytes of a file, and of the memory that this takes
CHUNK = 16  # images that a process makes at a time
FEWEST = 5  # images to train on, of which a fifth is held out

Card = dict[str, Any]
Made = tuple[UInt8[np.ndarray, "n channel size size"], dict[int, str | None]]  # and why other items are no images


def prepare_images(
    source: str | Path,
    out: str | Path,
    size: int = 64,
    grey: bool = False,
    skip_corrupt: bool = False,
    workers: int | None = None,
    on_images: Callable[[int, int], object] = lambda done, total: None,
) -> Card:
    """Make a folder that ``load_data`` reads of all images that ``open_source`` finds, and return its card.

    Images are brought to ``size`` × ``size`` by ``centre_crop``, in RGB, or in one channel with ``grey`` and where
    arrays are grey. Transparency is dropped, of 16 bits the upper 8 are kept, and neither a colour profile nor EXIF's
    orientation is heeded. The card, written last, makes the set whole: killed at any moment and called again, this
    keeps the shards whose checksums are right. ``on_images`` is told how many images are done, and of how many.

    Raises ValueError, before anything is written, for what can't be prepared, and for a folder that holds something
    else or in which another process prepares images; and OSError with a list of all corrupt images, unless
    ``skip_corrupt``.
    """
    out, found = Path(out), open_source(source)
    workers = _cores() if workers is None else workers
    if size < 1 or workers < 1:
        raise ValueError(f"size={size}, workers={workers}: at least 1.")
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{out} lies inside of {source}, whose files are images to prepare: give a folder elsewhere.")
    if len(found.parts["train"].names) < FEWEST:
        raise ValueError(f"{source} holds {len(found.parts['train'].names)} images: at least {FEWEST} are needed.")
    asked = _asked(source, found, size, 1 if grey else found.channels)
    card = _present(out, asked)
    if (out / CARD).is_file() and not damaged(out, card):
        return card

    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as lock:
        if not take_lock(lock):
            raise ValueError(f"{out} is in use: another process prepares images there. Wait for it, or give another.")
        card = _begin(out, asked)
        if not (out / CARD).is_file():  # another process may have made it whole a moment ago
            _fill(out, card, found, workers, on_images)
            _finish(out, card, found, skip_corrupt)
    return card


def _fill(out: Path, card: Card, found: Source, workers: int, on_images: Callable[[int, int], object]) -> None:
    """Make all shards that are not there, by several processes."""
    with ProcessPoolExecutor(workers, initializer=_begin_worker) as pool:
        make = partial(_make, size=card["size"], channels=card["channels"])
        try:
            _make_shards(out, card, found, partial(_in_order, pool, make, 4 * workers), on_images)
        except BrokenProcessPool as error:
            raise OSError(
                "a process was killed, perhaps for its memory: run this again with fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


# ---- in the processes that make images ------------------------------------------------------------------------------


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def _make(items: list[Item], size: int, channels: int) -> Made:
    """The images of some items, and of the places of other items what is wrong; None: of no known format."""
    made, wrong = [np.empty((0, channels, size, size), np.uint8)], {}
    for place, item in enumerate(items):
        try:
            pixels = np.asarray(centre_crop(eight_bits(item, "RGB" if channels == 3 else "L"), size))
            made.append(pixels.reshape(1, size, size, channels).transpose(0, 3, 1, 2))
        except UnidentifiedImageError:
            wrong[place] = None
        except Exception as error:  # an image can be broken in many ways, and each has an exception of its own
            wrong[place] = str(error) or type(error).__name__
    return np.concatenate(made), wrong


# ---- in the process that writes -------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _asked(source: str | Path, found: Source, size: int, channels: int) -> Card:
    """What decides the bytes of a set."""
    return {
        "format": FORMAT,
        "kind": found.kind,
        "source": str(Path(source).resolve() if Path(source).exists() else source),
        "identity": {split: part.identity for split, part in found.parts.items()},
        "size": size,
        "channels": channels,
        "levels": 256,
        "resize": RULE,
        "versions": {name: version(name) for name in ("minidiff", "pillow")},
    }


def _present(out: Path, asked: Card) -> Card | None:
    """The card of what is in the folder already, if anything is. Raises ValueError where that is something else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder.")
    present = [path.name for path in out.glob("*") if not path.name.startswith(".")]
    if not present:
        return None
    if CARD not in present and BEGUN not in present:
        raise ValueError(f"{out} holds other files, such as {min(present)}: give a new folder.")
    card = read_json(out / (CARD if CARD in present else BEGUN))
    free = {"source", "versions"} if CARD in present else {"source"}  # a whole set stays one when Pillow is renewed
    if changed := [key for key in asked if key not in free and card[key] != asked[key]]:
        key = changed[0]
        was = "other images" if key == "identity" else f"{key} {card[key]}, not {asked[key]}"
        raise ValueError(f"{out} was begun with {was}: give another folder, or remove this one.")
    return card


def _begin(out: Path, asked: Card) -> Card:
    """The card of what is in the folder, now that no other writes there, or a new one; a damaged set is unfinished."""
    card = _present(out, asked)
    if card is None:
        card = asked | {"parts": {split: {"shards": {}, "labels": {}} for split in asked["identity"]}}
        _write_json(out / BEGUN, card)
    elif (out / CARD).is_file() and damaged(out, card):
        os.replace(out / CARD, out / BEGUN)
    return card


def _make_shards(out: Path, card: Card, found: Source, in_order: Callable, on_images: Callable) -> None:
    each = max(1, SHARD // (card["channels"] * card["size"] ** 2))
    done, total = 0, sum(len(part.names) for part in found.parts.values())
    for split, part in found.parts.items():
        shards = card["parts"][split]["shards"]
        for k, first in enumerate(range(0, len(part.names), each)):
            path, places = out / f"{split}-{k:05}.npy", range(first, min(first + each, len(part.names)))
            if path.name not in shards or not intact(path, shards[path.name]):
                tell = lambda n, before=done: on_images(before + n, total)
                pixels, left_out = _shard(card, part, places, found.mixed, in_order, tell)
                shards[path.name] = _write(path, pixels) | {"left_out": left_out}
                _write_json(out / BEGUN, card)
            done += len(places)
            on_images(done, total)


def _shard(
    card: Card, part: Part, places: range, mixed: bool, in_order: Callable, on_images: Callable[[int], object]
) -> tuple[np.ndarray, list[tuple[int, str, str | None]]]:
    """The images at these places; and place, name and fault of those left out, None for what is no image at all."""
    pixels = np.empty((len(places), card["channels"], card["size"], card["size"]), np.uint8)
    chunks = [places[k : k + CHUNK] for k in range(0, len(places), CHUNK)]
    n, left_out = 0, []
    for chunk, (made, wrong) in zip(chunks, in_order(map(part.items, chunks)), strict=True):
        pixels[n : n + len(made)] = made
        n += len(made)
        for k, why in wrong.items():
            name = str(part.names[chunk[k]])
            if why is None and not (mixed and not is_named_as_image(name)):
                why = "it is of no format that Pillow knows"
            left_out.append((chunk[k], name, why))
        on_images(chunk.stop - places.start)
    return pixels[:n], left_out


def _in_order(pool: ProcessPoolExecutor, make: Callable, ahead: int, tasks: Iterable[list[Item]]) -> Iterator[Made]:
    """What the processes make of each task, in order, with only so many tasks ahead of it in memory."""
    waiting = deque()
    for task in tasks:
        waiting.append(pool.submit(make, task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finish(out: Path, card: Card, found: Source, skip_corrupt: bool) -> None:
    """Labels, counts, and the card under its final name. Raises OSError where corrupt images are not to be skipped."""
    for part in card["parts"].values():
        part["shards"] = dict(sorted(part["shards"].items()))  # those made anew are at the end
    left_out, kept = {}, {}
    for split, part in found.parts.items():
        left_out[split] = [each for shard in card["parts"][split]["shards"].values() for each in shard["left_out"]]
        kept[split] = np.delete(np.arange(len(part.names)), [place for place, *_ in left_out[split]])
    corrupt = [f"  {name}: {why}" for part in left_out.values() for _, name, why in part if why]
    if corrupt and not skip_corrupt:
        raise OSError(
            f"{len(corrupt)} corrupt images in {card['source']}:\n" + "\n".join(corrupt) + "\nThe others are done: run "
            "this again with --skip-corrupt to leave these out, or mend them and begin in another folder."
        )
    if len(kept["train"]) < FEWEST:
        raise OSError(f"{card['source']} has {len(kept['train'])} images that can be read: {FEWEST} are needed.")
    labels = {split: part.labels[kept[split]] for split, part in found.parts.items() if part.labels is not None}
    labels = {split: each for split, each in labels.items() if each.min(initial=0) >= 0}
    classes = found.classes if "train" in labels else None
    if found.mixed and classes:  # a folder without a single image is no class
        present, labels["train"] = np.unique(labels["train"], return_inverse=True)
        classes = [classes[k] for k in present]
    card["classes"] = classes
    for split, part in card["parts"].items():
        part["images"] = len(kept[split])
        if split in labels:
            path = out / f"{split}-labels.npy"
            part["labels"] = {path.name: _write(path, labels[split].astype(np.int64))}
    _write_json(out / BEGUN, card)
    os.replace(out / BEGUN, out / CARD)


def _write(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write an array, and return its entry in the card."""
    write_whole(path, lambda file: np.save(file, array))
    return {"images": len(array), "bytes": path.stat().st_size, "sha256": sha256(path)}


def _write_json(path: Path, card: Card) -> None:
    write_text(path, json.dumps(card, indent=1))
