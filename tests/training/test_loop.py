"""The loop: one clock, no trace in the global random state, no update from what is not finite, exact resumption."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minidiff import GaussianDiffusion, Model, TrainingConfig, UniformTimes, begin, linear_betas, read_metrics, resume
from minidiff import train as train_library
from minidiff.training.cost import Cost
from minidiff.training.loop import data_order, learning_rate


def train(state, config, run=None, **callbacks):
    return train_library(state, tiny.images(), config.training, run, tiny.describe(config), **callbacks)


def assert_same(a: dict, b: dict) -> None:
    """The same keys, and bit for bit the same tensors and numbers."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


def flat(value, name: str = "") -> dict[str, object]:
    """Nested state dicts with one key a leaf."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), name)
    return {name: value}


# ---- resumption -----------------------------------------------------------------------------------------------------


def test_ten_steps_are_five_and_a_resumed_five_bit_for_bit(tmp_path):
    config = tiny.config(images=160, checkpoint=80, tick=16)
    half = replace(config, training=replace(config.training, images=80))
    whole = train(tiny.fresh(config), config, tmp_path / "whole")
    train(tiny.fresh(half), half, tmp_path / "parts")
    torch.manual_seed(123)  # no matter
    state = tiny.fresh(config, seed=77)  # other weights: all must come from the checkpoint
    assert resume(state, tmp_path / "parts") and state.images == 80
    train(state, config, tmp_path / "parts")

    assert_same(tiny.weights(state), tiny.weights(whole))
    assert_same(flat(state.optimizer.state_dict()), flat(whole.optimizer.state_dict()))
    assert tiny.without_speed(state.metrics) == tiny.without_speed(whole.metrics)
    assert tiny.without_speed(read_metrics(tmp_path / "parts")) == tiny.without_speed(read_metrics(tmp_path / "whole"))
    for name in ("model.safetensors", "ema-50.safetensors", "ema-2000.safetensors"):
        parts = [tmp_path / run / "checkpoints" / "160" / name for run in ("whole", "parts")]
        assert parts[0].read_bytes() == parts[1].read_bytes()


def test_dropout_is_part_of_what_is_resumed():
    """Were dropout off, the bit-equality above would say less."""
    config = tiny.config(images=64)
    dry = replace(config, network=replace(config.network, dropout=0.0))
    a, b = tiny.weights(train(tiny.fresh(config), config)), tiny.weights(train(tiny.fresh(dry), dry))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_lines_written_after_the_last_checkpoint_are_cut_off(tmp_path):
    config = tiny.config()
    train(tiny.fresh(config), config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 999, "loss": 0.5}\n{"images": 10')
    state = tiny.fresh(config)
    assert resume(state, tmp_path)
    assert [line["images"] for line in state.metrics] == [32, 64, 96, 128, 160]
    train(state, config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == state.metrics


def test_a_run_that_died_before_its_first_checkpoint_begins_a_new_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"images": 32, "loss": 9.0}\n{"ima')
    config, state = tiny.config(images=64), tiny.fresh(tiny.config())
    assert not resume(state, tmp_path)
    train(state, config, tmp_path)
    assert [json.loads(line)["images"] for line in (tmp_path / "metrics.jsonl").open()] == [32, 64]


def test_resuming_reads_and_does_not_write(tmp_path):
    config = tiny.config()
    train(tiny.fresh(config), config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 999, "loss": 0.5}\n')
    before = tiny.files(tmp_path)
    resume(tiny.fresh(config), tmp_path)
    assert tiny.files(tmp_path) == before


# ---- the clock ------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 50), epoch=st.integers(0, 5), seed=st.integers(0, 99))
def test_each_epoch_has_each_example_once(n, epoch, seed):
    assert sorted(data_order(epoch * n, n, n, seed).tolist()) == list(range(n))


@given(n=st.integers(1, 30), batches=st.lists(st.integers(1, 70), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_the_order_is_a_function_of_images_seen(n, batches, seed):
    total, seen, parts = sum(batches), 0, []
    for batch in batches:
        parts.append(data_order(seen, batch, n, seed))
        seen += batch
    assert torch.equal(torch.cat(parts), data_order(0, total, n, seed))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [data_order(epoch * 50, 50, 50, seed).tolist() for epoch in range(3) for seed in range(2)]
    assert len({tuple(order) for order in orders}) == 6


def test_the_learning_rate_rises_over_the_ramp_and_stays():
    config = TrainingConfig(lr=2e-4, ramp=1000, batch=100)
    rates = [learning_rate(config, images) for images in range(0, 1500, 100)]
    expected = [2e-5 * k for k in range(1, 11)] + [2e-4] * 5
    assert rates == pytest.approx(expected, rel=1e-12)
    assert learning_rate(replace(config, ramp=0), 0) == 2e-4


def test_annealed_the_learning_rate_falls_to_nothing_at_the_end():
    config = TrainingConfig(lr=2e-4, ramp=0, batch=100, images=1000, anneal=True)
    rates = [learning_rate(config, images) for images in range(0, 1000, 100)]
    assert rates == pytest.approx([2e-4 * (1 - k / 10) for k in range(10)], rel=1e-12)
    risen = [learning_rate(replace(config, ramp=500), images) for images in range(0, 1000, 100)]
    assert risen == pytest.approx([rate * min(1, (k + 1) / 5) for k, rate in enumerate(rates)], rel=1e-12)


def test_lines_and_checkpoints_fall_where_they_should(tmp_path):
    config = tiny.config(images=200, batch=16, tick=48, checkpoint=100)
    steps, ticks = [], []
    state = train(
        tiny.fresh(config),
        config,
        tmp_path,
        on_step=lambda s: steps.append(s.images),
        on_tick=lambda s: ticks.append(s.images),
    )
    assert steps == list(range(16, 209, 16))  # the first count at or above 200
    assert ticks == [line["images"] for line in state.metrics] == [48, 96, 144, 192, 208]
    assert sorted(int(f.name) for f in (tmp_path / "checkpoints").iterdir()) == [144, 208]
    rates = [line["lr"] for line in state.metrics]
    assert rates == pytest.approx([1e-3 * min(1, n / 100) for n in ticks])


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_line_has_the_mean_norm_of_the_gradient_before_it_was_clipped(clip):
    config, norms = tiny.config(images=96, tick=32, clip_grad=0.0, lr=1e-30), []
    square = lambda state: sum((p.grad**2).sum() for p in state.model.parameters())
    train(tiny.fresh(config), config, on_step=lambda state: norms.append(square(state).sqrt().item()))
    config = replace(config, training=replace(config.training, clip_grad=clip))
    lines = train(tiny.fresh(config), config).metrics
    means = [sum(norms[k : k + 2]) / 2 for k in (0, 2, 4)]
    assert [line["gradient_norm"] for line in lines] == pytest.approx(means, rel=1e-5) and min(means) > 1e-3


def test_a_line_has_operations_a_second_and_the_most_memory_so_far(tmp_path):
    config = tiny.config()
    lines = train(tiny.fresh(config), config, tmp_path).metrics
    flops = Cost(tiny.describe(config)).training
    for line in lines:
        assert line["flops_per_second"] == pytest.approx(flops * line["images_per_second"], rel=1e-2)
    peaks = [line["peak_memory"] for line in lines]
    assert peaks == sorted(peaks) and 50 * 2**20 < peaks[0]  # torch alone takes that
    if Path("/proc/self/status").exists():  # a kernel's own number, in another file
        (peak,) = (line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
        assert peaks[-1] == pytest.approx(int(peak) * 1024, rel=0.05)
    assert read_metrics(tmp_path) == lines


def test_a_finished_run_has_nothing_to_do(tmp_path):
    config = tiny.config(images=32)
    train(tiny.fresh(config), config, tmp_path)
    before, state = tiny.files(tmp_path), tiny.fresh(config)
    resume(state, tmp_path)
    train(state, config, tmp_path)
    assert tiny.files(tmp_path) == before


# ---- one step -------------------------------------------------------------------------------------------------------


class Recorder(UniformTimes):
    """Uniform times with weights of its own, that keeps what the loop tells it."""

    def __init__(self, T: int, weights: torch.Tensor):
        super().__init__(T)
        self.weights, self.told = weights, []

    def draw(self, n, generator):
        return super().draw(n, generator)[0], self.weights

    def update(self, t, loss):
        self.told.append((t, loss))


def test_the_weighted_mean_is_minimised_and_the_bare_losses_are_told():
    config = tiny.config(images=16, tick=16)
    model, weights = tiny.fresh(config).model, torch.linspace(0, 3, 16)
    state = train(begin(model, Recorder(30, weights), config.training), config)
    ((t, losses),) = state.times.told
    assert t.shape == losses.shape == (16,) and not losses.requires_grad
    assert state.metrics[0]["loss"] == pytest.approx((weights * losses).mean().item(), rel=1e-5)


def test_examples_of_weight_zero_teach_nothing():
    config = tiny.config(images=48)
    model = tiny.fresh(config).model
    before = {name: p.clone() for name, p in model.state_dict().items()}
    train(begin(model, Recorder(30, torch.zeros(16)), config.training), config)
    assert_same(model.state_dict(), before)


def test_a_line_holds_the_mean_loss_of_its_steps():
    config = tiny.config(images=64, tick=64)
    state = begin(tiny.fresh(config).model, Recorder(30, torch.ones(16)), config.training)
    train(state, config)
    mean = torch.stack([losses.mean() for _, losses in state.times.told]).mean().item()
    assert len(state.times.told) == 4 and state.metrics[0]["loss"] == pytest.approx(mean, rel=1e-6)


def test_the_gradient_is_clipped_to_its_norm():
    config = tiny.config(images=16, ramp=0, lr=1.0, clip_grad=1e-3)
    state = tiny.fresh(config)
    state.optimizer = torch.optim.SGD(state.model.parameters(), lr=9.0)  # the loop sets the rate
    before = torch.cat([p.detach().flatten().clone() for p in state.model.parameters()])
    train(state, config)
    after = torch.cat([p.detach().flatten() for p in state.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_training_lowers_the_loss():
    config = tiny.config(images=1600, tick=16, lr=5e-3)
    losses = [line["loss"] for line in train(tiny.fresh(config), config).metrics]
    assert losses[0] == pytest.approx(1, abs=0.3)  # a network that answers 0 to standard normal noise
    assert sum(losses[-20:]) / 20 < 0.75


def test_told_to_stop_it_ends_after_the_step_and_writes_what_there_is(tmp_path):
    """Off the ticks: one more line, one more checkpoint, and the resumed run is the unbroken one."""
    config = tiny.config()
    asked, state = [], tiny.fresh(config)
    stop = lambda: asked.append(state.images) or state.images == 80
    train(state, config, tmp_path, stop=stop)
    assert asked == [16, 32, 48, 64, 80] and not state.model.training
    assert [line["images"] for line in read_metrics(tmp_path)] == [32, 64, 80]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [64, 80]
    again = tiny.fresh(config, seed=5)
    assert resume(again, tmp_path) and again.images == 80
    assert_same(tiny.weights(train(again, config, tmp_path)), tiny.weights(train(tiny.fresh(config), config)))
    assert [line["images"] for line in read_metrics(tmp_path)] == [32, 64, 80, 96, 128, 160]


# ---- randomness and failure -----------------------------------------------------------------------------------------


def test_the_global_random_state_is_neither_used_nor_changed():
    config, results = tiny.config(images=48), []
    for seed in (1, 2):
        state = tiny.fresh(config)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(tiny.weights(train(state, config)))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*results)


def test_another_seed_is_another_run():
    a, b = (tiny.weights(train(tiny.fresh(c), c)) for c in (tiny.config(images=32), tiny.config(images=32, seed=4)))
    assert any(not torch.equal(a[name], b[name]) for name in a)


class Poisoned:
    """Good images, then a batch with one that is not a number."""

    def __init__(self):
        self.good, self.batches = tiny.images(), 0

    def __len__(self):
        return len(self.good)

    def batch(self, index, generator):
        self.batches += 1
        x, cond = self.good.batch(index, generator)
        if self.batches == 3:
            x[5, 0, 2, 2] = float("nan")
        return x, cond


class Kink(nn.Module):
    """A finite answer whose gradient is not a number: √(w²) at w = 0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        return x + (self.w**2).sqrt()


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    config = tiny.config()
    state, kept = tiny.fresh(config), {}
    with pytest.raises(FloatingPointError, match="not finite after 32 images: no update was made"):
        train_library(
            state,
            Poisoned(),
            config.training,
            tmp_path,
            tiny.describe(config),
            on_step=lambda s: kept.update(tiny.weights(s)),
        )
    assert state.images == 32 and not state.model.training  # ready to sample from, as after a success
    assert_same(tiny.weights(state), kept)
    assert all(value.isfinite().all() for value in kept.values())


