"""The papers' own numbers for the recipes that repeat a model of theirs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperScores:
    """Numbers by the names of ``minidiff evaluate``, of the official Inception weights, and where they stand."""

    values: dict[str, float]
    source: str


_AGAINST = "50,000 samples against the training images"
PAPERS: dict[str, PaperScores] = {
    "ddpm-cifar10": PaperScores({"fid": 3.17, "is": 9.46}, f"DDPM, Table 1: {_AGAINST}"),
    "ddpm-lsun-church256": PaperScores({"fid": 7.89}, f"DDPM, Table 3: {_AGAINST}"),
    "ddpm-lsun-bedroom256": PaperScores({"fid": 6.36}, f"DDPM, Table 3: {_AGAINST}"),
    "ddpm-lsun-cat256": PaperScores({"fid": 19.75}, f"DDPM, Table 3: {_AGAINST}"),
}
