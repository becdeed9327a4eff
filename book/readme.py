"""Write the README's tables of what training costs, and of what was measured: ``python book/readme.py``."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from minidiff.cli.info import scaled
from minidiff.recipes import describe
from minidiff.training.cost import Assumed, Cost

ROOT = Path(__file__).parents[1]
RECIPES = (
    "ddpm-cifar10",
    "ddpm-lsun-bedroom256",
    "iddpm-cifar10",
    "iddpm-imagenet64",
    "adm-imagenet64",
    "adm-imagenet256",
    "adm-imagenet512",
    "adm-classifier-256",
    "edm-cifar10-cond-vp",
    "edm-ffhq64-vp",
    "edm-imagenet64",
)


def costs() -> str:
    """A line for each large recipe, as ``minidiff info`` counts it."""
    assumed = Assumed()
    lines = [
        "| recipe | parameters | images | FLOPs an image | memory | one more image | H100-hours |",
        "|---|" + 6 * "--:|",
    ]
    for name in RECIPES:
        cost = Cost(describe(name))
        cells = (
            f"`{name}`",
            f"{cost.parameters / 1e6:,.1f} M",
            f"{cost.config.training.images / 1e6:,.0f} M",
            scaled(cost.training, ""),
            scaled(sum(cost.memory(assumed.precision).values()), "B", 1024),
            scaled(cost.activations(assumed.precision), "B", 1024),
            f"{cost.hours(assumed):,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read(name: str) -> dict:
    return json.loads((ROOT / "chapters" / "results" / f"{name}.json").read_text())


def over_seeds(of: Callable[[int], float], seeds: list[int]) -> float:
    return mean(of(seed) for seed in seeds)


def measured() -> str:
    """A line for each paper, out of ``chapters/results``."""
    sd, ddpm, ddim = read("sd_table1")["rows"], read("ddpm_ablation")["rows"], read("ddim_steps")["distance"]
    iddpm, adm, edm = read("improved_ddpm_ablation"), read("guided_digits"), read("edm_samplers")

    def bits(row: str, variance: str) -> float:
        """At 25 steps."""
        return over_seeds(lambda seed: iddpm["rows"][f"{row}, {seed}"][variance]["25"]["total"], iddpm["seeds"])

    def distance(sampler: str) -> float:
        return over_seeds(lambda seed: edm["rows"][f"{sampler}, {seed}"]["training"], edm["seeds"])

    def obeyed(way: str) -> float:
        return mean(adm["sets"][way]["agreed"])

    rows = [
        (
            "Sohl-Dickstein et al.",
            "binary heartbeat, bound on log₂ p of a sequence; the paper has −2.414",
            f"{sd['heartbeat: predict x0, 16 bumps']['K']:.3f}".replace("-", "−"),
            "sd_table1",
        ),
        (
            "DDPM",
            "distance of samples, a network that predicts μ by the bound → ε by the simple loss",
            f"{ddpm['mean, bound, fixed variance']['frechet']:.1f} → {ddpm['eps, simple']['frechet']:.2f}",
            "ddpm_ablation",
        ),
        (
            "DDIM",
            "distance of samples, 5 → 20 → 1,000 steps without training anew",
            " → ".join(f"{ddim[f'{n}, 0, uniform']:.2f}" for n in (5, 20, 1000)),
            "ddim_steps",
        ),
        (
            "Improved DDPM",
            "bits per dimension in 25 steps, fixed variance → learned",
            f"{bits('linear, simple', 'large'):.2f} → {bits('linear, hybrid', 'learned'):.2f}",
            "improved_ddpm_ablation",
        ),
        (
            "Guided diffusion",
            "share of digits that are the one asked for, classifier's scale 0 → 2 → 10, network not told",
            " → ".join(f"{obeyed(f'untold, {s}'):.0%}" for s in (0, 2, 10)),
            "guided_digits",
        ),
        (
            "EDM",
            "distance of samples, 250 calls of DDPM's chain → 35 of Heun's method, the same network",
            f"{distance('ancestral 250'):.2f} → {distance('heun 18'):.2f}",
            "edm_samplers",
        ),
    ]
    stored = "[{0}.json](chapters/results/{0}.json)"
    lines = ["| paper | what | measured | stored in |", "|---|---|---|---|"]
    lines += [f"| {paper} | {what} | {value} | {stored.format(name)} |" for paper, what, value, name in rows]
    return "\n".join(lines)


def speed() -> str:
    """A line for each ratio of ``chapters/results/training_speed.json`` that has an aim."""
    lines = ["| one training step on a CPU, one thread a process | measured | aim |", "|---|--:|--:|"]
    for part in read("training_speed")["parts"].values():
        aimed = [row for row in part["ratios"] if row["target"]]
        lines += [f"| {row['what']} | {row['ratio']:.2f} | {row['target']} |" for row in aimed]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"costs": costs, "measured": measured, "speed": speed}


def between(text: str, name: str) -> re.Match:
    """Where a table stands: between two marks that no reader sees."""
    found = re.search(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- end of {name} -->)", text, flags=re.S)
    if found is None:
        raise SystemExit(f"README.md has no place for the table {name!r}: <!-- {name} --> and <!-- end of {name} -->")
    return found


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        place = between(text, name)
        text = text[: place.start()] + make() + text[place.end() :]
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
