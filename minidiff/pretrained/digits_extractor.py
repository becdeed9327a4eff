"""Train the digits extractor of the metrics, in half a minute:

    python -m minidiff.pretrained.digits_extractor minidiff/pretrained/digits-extractor

writes ``weights.safetensors`` and ``provenance.json`` into the folder.
"""

import datetime
import json
import math
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from minidiff.data import Images, digits
from minidiff.evaluation.features import DigitsNet
from minidiff.files import sha256

BATCH, EPOCHS, PEAK, SEED = 64, 60, 4e-3, 0


def train(images: Images, epochs: int = EPOCHS, seed: int = SEED) -> DigitsNet:
    """A classifier of these digits: AdamW, one cycle of the learning rate, digits turned and shifted a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the weights and of dropout
        net = DigitsNet().train()
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
        steps = epochs * (len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
        x, labels = images.x, images.labels
        for _ in range(steps):
            index = torch.randint(len(x), (BATCH,), generator=generator)
            loss = F.cross_entropy(net(moved(x[index], generator)).logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def moved(x: Float[Tensor, "n 1 8 8"], generator: torch.Generator) -> Float[Tensor, "n 1 8 8"]:
    """Digits in [−1, 1] turned by up to 1/4 radian and shifted by up to 3/4 of a pixel, on a black ground."""
    angle, shift = (2 * torch.rand(len(x), k, generator=generator) - 1 for k in (1, 2))
    cos, sin, shift = (angle / 4).cos(), (angle / 4).sin(), shift * 0.75 / 4  # the grid's unit is half a side
    rows = [torch.cat([cos, -sin, shift[:, :1]], 1), torch.cat([sin, cos, shift[:, 1:]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1


@torch.no_grad()
def normalise(net: DigitsNet, images: Images) -> None:
    """Bring the mean square of pooled and of spatial features over these images to 1, the answers left as they are.

    A rectifier passes a positive factor on, so what a layer is divided by, the next one is multiplied by. Without it
    distances would be in units of whatever scale the training ended at, and the cube of KID's kernel would be huge.
    """
    features = net(images.x)
    for layer, after, seen in ((net.conv3, net.conv4, features.spatial), (net.conv4, net.classes, features.pool)):
        scale = seen.square().mean().sqrt()
        layer.weight /= scale
        layer.bias /= scale
        after.weight *= scale


@torch.no_grad()
def accuracy(net: nn.Module, images: Images) -> float:
    """The share of the images that it names rightly."""
    return (net(images.x).logits.argmax(1) == images.labels).float().mean().item()


def main(folder: Path) -> dict:
    """Train, write the two files and return the second one's content."""
    torch.set_num_threads(1)  # sums in one order
    net = train(digits("train"))
    normalise(net, digits("train"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.safetensors"
    save_file(net.state_dict(), path)
    held_out = digits("test")
    share = accuracy(net, held_out)
    provenance = {
        "command": "python -m minidiff.pretrained.digits_extractor minidiff/pretrained/digits-extractor",
        "seed": SEED,
        "trained_on": "scikit-learn's digits, the training four fifths",
        "held_out_images": len(held_out),
        "held_out_accuracy": round(share, 4),
        "held_out_standard_error": round(math.sqrt(share * (1 - share) / len(held_out)), 4),
        "sha256": sha256(path),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    return provenance


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m minidiff.pretrained.digits_extractor FOLDER")
    print(json.dumps(main(Path(sys.argv[1])), indent=1))