@pytest.mark.parametrize("every, told", [(16, r"That is .*checkpoints.32\."), (64, r"There is none yet\.")])
def test_what_is_not_finite_is_told_with_the_last_good_checkpoint(tmp_path, every, told):
    config = tiny.config(tick=16, checkpoint=every)
    with pytest.raises(FloatingPointError, match=told):
        train_library(tiny.fresh(config), Poisoned(), config.training, tmp_path, tiny.describe(config))


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    config = tiny.config()
    state = begin(Model(Kink(), GaussianDiffusion(linear_betas(30))), UniformTimes(30), config.training)
    with pytest.raises(FloatingPointError, match="gradient is not finite after 0 images"):
        train(state, config)
    assert state.images == 0 and state.model.net.w.item() == 0 and state.ema.net.w.item() == 0


def test_averages_follow_the_weights_by_the_images_seen_before_each_step():
    config, steps = tiny.config(images=480, tick=480, lr=1e-2, ramp=0, ema=(2000,)), []
    state = tiny.fresh(config)
    train(state, config, on_step=lambda s: steps.append((s.images - 16, s.model.net.conv_in.weight.clone())))
    mean = 0.0
    for before, weight in steps:
        keep = 0.5 ** (16 / min(2000, before / 20)) if before else 0.0
        mean = keep * mean + (1 - keep) * weight
    torch.testing.assert_close(state.ema.net.conv_in.weight, mean, rtol=0, atol=1e-6)


