"""Two processes over gloo are one that sees the whole batch; what one of them meets, both know."""

import subprocess
import sys
from pathlib import Path

import pair
import pytest
import torch

from minidiff.training import distributed
from minidiff.training.loop import data_order

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and locks are for Linux and macOS here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def both(folder) -> list[dict]:
    """What each of two processes found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run([*command, pair.__file__, folder], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    """The gradients of one process with the whole batch at once."""
    return pair.gradients()


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("micro", [0, 4, 1])
def test_gradients_of_two_are_those_of_one_with_the_whole_batch(micro, both, alone):
    """In one portion, in two and in eight."""
    assert min(gradient.abs().max() for gradient in alone) > 1e-4
    for each in both:
        assert largest_difference(each["gradients"][micro], alone) <= 1e-6


@pytest.mark.parametrize("micro", [8, 2])
def test_gradients_of_one_in_portions_are_those_of_the_whole_batch(micro, alone):
    assert largest_difference(pair.gradients(micro), alone) <= 1e-6


def test_gradients_are_exchanged_once_a_step_however_many_portions_there_are(both):
    for each in both:
        assert each["exchanges"][0] == each["exchanges"][4] == each["exchanges"][1] > 0


def test_each_has_its_share_of_the_order_and_draws_of_its_own(both):
    for step in range(10):
        index = torch.cat([each["index"][step] for each in both])
        assert torch.equal(index, data_order(16 * step, 16, 40, 3)) and len(both[1]["index"][step]) == 8
        assert not torch.equal(both[0]["t"][step], both[1]["t"][step])


@pytest.mark.parametrize("run", ["weights", "importance"])
def test_weights_and_averages_are_the_same_on_both_to_the_bit(run, both):
    a, b = (each[run] for each in both)
    assert a.keys() == b.keys() and any(name.startswith("ema-2000") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a["model.net.conv_in.weight"].std() > 0


def test_a_line_tells_the_loss_of_all(both):
    losses = [[line["loss"] for line in each["metrics"]] for each in both]
    assert losses[0] == losses[1] and [line["images"] for line in both[0]["metrics"]] == [32, 64, 96, 128, 160]


def test_what_is_not_finite_on_one_stops_both_before_the_update(both):
    """Only the second process has bad images, in its third batch."""
    for each in both:
        said, images, weights, in_training = each["spoilt"]
        assert "not finite after 32 images: no update was made" in said and images == 32 and not in_training
        assert all(torch.equal(weights[name], value) for name, value in each["before"].items())


def test_an_infinite_loss_with_a_gradient_as_ever_stops_both_too(both):
    """Were one to go on, it would wait for the other."""
    assert all("not finite after 0 images: no update was made" in each["infinite"] for each in both)


def test_one_that_is_told_to_stop_stops_both_and_the_first_writes(both, folder):
    assert [each["stopped"] for each in both] == [48, 48]
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["48"]
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_both_refuse_what_one_would_have_to(both):
    for each in both:
        sentences = ["batch=15 does not divide by 2", "micro=3: 8 examples a process", "different checkp", "is in use"]
        assert all(part in said for part, said in zip(sentences, each["refused"], strict=True))


def test_one_alone_takes_the_whole_batch():
    model = torch.nn.Linear(1, 1)
    assert distributed.joined(model) is model
    assert distributed.portions(12, 0) == (12, 12) and distributed.portions(12, 4) == (12, 4)


@pytest.mark.parametrize("micro", [-1, 5, 24])
def test_a_portion_divides_the_share(micro):
    with pytest.raises(ValueError, match=f"micro={micro}: 12 examples a process"):
        distributed.portions(12, micro)
