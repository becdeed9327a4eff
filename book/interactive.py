"""Draw the sliders of the page "Look", and the picture of the README: ``python book/interactive.py``.

Each slider is one HTML file in ``book/sliders/``, with all its pictures and its script inside, so that it needs neither
a server nor a network. A page of the book includes it as it stands; a browser opens it alone too. The pictures are
drawn by the models that ship, from fixed seeds, which takes about a minute; building the book runs no model.
"""

import base64
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import minidiff as md
from minidiff import plots
from minidiff.cli.samplers import choose_sampler

BOOK = Path(__file__).parent
N = 10  # images in a row
SEEDS = range(N)
CALLS = (5, 7, 9, 11, 15, 19, 25, 35, 49, 69, 99)  # odd, for Heun's method needs 2n − 1 in n steps
SAMPLERS = {"ancestral": "Ancestral", "ddim": "DDIM", "euler": "Euler", "heun": "Heun", "dpmpp": "DPM-Solver++(2M)"}
SCALES = [k / 2 for k in range(17)]
STEPS = "25"  # of the guided chain, as in chapter 05


@dataclass(frozen=True)
class Slider:
    """What one control leads through: for each of its stops a few rows of images."""

    name: str
    label: str
    alternative: str
    rows: list[str]
    stops: list[str]
    """What stands below the control at each stop."""
    first: int
    frames: np.ndarray
    """(stop, row, column, height, width), bytes."""

    def sheet(self) -> Image.Image:
        """All frames as one picture: a line of images for each row of each stop."""
        stop, row, column, height, width = self.frames.shape
        lines = self.frames.transpose(0, 1, 3, 2, 4)
        return Image.fromarray(lines.reshape(stop * row * height, column * width))

    def to_html(self) -> str:
        """The whole slider, in ASCII."""
        png = io.BytesIO()
        self.sheet().save(png, "PNG", optimize=True)
        size, columns = self.frames.shape[-1], self.frames.shape[2]
        width = columns * 8 * size + (columns - 1) * size // 2
        canvas = f'<canvas width="{width}" height="{8 * size}"></canvas>'
        text = Template((BOOK / "sliders" / "template.html").read_text()).substitute(
            name=self.name,
            label=html.escape(self.label),
            alternative=html.escape(self.alternative),
            rows="\n".join(f"<p>{html.escape(row)}</p>\n{canvas}" for row in self.rows),
            last=len(self.stops) - 1,
            first=self.first,
            stops=json.dumps(self.stops),
            size=size,
            columns=columns,
            sheet=base64.b64encode(png.getvalue()).decode(),
        )
        return text.encode("ascii", "xmlcharrefreplace").decode()


