"""Extractors: the one that ships against its own record, Inception against torch-fidelity's own call of it."""

import json
import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch.nn import functional as F

from minidiff import DigitsExtractor, InceptionExtractor, digits
from minidiff.evaluation import features
from minidiff.evaluation.features import DIGITS_WEIGHTS, DigitsNet
from minidiff.files import sha256
from minidiff.pretrained import digits_extractor, names

torch_fidelity = pytest.importorskip("torch_fidelity", reason="the extra eval is not installed")


def images(*shape: int, levels: int = 256) -> torch.Tensor:
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(4)).to(torch.uint8)


# ---- digits ----


def test_the_digits_extractor_is_what_its_record_says():
    record = json.loads((DIGITS_WEIGHTS.parent / "provenance.json").read_text())
    extractor, test = DigitsExtractor(), digits("test")
    right = (extractor(test.pixels, 17).logits.argmax(1) == test.labels).double().mean().item()
    assert right == pytest.approx(record["held_out_accuracy"], abs=1e-4) and right > 0.97
    assert f"{100 * right:.1f} %" in DigitsExtractor.__doc__
    assert extractor.sha256 == record["sha256"] == sha256(DIGITS_WEIGHTS)
    assert {"command", "seed", "date", "torch"} <= record.keys()
    assert DIGITS_WEIGHTS.stat().st_size < 1_000_000 and "digits-extractor" not in names()


def test_its_features_have_unit_mean_square_and_belong_to_the_image_alone():
    extractor, pixels = DigitsExtractor(), digits("train").pixels
    seen = extractor(pixels, 17)
    assert (seen.pool.shape, seen.spatial.shape, seen.logits.shape) == ((1438, 64), (1438, 112), (1438, 10))
    assert [x.square().mean().item() for x in seen[:2]] == pytest.approx([1, 1], rel=1e-5)
    one = extractor(pixels[5:6], 17)
    for alone, among in zip(one, seen, strict=True):
        torch.testing.assert_close(alone[0], among[5], atol=1e-4, rtol=1e-5)


def test_levels_are_a_scale_and_no_more():
    pixels = digits("test").pixels[:9]
    a, b = DigitsExtractor()(pixels, 17), DigitsExtractor()(pixels * 15, 241)  # 240 = 15 · 16
    torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=1e-5)


def test_training_it_is_repeatable_and_learns():
    a, b = (digits_extractor.train(digits("train"), epochs=2, seed=2) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert digits_extractor.accuracy(a, digits("test")) > 0.2


def test_normalising_leaves_the_answers(generator):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = DigitsNet().eval().requires_grad_(False)
    before = net(digits("test").x).logits
    digits_extractor.normalise(net, digits("train"))
    torch.testing.assert_close(net(digits("test").x).logits, before)
    assert net(digits("train").x).pool.square().mean().item() == pytest.approx(1, rel=1e-5)


def test_moved_digits_are_digits_still(generator):
    x = digits("test").x[:50]
    moved = digits_extractor.moved(x, generator)
    assert moved.shape == x.shape and moved.min() >= -1 and moved.max() <= 1 + 1e-6
    assert (moved + 1).mean().item() == pytest.approx((x + 1).mean().item(), rel=0.05)  # little ink leaves the field
    assert (digits_extractor.moved(torch.full_like(x, -1.0), generator) == -1).all()


def test_the_command_writes_weights_and_record(tmp_path, monkeypatch):
    monkeypatch.setattr(digits_extractor, "train", lambda data: DigitsNet().eval().requires_grad_(False))
    record = digits_extractor.main(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "provenance.json").read_text()) == record
    assert DigitsExtractor(tmp_path / "new" / "weights.safetensors").sha256 == record["sha256"]
    torch.set_num_threads(1)


def test_the_digits_extractor_refuses_other_images_and_other_weights(tmp_path):
    with pytest.raises(ValueError, match="1×8×8, not 3×8×8"):
        DigitsExtractor()(images(2, 3, 8, 8))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad\.safetensors does not hold the weights"):
        DigitsExtractor(tmp_path / "bad.safetensors")


