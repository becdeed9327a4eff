"""What training costs: operations and bytes, against formulas on paper, published figures, and real tensors."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from minidiff import Images
from minidiff.recipes import describe
from minidiff.training import Config, Description, Execution, State, TrainingConfig, UNetConfig, begin, time_sampler
from minidiff.training import cost as counting
from minidiff.training.cost import GPU, GPUS, USABLE, Assumed, Cost
from minidiff.training.loop import train_step

SMALL = UNetConfig(channels=8, mult=(1, 2), blocks=1, attention=(1,), dropout=0.0)


def of(network=SMALL, shape=(1, 8, 8), **training) -> Description:
    return Description(Config("digits", network=network, training=TrainingConfig(**training)), shape, 17)


def conv(a: int, b: int, pixels: int, size: int = 3) -> int:
    """A multiplication and an addition for each weight at each pixel that comes out."""
    return 2 * size**2 * a * b * pixels


def res(a: int, b: int, pixels: int) -> int:
    """Two convolutions, the time's layer, and a 1×1 convolution where the width changes."""
    return conv(a, b, pixels) + conv(b, b, pixels) + 2 * 32 * b + (conv(a, b, pixels, 1) if a != b else 0)


def attention(c: int, pixels: int) -> int:
    """Queries, keys, values and the output; every pixel with every pixel, and again to add up the values."""
    return conv(c, 3 * c, pixels, 1) + conv(c, c, pixels, 1) + 2 * 2 * pixels**2 * c


BY_HAND = sum(
    [
        2 * (8 * 32 + 32 * 32),  # time
        conv(1, 8, 64),
        res(8, 8, 64) + conv(8, 8, 16),  # down to 4×4
        res(8, 16, 16) + attention(16, 16),
        2 * res(16, 16, 16) + attention(16, 16),  # middle
        res(16 + 16, 16, 16) + attention(16, 16),  # up
        res(16 + 8, 16, 16) + attention(16, 16) + conv(16, 16, 64),
        res(16 + 8, 8, 64) + res(8 + 8, 8, 64),
        conv(8, 1, 64),
    ]
)


@pytest.mark.parametrize("heads", [1, 4])
def test_operations_are_those_counted_by_hand(heads):
    cost = Cost(of(replace(SMALL, heads=heads)))
    assert cost.forward == BY_HAND
    assert cost.training == 3 * BY_HAND


@pytest.mark.parametrize(
    "names, billions",
    [  # multiply-adds that the paper on diffusion transformers gives for ADM and for its stacks, as published
        (["adm-imagenet256"], 1120),
        (["adm-imagenet64", "adm-upsample-64-256"], 742),
        (["adm-imagenet512"], 1983),
        (["adm-imagenet128", "adm-upsample-128-512"], 2813),
    ],
)
def test_operations_are_the_published(names, billions):
    counted = sum(Cost(describe(name)).forward for name in names)
    assert counted / 2e9 == pytest.approx(billions, rel=1e-3)


