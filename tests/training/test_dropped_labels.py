"""Label −1, no class: what the networks make of it, and training data that leave labels out."""

from dataclasses import replace

import pytest
import tiny
import torch

from minidiff import ClassifierConfig, DataConfig, Images, SongUNet, SongUNetConfig, UNet, UNetConfig, load_data, train
from minidiff.training import check

NETS = {"UNet": UNet, "SongUNet": SongUNet}
by_name = pytest.mark.parametrize("kind", NETS)


def network(kind: str, classes: int) -> UNet | SongUNet:
    """Random weights; without classes those that the other has too."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = NETS[kind](1, 1, 8, (1, 2), 1, (1,), 0.0, classes=3)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    if classes:
        return net
    plain = NETS[kind](1, 1, 8, (1, 2), 1, (1,), 0.0)
    kept = {key: value for key, value in net.state_dict().items() if not key.startswith("label.")}
    plain.load_state_dict(kept)
    return plain


@pytest.fixture
def asked(generator):
    return torch.randn(3, 1, 4, 4, generator=generator), torch.tensor([1.0, 50.0, 900.0])


def test_no_class_is_the_network_without_one_and_changes_no_neighbour(asked):
    net, plain = network("UNet", 3), network("UNet", 0)
    mixed = net(*asked, labels=torch.tensor([2, -1, 0]))
    torch.testing.assert_close(mixed[1], plain(*asked)[1])
    torch.testing.assert_close(mixed[[0, 2]], net(*asked, labels=torch.tensor([2, 1, 0]))[[0, 2]])
    assert (mixed - plain(*asked))[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3


def test_no_class_is_a_row_of_zeros_to_the_linear_layer_of_the_other(asked):
    """Its bias stays, so a network whose classes weigh nothing does not see the difference."""
    net, blind = network("SongUNet", 3), network("SongUNet", 3)
    with torch.no_grad():
        blind.label.weight.zero_()
    mixed = net(*asked, labels=torch.tensor([2, -1, 0]))
    torch.testing.assert_close(mixed[1], blind(*asked, labels=torch.tensor([2, 0, 0]))[1])
    torch.testing.assert_close(mixed[[0, 2]], net(*asked, labels=torch.tensor([2, 1, 0]))[[0, 2]])
    assert (mixed - blind(*asked, labels=torch.tensor([2, 0, 0])))[[0, 2]].abs().amax((1, 2, 3)).min() > 1e-3


@by_name
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_no_class_teaches_no_class(kind, dtype, asked):
    net = network(kind, 3)
    net(*asked, labels=torch.tensor([-1, 2, -1], dtype=dtype)).square().sum().backward()
    rows = net.label.weight.grad.abs().sum(1 if kind == "UNet" else 0)
    assert rows[:2].tolist() == [0, 0] and rows[2] > 0


@by_name
@pytest.mark.parametrize("label", [-2, 3])
def test_no_other_label_is_read_out_of_range(kind, label, asked):
    with pytest.raises((IndexError, RuntimeError), match=r"index out of range|Class values"):
        network(kind, 3)(*asked, labels=torch.tensor([0, label, 1]))


# ---- data -----------------------------------------------------------------------------------------------------------


def images(**options) -> Images:
    pixels = tiny.images(40).pixels
    return Images(pixels, 17, torch.arange(40) % 10, flip=True, crop=0.8, give_labels=True, low_res=2, **options)


def test_labels_are_left_out_with_their_probability_and_nothing_else_changes():
    index = torch.arange(4000) % 40
    draw = lambda data: data.batch(index, torch.Generator().manual_seed(5))
    (x, cond), (same, kept) = draw(images(drop_labels=0.3)), draw(images())
    dropped = cond["labels"] == -1
    assert abs(dropped.sum().item() - 1200) < 4 * (4000 * 0.3 * 0.7) ** 0.5
    assert torch.equal(cond["labels"][~dropped], kept["labels"][~dropped]) and (kept["labels"] >= 0).all()
    assert torch.equal(x, same) and torch.equal(cond["low_res"], kept["low_res"])
    among = dropped.reshape(100, 40).float().mean(0)  # each image has its turn
    assert among.min() > 0.1 and among.max() < 0.5


def test_where_none_are_left_out_nothing_is_drawn_for_it():
    states = []
    for options in ({}, {"drop_labels": 0.0}, {"drop_labels": 0.1}):
        generator = torch.Generator().manual_seed(5)
        images(**options).batch(torch.arange(8), generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_option_reaches_the_images_and_is_refused_without_labels():
    data = load_data("digits", labels=True, drop_labels=0.25)
    assert data.drop_labels == 0.25 and load_data("digits", labels=True).drop_labels == 0
    for given in ({"drop_labels": 0.1}, *({"labels": True, "drop_labels": p} for p in (-0.1, 1.0, float("nan")))):
        with pytest.raises(ValueError, match=r"data.drop_labels=.*give a probability below 1"):
            load_data("digits", **given)
    with pytest.raises(ValueError, match=r"data\.drop_labels is for images"):
        load_data("swiss-roll", drop_labels=0.1)


CLASSES = UNetConfig(channels=4, mult=(1, 2), blocks=1, attention=(1,), classes=10)


@pytest.mark.parametrize(
    ("labels", "network", "who"),
    [
        (False, replace(CLASSES, classes=0), "UNet"),
        (False, SongUNetConfig(), "SongUNet"),
        (True, ClassifierConfig(classes=10), "Classifier"),
    ],
)
def test_a_network_that_is_told_no_class_cannot_miss_one(labels, network, who):
    config = replace(tiny.config(), data=DataConfig(labels=labels, drop_labels=0.1), network=network)
    with pytest.raises(ValueError, match=f"data.drop_labels=0.1: {who} is not told a label"):
        check(config)
    check(replace(config, data=replace(config.data, drop_labels=0.0)))


def test_training_tells_them_to_the_network():
    """The network sees −1 in half of the places, and the classes of the same run without it in the others."""
    whole = replace(tiny.config(), data=DataConfig(labels=True, drop_labels=0.5), network=CLASSES)
    check(whole)
    ends = []
    for p in (0.0, 0.5):
        state = tiny.fresh(whole)
        data = Images(tiny.images().pixels, 17, torch.arange(40) % 10, give_labels=True, drop_labels=p)
        seen = []
        state.model.net.register_forward_pre_hook(lambda _, args, more: seen.append(more["labels"]), with_kwargs=True)  # noqa: B023
        train(state, data, replace(whole.training, images=80))
        ends.append(torch.cat(seen))
    dropped = ends[1] == -1
    assert (ends[0] >= 0).all() and 20 < dropped.sum() < 60
    assert torch.equal(ends[0][~dropped], ends[1][~dropped])