# ---- Inception, with random weights, because the official ones are not ours to ship ----


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    from torch_fidelity import feature_extractor_inceptionv3 as graph

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(graph, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(graph.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = graph.FeatureExtractorInceptionV3("random", ["2048"])
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def inception(weights) -> InceptionExtractor:
    return InceptionExtractor(weights)


@pytest.fixture(scope="session")
def theirs(weights):
    """torch-fidelity's own extractor."""
    from torch_fidelity.utils import create_feature_extractor

    names = ["2048", "logits_unbiased"]
    return create_feature_extractor(
        "inception-v3-compat", names, feature_extractor_weights_path=str(weights), cuda=False, verbose=False
    )


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.shape == expected.shape and expected.abs().max() > 1e-3
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("side", [32, 299])
def test_inception_sees_what_torch_fidelity_sees(inception, theirs, side):
    pixels = images(3, 3, side, side)
    pool, logits = theirs(pixels)
    ours = inception(pixels, 256)
    close(ours.pool, pool)
    close(ours.logits, logits)
    assert ours.spatial.shape == (3, 17 * 17 * 7)


def test_its_spatial_features_are_adms(inception):
    """Seven channels of mixed_6/conv, a place's channels side by side, from the layers called one after the other."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    pixels, net = images(2, 3, 40, 40), inception.net
    x = (resize(pixels.float(), size=(299, 299), align_corners=False) - 128) / 128
    x = net.MaxPool_1(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))))
    x = net.MaxPool_2(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(x)))
    for block in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c, net.Mixed_6d):
        x = block(x)
    expected = x[:, :7].movedim(1, -1).reshape(2, -1)  # the 1×1 branch comes first in what the block joins
    close(inception(pixels, 256).spatial, expected)


def test_grey_is_repeated_and_levels_are_spread(inception, theirs):
    grey = images(2, 1, 24, 24, levels=17)
    spread = torch.tensor([round(k * 255 / 16) for k in range(17)], dtype=torch.uint8)[grey.long()]
    pool, logits = theirs(spread.repeat(1, 3, 1, 1))
    ours = inception(grey, 17)
    close(ours.pool, pool)
    close(ours.logits, logits)


def test_inception_knows_the_official_file(weights, inception, monkeypatch):
    assert inception.sha256 == sha256(weights)
    assert "not the official Inception weights" in inception.warning
    monkeypatch.setattr(features, "INCEPTION_SHA256", sha256(weights))
    assert InceptionExtractor(weights).warning == ""


def test_without_a_path_it_is_fetched_once(weights, tmp_path, monkeypatch):
    fetched = []

    def fetch(url, target, sha256):
        fetched.append((url.rsplit("/", 1)[1], sha256))
        Path(target).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert InceptionExtractor().sha256 == InceptionExtractor().sha256 == sha256(weights)
    assert fetched == [("weights-inception-2015-12-05-6726825d.pth", features.INCEPTION_SHA256)]
    assert features.INCEPTION_SHA256.startswith("6726825d")


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    def fail(*_):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"can't be fetched .*no route.*--extractor-weights"):
        InceptionExtractor()


def test_inception_refuses_what_holds_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"there are no Inception weights .*none\.pth: the official"):
        InceptionExtractor(tmp_path / "none.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of FID's Inception"):
            InceptionExtractor(tmp_path / name)


def test_a_weight_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save(Evil(), tmp_path / "zipped.pth")
    for name in ("evil.pth", "zipped.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold"):
            InceptionExtractor(tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_a_missing_torch_fidelity_is_a_sentence(monkeypatch, weights):
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'minidiff\[eval\]'"):
        InceptionExtractor(weights)


def test_resampling_is_named(inception):
    pixels = images(1, 3, 20, 20).float()
    smooth = F.interpolate(pixels, (299, 299), mode="bilinear", antialias=True).round().to(torch.uint8)
    assert (inception(pixels.to(torch.uint8), 256).pool - inception(smooth, 256).pool).abs().max() > 1e-3
    assert "TensorFlow 1" in inception.resampling and DigitsExtractor().resampling == "none"