def as_bytes(frames: list[list[Tensor]]) -> np.ndarray:
    """Rows of images (n, 1, height, width) in [−1, 1] at each stop, as grey levels."""
    x = torch.stack([torch.stack(rows) for rows in frames]).squeeze(3)
    return ((x.double().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


@torch.no_grad()
def walk(stops: list[int]) -> list[list[Tensor]]:
    """At each t = 0 … T: real digits after t steps of noise, drawn ones T − t steps from noise, and x̂_0 of these."""
    model, description = md.load("digits")
    digits = md.digits()
    chosen = [int((digits.labels == digit).nonzero()[0]) for digit in range(N)]
    x, noise = digits.x[chosen].double(), md.per_image_noise(range(100, 100 + N), description.shape)
    forward = {0: x}
    for t in range(model.process.T):
        kernel = model.process.q_step(x, torch.full((N,), t))
        x = forward[t + 1] = kernel.mean + kernel.stddev * noise(t)

    back, believed = {}, {}

    def keep(step: int, x: Tensor, t: int, x0_hat: Tensor) -> None:
        back[t + 1], believed[t + 1] = x, x0_hat

    noise = md.per_image_noise(SEEDS, description.shape)
    back[0] = believed[0] = md.ancestral(model.process, model.net, noise(0), noise, callback=keep)
    return [[forward[t], back[t], believed[t]] for t in stops]


def chain() -> Slider:
    """The forward and the reverse chain."""
    process, stops = md.load("digits")[0].process, list(range(0, 1001, 10))
    kept = torch.cat([torch.ones(1).double(), process.alpha_bar])[stops]
    share = [
        f"t = {t}: {a**0.5:.2f} × a digit + {(1 - a) ** 0.5:.2f} × noise" for t, a in zip(stops, kept, strict=True)
    ]
    return Slider(
        name="chain",
        label="Noise, from none to all",
        alternative="Three rows of ten small pictures that change with the slider. At the left end all of them are "
        "digits; at the right end the first two rows are noise and the third is grey blurs.",
        rows=[
            "Forward: a little noise is added to real digits at every step. Move to the right.",
            "Reverse: the network draws digits that nobody wrote, from noise. Move to the left.",
            "What the network believes, in each step of the reverse chain, that it will end in",
        ],
        stops=share,
        first=30,
        frames=as_bytes(walk(stops)),
    )


def guided(told: bool, scale: float) -> Tensor:
    """A digit of each class, from the fixed seeds."""
    model, description = md.load("digits-classes")
    classifier = md.load("digits-classifier")[0]
    log_p = md.ClassLogProb(classifier.process.process, classifier.net)

    def untold(x: Tensor, t: Tensor) -> Tensor:
        return model.net(x.float(), t.float(), labels=torch.full((len(x),), -1)).double()

    process = md.Guided(md.respace(model.process, STEPS), log_p, scale, tell_net=told)
    cond = {"labels": torch.arange(N)}
    return md.generate(process, model.net if told else untold, description.shape, SEEDS, cond=cond)


def guidance() -> Slider:
    """The scale s of a classifier's guidance."""
    see, labels = md.DigitsExtractor(), torch.arange(N)
    frames = [[guided(False, scale), guided(True, scale)] for scale in SCALES]

    def right(x: Tensor) -> int:
        return int((see(md.decode(x, 17), 17).logits.argmax(1) == labels).sum())

    return Slider(
        name="guidance",
        label="Scale s of the guidance",
        alternative="Two rows of ten small pictures of digits that change with the slider. At the left end the first "
        "row shows digits of no order; towards the right it becomes 0, 1, 2 to 9. The second row shows 0 to 9 "
        "throughout, ever more alike in style.",
        rows=[
            "The network is told nothing; the classifier asks for 0, 1, 2 … 9",
            "The network is told the digit too",
        ],
        stops=[
            f"s = {scale:g}: another network reads the right digit in {right(untold)} and in {right(told)} of 10"
            for scale, (untold, told) in zip(SCALES, frames, strict=True)
        ],
        first=0,
        frames=as_bytes(frames),
    )


def steps_for(sampler: str, calls: int) -> str:
    """In how many steps a sampler calls the network so many times."""
    return str((calls + 1) // 2 if sampler == "heun" else calls)


def drawn(sampler: str, calls: int) -> Tensor:
    """The digits of the fixed seeds."""
    model, description = md.load("digits")
    process, sample = choose_sampler(model, sampler, steps_for(sampler, calls))
    return md.generate(process, model.net, description.shape, SEEDS, sampler=sample)


def samplers() -> Slider:
    """The number of network calls, sampler by sampler."""
    end = drawn("heun", 601)
    frames = [[drawn(sampler, calls) for sampler in SAMPLERS] for calls in CALLS]

    def distances(rows: list[Tensor]) -> str:
        off = [f"{(x - end).square().mean().sqrt():.2f}" for x in rows[1:]]
        return ", ".join(f"{name} {value}" for name, value in zip(list(SAMPLERS.values())[1:], off, strict=True))

    return Slider(
        name="samplers",
        label="Calls of the network",
        alternative="Five rows of ten small pictures of digits, a row for each sampler, that change with the slider. "
        "With 5 calls most are blurs or blots; with 99 all rows show clear digits, and the last four the same ones.",
        rows=[f"{name}{', which adds noise' if name == 'Ancestral' else ''}" for name in SAMPLERS.values()],
        stops=[
            f"{calls} calls. Off the end of the ODE by a root mean square of {distances(rows)}"
            for calls, rows in zip(CALLS, frames, strict=True)
        ],
        first=1,
        frames=as_bytes(frames),
    )


SLIDERS = {"chain": chain, "guidance": guidance, "samplers": samplers}


def picture(path: Path) -> None:
    """The README's picture of both chains."""
    stops, shown = [0, 100, 200, 300, 400, 600, 1000], (2, 6)
    rows = walk(stops)
    plots.style()
    figure, axes = plots.plt.subplots(2, 1, figsize=(7.6, 4.9))
    for ax, row, times, title in (
        (axes[0], 0, stops, "Forward: noise is added to real digits until nothing of them is left"),
        (axes[1], 1, stops[::-1], "Reverse: a network takes noise away and draws digits that nobody wrote"),
    ):
        images = [rows[stops.index(t)][row][k] for k in shown for t in times]
        labels = [f"t = {t:,}" for t in times]
        plots.show_grid(torch.stack(images), columns=len(times), title=title, ax=ax, column_labels=labels)
    png = io.BytesIO()
    figure.savefig(png, dpi=100)
    plots.plt.close(figure)
    Image.open(png).convert("L").save(path, optimize=True)  # grey, as it is, in a third of the bytes


def main() -> None:
    torch.set_num_threads(1)
    for name, make in SLIDERS.items():
        path = BOOK / "sliders" / f"{name}.html"
        path.write_text(make().to_html(), encoding="ascii")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    picture(BOOK / "figures" / "chain.png")


if __name__ == "__main__":
    main()
