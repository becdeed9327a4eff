"""What networks see in images: the features that the metrics compare.

A number belongs to its extractor: the network, the weights by their SHA-256, and the resampling before them.
"""

import importlib
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from minidiff.data import encode
from minidiff.files import sha256

DIGITS_WEIGHTS = Path(__file__).parents[1] / "pretrained" / "digits-extractor" / "weights.safetensors"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Features(NamedTuple):
    """What a network saw in n images, float32.

    ``pool`` (n, dim): the last layer before the classes, averaged over places. ``spatial`` (n, height·width·channels):
    a few channels of an earlier map, with the places kept. ``logits`` (n, classes).
    """

    pool: Float[Tensor, "n dim"]
    spatial: Float[Tensor, "n places"]
    logits: Float[Tensor, "n classes"]


@runtime_checkable
class Extractor(Protocol):
    """A network with fixed weights. Two numbers compare only where name, SHA-256 and resampling are the same."""

    name: str
    sha256: str  # of the file of weights
    resampling: str  # what is done to the pixels before the network sees them
    warning: str  # what its numbers must be read with; "" if nothing

    def __call__(self, images: UInt8[Tensor, "n channel height width"], levels: int) -> Features:
        """Features, on the CPU, of images whose values are 0 … levels − 1."""
        ...


class InceptionExtractor:
    """The Inception network of FID: torch-fidelity's graph, with weights from a file.

    Without a ``path`` it takes the official file where torch-fidelity keeps it, and fetches it once where it is not.
    ``pool`` are the 2,048 features of FID, KID, precision and recall; ``spatial`` the first 7 channels of the 17×17 map
    ``mixed_6/conv`` in the order of ADM's evaluator, 2,023 numbers; ``logits`` those of the Inception Score, without
    the bias. Grey images are repeated to three channels, and other than 256 levels are spread over them.

    Raises ValueError where torch-fidelity is not installed, and for a file that is missing, can't be fetched or holds
    something else.
    """

    name = "inception"
    resampling = "bilinear to 299×299 as in TensorFlow 1 (no antialiasing, corners not aligned), inside the graph"

    def __init__(self, path: Path | str | None = None, device: torch.device | str = "cpu"):
        try:
            graph = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise ValueError("the Inception network needs torch-fidelity: pip install 'minidiff[eval]'.") from error
        path = _official(graph.URL_INCEPTION_V3) if path is None else Path(path)
        if not path.is_file():
            raise ValueError(f"there are no Inception weights {path}: the official ones are {graph.URL_INCEPTION_V3}")
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity's own reading would execute code
            self.net = graph.FeatureExtractorInceptionV3("minidiff", ["2048", "logits_unbiased"], str(path)).to(device)
        except Exception as error:  # a zip or pickle can be broken in many ways, and each has an exception of its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(f"{path} does not hold the weights of FID's Inception: {reason[0]}") from error
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self.device, self.sha256 = torch.device(device), sha256(path)
        official = self.sha256 == INCEPTION_SHA256
        self.warning = "" if official else "not the official Inception weights: no paper's number compares"

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._map = output

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n channel height width"], levels: int = 256) -> Features:
        """See ``Extractor``."""
        if levels != 256:
            images = (images.double() * 255 / (levels - 1)).round().to(torch.uint8)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # ten bits of each factor are not float32
            pool, logits = self.net(images.expand(-1, 3, -1, -1).to(self.device))
        spatial = self._map[:, :7].permute(0, 2, 3, 1).flatten(1)
        return Features(*(x.float().cpu() for x in (pool, spatial, logits)))


def _official(url: str) -> Path:
    """The official weights in torch's folder of downloads, fetched if need be."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{url} can't be fetched ({error}): give a copy of it by --extractor-weights.") from error
    return path


class DigitsNet(nn.Module):
    """8×8 digits to ten classes: four convolutions, of which the second halves the sides, and a mean over places.

    No normalisation layer, so that an image's features do not depend on the others of its batch.
    """

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.conv3, self.conv4 = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(2))
        self.dropout = nn.Dropout(0.3)
        self.classes = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Features:
        """Digits in [−1, 1] to 64 pooled features, 7 channels of the 4×4 map before the last convolution, logits."""
        h = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        pool = F.relu(self.conv4(h)).mean((2, 3))
        return Features(pool, h[:, :7].permute(0, 2, 3, 1).flatten(1), self.classes(self.dropout(pool)))


class DigitsExtractor:
    """A small classifier of scikit-learn's digits that ships, so that every metric runs offline in seconds.

    It names 99.2 % of the 359 held-out digits rightly. ``python -m minidiff.pretrained.digits_extractor FOLDER``
    trains it again. Raises ValueError for a file that holds something else.
    """

    name = "digits"
    resampling = "none"
    warning = ""

    def __init__(self, path: Path | str = DIGITS_WEIGHTS, device: torch.device | str = "cpu"):
        path = Path(path)
        self.net = DigitsNet()
        try:
            self.net.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path} does not hold the weights of the digits extractor: {reason}") from error
        self.net.eval().requires_grad_(False).to(device)
        self.device, self.sha256 = torch.device(device), sha256(path)

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n channel height width"], levels: int = 17) -> Features:
        """See ``Extractor``. Raises ValueError for images that are not 1×8×8."""
        if images.shape[1:] != (1, 8, 8):
            found = "×".join(map(str, images.shape[1:]))
            raise ValueError(f"the digits extractor sees images of 1×8×8, not {found}: take --extractor inception.")
        return Features(*(x.cpu() for x in self.net(encode(images, levels).to(self.device))))