def kept_by_cpu(description: Description) -> int:
    """Bytes that are still allocated after a forward pass with real tensors, the answer aside."""
    net = description.build().net.train()
    x, t = torch.zeros(1, *description.shape), torch.zeros(1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        answer = net(x, t)
    return sum(event.self_cpu_memory_usage for event in seen.key_averages()) - answer.nbytes + x.nbytes


@pytest.mark.parametrize(
    "change, copied",
    [
        ({}, 0),
        ({"attention": (0, 1)}, 0),
        ({"inject": "scale"}, 0),
        ({"channels": 32, "heads": 4}, 4 * 64 * 8 * 8 * 4),
        ({"resample": "block"}, 0),
        ({"rescale": True}, 0),
    ],
    ids=str,
)
def test_activations_are_what_a_real_pass_keeps(change, copied):
    """The CPU lays head after head, so that what attention found is copied once more; a GPU lays heads side by side."""
    description = of(replace(SMALL, **change), (1, 16, 16))
    torch.manual_seed(0)
    assert Cost(description).activations("tf32") == pytest.approx(kept_by_cpu(description) - copied, rel=0.005)


def test_dropout_keeps_a_byte_an_element():
    without, with_it = (Cost(of(replace(SMALL, dropout=p))).activations("tf32") for p in (0.0, 0.1))
    blocks = [(8, 64), (16, 16), (16, 16), (16, 16), (16, 16), (16, 16), (8, 64), (8, 64)]  # width, pixels
    # what the convolution then keeps is a tensor of its own, and what swish gave need not be kept any longer
    assert with_it - without == sum(width * pixels for width, pixels in blocks)


def test_attention_keeps_no_weights():
    """Bytes grow with the pixels and not with their square."""
    sizes = [Cost(of(replace(SMALL, attention=(0, 1)), (1, side, side))).activations("tf32") for side in (16, 32, 64)]
    assert (sizes[2] - sizes[1]) / (sizes[1] - sizes[0]) == pytest.approx(4, rel=0.02)


def test_half_precision_halves_most_activations_and_adds_a_copy_of_the_weights():
    cost = Cost(describe("adm-ablation-base"))
    assert 0.5 < cost.activations("bf16") / cost.activations("tf32") < 0.75  # norms keep their input in 32 bits
    more = set(cost.memory("bf16").items()) - set(cost.memory("tf32").items())
    assert more == {("weights in 16 bits", 2 * cost.parameters)}


def test_recomputing_costs_a_pass_and_saves_activations():
    plain, thrifty = (Cost(of(replace(SMALL, checkpoint=each), (1, 32, 32))) for each in (False, True))
    assert thrifty.forward == plain.forward and thrifty.training == 4 * plain.forward
    assert thrifty.activations("tf32") < 0.5 * plain.activations("tf32")


def test_memory_by_part_is_that_of_a_real_state():
    description = of(ema=(10, 1000))
    torch.manual_seed(0)
    state = begin(description.build(), time_sampler(description.config), description.config.training)
    x = torch.zeros(2, 1, 8, 8)
    state.model(x, torch.tensor([3, 7]), torch.ones_like(x))["loss"].mean().backward()
    state.optimizer.step()
    parameters = list(state.model.parameters())
    moments = [each[key] for each in state.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    real = {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters),
        "Adam's moments": sum(moment.nbytes for moment in moments),
        "averaged weights": sum(p.nbytes for ema in state.emas for p in ema.model.parameters()),
    }
    assert Cost(description).memory("tf32") == real


def second_step(description: Description, device: str = "cpu", execution: Execution | None = None) -> tuple:
    """A state that has taken a step, its gradients gone again, and what takes the next."""
    config, generator = description.config, torch.Generator().manual_seed(0)
    pixels = torch.randint(description.levels, (64, *description.shape), generator=generator).to(torch.uint8)
    labels = torch.zeros(64, dtype=torch.long) if config.data.labels else None
    images = Images(pixels, description.levels, labels, give_labels=labels is not None, augment=config.data.augment)
    torch.manual_seed(0)
    state = begin(description.build().to(device), time_sampler(config), config.training, execution)
    state.model.train()
    take = lambda: train_step(state, images, config.training, state.model)
    take()
    state.optimizer.zero_grad()
    return state, take


def held(state: State) -> int:
    """Bytes of all that a state has between two steps."""
    modules = [state.model, *(ema.model for ema in state.emas)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum(
        each.nbytes for each in (*tensors, *(v for kept in state.optimizer.state.values() for v in kept.values()))
    )


@pytest.mark.parametrize(
    "name, shape, batch, change",
    [
        ("digits", (1, 8, 8), 1, {}),
        ("digits", (1, 8, 8), 128, {}),
        ("ddpm-cifar10", (3, 32, 32), 1, {"channels": 32}),
        ("ddpm-cifar10", (3, 32, 32), 8, {"channels": 32}),
        ("adm-imagenet64", (3, 32, 32), 2, {"channels": 32, "head_channels": 32, "blocks": 1}),
        ("edm-cifar10-cond-vp", (3, 16, 16), 8, {"channels": 32, "blocks": 2}),
    ],
)
def test_the_most_that_a_step_holds_is_what_was_predicted(name, shape, batch, change):
    """Gradients come while activations go, so that it may be less; the backward pass has buffers of its own."""
    whole = describe(name)
    network, training = replace(whole.config.network, **change), replace(whole.config.training, batch=batch)
    description = replace(whole, config=replace(whole.config, network=network, training=training), shape=shape)
    state, take = second_step(description)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        take()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = held(state)
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    cost = Cost(description)
    assert 0.8 < most / (sum(cost.memory("tf32").values()) + batch * cost.activations("tf32")) < 1.15


@pytest.mark.gpu
@pytest.mark.parametrize("precision, kind", [("fp32", "tf32"), ("bf16", "bf16")])
def test_on_a_gpu_the_most_that_a_step_holds_is_what_was_predicted(precision, kind):
    whole = describe("ddpm-cifar10")
    description = replace(whole, config=replace(whole.config, training=replace(whole.config.training, batch=32)))
    before = torch.cuda.memory_allocated()
    _, take = second_step(description, "cuda", Execution(precision=precision))
    torch.cuda.reset_peak_memory_stats()
    take()
    cost = Cost(description)
    predicted = sum(cost.memory(kind).values()) + 32 * cost.activations(kind)
    assert (torch.cuda.max_memory_allocated() - before) / predicted < 1.15


@pytest.mark.parametrize("name", GPUS)
def test_the_micro_batch_is_the_largest_that_fits(name):
    cost, assumed = Cost(describe("adm-ablation-base")), Assumed(gpu=name)
    fits, each, held = cost.micro_batch(assumed), cost.activations("tf32"), sum(cost.memory("tf32").values())
    assert fits > 0
    assert held + fits * each <= USABLE * GPUS[name].memory < held + (fits + 1) * each


def test_a_gpu_too_small_takes_none(monkeypatch):
    monkeypatch.setitem(counting.GPUS, "l40s", GPU(1e12, 1e12, 1000))
    assert Cost(of()).micro_batch(Assumed(gpu="l40s")) == 0


def test_time_is_work_over_rate(monkeypatch):
    monkeypatch.setitem(counting.GPUS, "l40s", GPU(bf16=8e9, tf32=4e9, memory=10**9))
    cost = Cost(of(images=7_200_000))
    slow, fast = (Assumed(gpu="l40s", precision=each, utilisation=0.25) for each in ("tf32", "bf16"))
    assert (slow.rate, fast.rate) == (1e9, 2e9)
    assert cost.per_second(slow) == pytest.approx(1e9 / (3 * BY_HAND))
    assert cost.hours(slow) == 2 * cost.hours(fast) == pytest.approx(7.2e6 * 3 * BY_HAND / 1e9 / 3600)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"utilisation=.*give a share"):
        _ = Assumed(utilisation=share).rate


def test_sixteen_bits_are_twice_as_fast_on_each():
    for gpu in GPUS.values():
        assert gpu.bf16 == pytest.approx(2 * gpu.tf32, rel=0.02)
