"""Turn a finished run into a model that ships: its averaged weights, and its configuration.

    minidiff train digits --out runs/long --training.images 1000000 --training.ema 50000 \\
        --training.tick 12800 --training.checkpoint 128000
    python -m minidiff.pretrained.ship runs/long digits

made the ``digits`` of this package; ``swissroll-sd``, ``heartbeat-sd``, ``dead-leaves-sd``, ``digits-classes``,
``digits-classifier``, ``digits-edm``, ``mnist8`` and ``mnist16-upsample`` are their recipes as they stand.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from minidiff.training import load_model

from . import FOLDER


def ship(run: Path, folder: Path) -> Path:
    """Write config.json and the longest average of a run into a folder; return the weight file.

    Half precision keeps three digits of each weight, which no sample shows, and halves the wheel; networks that are
    small without it keep their digits, because bounds in bits do show it.
    """
    model, description = load_model(run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ema-{max(description.config.training.ema)}.safetensors"
    precision = torch.float16 if sum(p.numel() for p in model.parameters()) > 100_000 else torch.float32
    save_file({key: value.to(precision) for key, value in model.state_dict().items()}, path)
    (folder / "config.json").write_text(json.dumps(description.to_dict(), indent=1) + "\n")
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m minidiff.pretrained.ship RUN NAME")
    written = ship(Path(sys.argv[1]), FOLDER / sys.argv[2])
    print(f"{written}: {written.stat().st_size:,} bytes")
