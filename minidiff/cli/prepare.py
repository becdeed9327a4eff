"""``minidiff prepare SOURCE OUT``: images of any kind as a data set that is streamed from the disk."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from minidiff.data import prepare_images
from minidiff.data.shards import REMEDY, damaged, read_card


@dataclass(frozen=True)
class Options:
    """Make a data set for ``--data.source`` out of images, resized and cropped as ADM's are. Stopped at any moment, the
    same command goes on."""

    source: tyro.conf.Positional[str]
    """A folder or a zip of images, the first level of folders being the classes; CIFAR-10's or CIFAR-100's archive for
    Python; an .npz file with images or arr_0; MNIST's idx files or their folder; parquet files; or the name of a data
    set on the Hugging Face hub."""
    out: tyro.conf.Positional[Path | None] = None
    """Folder to make."""
    size: int = 64
    """Of each side, in pixels."""
    grey: bool = False
    """One channel instead of three."""
    skip_corrupt: bool = False
    """Leave out images that can't be read, instead of refusing the set with a list of them."""
    workers: int | None = None
    """Processes; by default one a core. The files are the same for any number."""
    check: bool = False
    """Make nothing: read all of a prepared folder, given alone, and compare its checksums."""


def run(argv: list[str]) -> None:
    """Make the set, or check one, and say what it holds."""
    options = tyro.cli(Options, args=argv, prog="minidiff prepare")
    if options.check:
        check(Path(options.source), options.out)
        return
    if options.out is None:
        raise ValueError(f"where to? minidiff prepare {options.source} OUT --size {options.size}.")
    with tqdm(unit=" images", unit_scale=True, disable=None) as bar:

        def on_images(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        told = {"grey": options.grey, "skip_corrupt": options.skip_corrupt, "workers": options.workers}
        card = prepare_images(options.source, options.out, options.size, **told, on_images=on_images)
    print(summary(options.out, card))


def check(folder: Path, out: Path | None) -> None:
    """Say that a set is whole, or raise OSError with the names of its damaged files."""
    if out is not None:
        raise ValueError("--check takes a prepared folder alone: minidiff prepare --check OUT.")
    card = read_card(folder)
    if bad := damaged(folder, card):
        made = f"It was made of {card['source']}."
        raise OSError(f"{folder} is damaged, its checksums differ: {', '.join(bad)}. {made} {REMEDY}")
    print(f"{summary(folder, card)}\nall checksums are right")


def summary(folder: Path, card: dict) -> str:
    """What a set holds, what was left out, and the flag that trains on it."""
    parts, classes = card["parts"], card["classes"]
    counts = ", ".join(f"{part['images']:,} of {split}" for split, part in parts.items())
    if "test" not in parts:
        counts = f"{parts['train']['images']:,}, of which a fifth is held out"
    lines = [
        f"{folder}: images of {card['size']}×{card['size']} in {card['channels']} channels",
        f"  images     {counts}",
    ]
    if classes:
        lines.append(f"  classes    {len(classes)}: {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}")
    left_out = [each for part in parts.values() for shard in part["shards"].values() for each in shard["left_out"]]
    if left_out:
        corrupt = sum(why is not None for *_, why in left_out)
        lines.append(f"  left out   {corrupt} corrupt, {len(left_out) - corrupt} other files; named in card.json")
    return "\n".join([*lines, f"  to train   --data.source {folder}"])
