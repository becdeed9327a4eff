"""What guides ``minidiff sample``: a classifier of noisy images, or the network itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from minidiff.cli.common import place
from minidiff.diffusion import EDM, GaussianDiffusion, NoisyClassifier
from minidiff.pretrained import load
from minidiff.sampling import ClassifierFree, ClassLogProb, Guided, GuidedDenoiser
from minidiff.training import Description, Model

At = Literal["mean", "x"]
PROCESS = ("schedule", "T", "schedule_options", "rescale_times")  # what decides which noise the network is told of


@dataclass(frozen=True)
class Guide:
    """A classifier, and how it is to guide."""

    log_p: ClassLogProb
    classes: int
    scale: float
    at: At
    tell_net: bool

    def chain(self, process: GaussianDiffusion) -> Guided:
        """A chain, or what was kept of it, guided."""
        return Guided(process, self.log_p, self.scale, self.at, self.tell_net)

    def denoiser(self, denoise: Callable[..., Tensor]) -> GuidedDenoiser:
        """A denoiser, guided."""
        return GuidedDenoiser(denoise, self.log_p.at_sigma, self.scale, self.tell_net)


def open_guide(path: Path, model: Model, description: Description, scale: float, at: At, device: torch.device) -> Guide:
    """The classifier of this run or name. Raises ValueError for one that can't guide this model."""
    classifier, own = load(path)
    if not isinstance(classifier.process, NoisyClassifier):
        raise ValueError(
            f"--classifier {path}: a run of {own.config.recipe}, which tells no classes apart. Give one that does, "
            "such as digits-classifier."
        )
    if not isinstance(model.process, GaussianDiffusion | EDM):
        raise ValueError(
            f"--classifier {path}: it guides a GaussianDiffusion or EDM, no {type(model.process).__name__}."
        )
    if own.shape != description.shape:
        raise ValueError(f"--classifier {path}: it sees images {own.shape}, and {description.shape} are drawn.")
    for key in PROCESS if isinstance(model.process, GaussianDiffusion) else ():  # EDM's x is at any σ, the chain's too
        ours, theirs = (getattr(each.config.process, key) for each in (description, own))
        if ours != theirs:
            raise ValueError(
                f"--classifier {path}: its process.{key} is {theirs}, not {ours}, so it knows another noise. Train "
                "one with the process of the run that it should guide."
            )
    known = getattr(model.net, "classes", 0)
    if known not in (0, classifier.net.classes):
        raise ValueError(f"--classifier {path}: it knows {classifier.net.classes} classes, and the network {known}.")
    classifier = place(classifier, device)
    return Guide(ClassLogProb(classifier.process.process, classifier.net), classifier.net.classes, scale, at, known > 0)


def classifier_free(model: Model, description: Description, scale: float) -> Model:
    """The model with a network that guides itself. Raises ValueError where that was not trained without a class too."""
    if not description.config.data.drop_labels:
        raise ValueError(
            f"--classifier-free {scale}: the network was never trained without a class. Train one with "
            "data.drop_labels, as digits-classes is."
        )
    return Model(ClassifierFree(model.net, scale), model.process)