def test_the_longest_average_is_the_one_to_sample_from():
    state = tiny.fresh(tiny.config(ema=(300, 2000, 50)))
    assert state.ema is state.emas[1].model


@pytest.mark.gpu
def test_losses_on_a_gpu_are_those_of_the_cpu():
    config = tiny.config()
    model = tiny.fresh(config).model.eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    x0, t = tiny.images(30).x, torch.arange(30)
    noise = torch.randn(x0.shape, generator=generator)
    on_cpu = model(x0, t, noise)["loss"]
    on_gpu = model.to("cuda")(x0.cuda(), t.cuda(), noise.cuda())["loss"]
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_a_run_on_a_gpu_learns_and_leaves_the_global_random_states_alone():
    config = tiny.config(images=6400, tick=640, lr=3e-3)
    state = tiny.fresh(config)
    state = begin(state.model.to("cuda"), state.times, config.training)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    metrics = train(state, config).metrics
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(torch.cuda.get_rng_state(), before[1])
    assert metrics[-1]["loss"] < 0.75 * metrics[0]["loss"]


# ---- decay and clipping ---------------------------------------------------------------------------------------------


def step_and_gradient(**training) -> tuple[dict, dict, dict]:
    """Weights before and after one step, and the gradient that it was given."""
    config = tiny.config(images=16, tick=16, ramp=0, lr=1e-2, **training)
    state = tiny.fresh(config)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    train(state, config)
    after = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    return before, after, {name: p.grad for name, p in state.model.named_parameters()}


def test_decay_shrinks_the_weights_apart_from_the_gradient():
    """AdamW's: (1 − lr · decay) times the weight, and then the same step."""
    before, plain, _ = step_and_gradient()
    _, decayed, _ = step_and_gradient(weight_decay=0.5)
    for name, weight in before.items():
        torch.testing.assert_close(decayed[name] - plain[name], -1e-2 * 0.5 * weight, rtol=1e-4, atol=1e-8)


def test_a_gradient_is_cut_to_its_largest_norm_and_left_alone_where_that_is_0():
    norms = {clip: nn.utils.get_total_norm(step_and_gradient(clip_grad=clip)[2].values()) for clip in (0.0, 1e-3, 1e6)}
    assert norms[1e-3].item() == pytest.approx(1e-3, rel=1e-3)
    assert torch.equal(norms[0.0], norms[1e6]) and norms[0.0] > 1e-2


def test_a_gradient_that_is_not_finite_is_found_without_clipping_too():
    config = tiny.config(clip_grad=0.0)
    state = tiny.fresh(config)
    state.model.net.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite after 0 images"):
        train(state, config)
