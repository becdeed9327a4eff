"""How a run is run: precision and its reasons, portions, layouts, compilation and kernels; what they do not change."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from minidiff import GaussianDiffusion, UniformTimes, linear_betas, resume, train
from minidiff.training import Execution, Model, begin
from minidiff.training.execution import moved
from minidiff.training.loop import train_step

CPU = torch.device("cpu")


def fresh(execution: Execution, dropout: float = 0.3, **training):
    config = tiny.config(**training)
    config = replace(config, network=replace(config.network, dropout=dropout))
    state = tiny.fresh(config)
    return begin(state.model, state.times, config.training, execution), config


def run(execution: Execution, dropout: float = 0.3, **training):
    state, config = fresh(execution, dropout, **training)
    return train(state, tiny.images(), config.training)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, dtype", [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_what_is_asked_for_is_taken(precision, dtype):
    assert Execution(precision=precision).dtype(CPU) == (getattr(torch, dtype), "as asked for")


@pytest.mark.parametrize("has, dtype, why", [(True, "bfloat16", "Card 9 has it"), (False, "float32", "Card 9 has no")])
def test_by_itself_it_is_bf16_on_a_gpu_that_has_it_and_float32_elsewhere(has, dtype, why, monkeypatch):
    assert Execution().dtype(CPU)[0] == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card 9")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    found, reason = Execution().dtype(torch.device("cuda"))
    assert found == getattr(torch, dtype) and why in reason


def test_under_bf16_products_are_rounded_and_weights_losses_and_averages_are_not():
    seen = set()
    state, config = fresh(Execution(precision="bf16"), images=32)
    state.model.net.conv_in.register_forward_hook(lambda *args: seen.add(args[-1].dtype))
    loss = train_step(state, tiny.images(), config.training, state.model)
    assert seen == {torch.bfloat16} and loss.dtype == torch.float32
    assert {value.dtype for value in tiny.weights(state).values()} == {torch.float32}
    exact = run(Execution(precision="fp32"), images=32)
    rough = run(Execution(precision="bf16"), images=32)
    assert rough.metrics[0]["loss"] == pytest.approx(exact.metrics[0]["loss"], rel=0.02)
    assert rough.metrics[0]["loss"] != exact.metrics[0]["loss"]
    assert not rough.scaler.is_enabled()


class Steep(nn.Module):
    """An identity whose gradient by w is ``slope`` times too large, or, for None, not a number: √(w²) at w = 0."""

    def __init__(self, slope: float | None):
        super().__init__()
        self.w, self.slope = nn.Parameter(torch.zeros(4)), slope

    def forward(self, x, t):
        return x + ((self.w**2).sqrt() if self.slope is None else self.w * self.slope).sum()


def steep(slope: float | None, scale: float):
    config = tiny.config(images=160, tick=160, ramp=0)
    model = Model(Steep(slope), GaussianDiffusion(linear_betas(30)))
    state = begin(model, UniformTimes(30), config.training, Execution(precision="fp16"))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    return state, config


def test_under_fp16_an_overflow_is_left_out_and_no_error():
    """float32 ends at 3.4e38: at first the scaled gradient exceeds it, after some halving of the scale it fits."""
    state, config = steep(1e11, scale=2.0**100)
    train_step(state, tiny.images(), config.training, state.model.train())
    assert state.scaler.get_scale() == 2.0**99 and (state.model.net.w == 0).all() and state.images == 16
    train(state, tiny.images(), config.training)
    assert 2.0**90 < state.scaler.get_scale() < 2.0**99 and (state.model.net.w != 0).all() and state.images == 160
    assert 0 < state.metrics[-1]["gradient_norm"] < float("inf")


def test_under_fp16_a_gradient_that_no_scale_helps_is_an_error():
    state, config = steep(None, scale=64.0)
    with pytest.raises(FloatingPointError, match="not finite after 160 images: no update was made"):
        train(state, tiny.images(), config.training)
    assert (state.model.net.w == 0).all()


def test_under_fp16_a_loss_that_is_not_finite_is_an_error():
    class Bad:
        def __len__(self):
            return 40

        def batch(self, index, generator):
            x, cond = tiny.images().batch(index, generator)
            return x * float("nan"), cond

    state, config = fresh(Execution(precision="fp16"))
    before = tiny.weights(state)
    with pytest.raises(FloatingPointError, match="not finite after 32 images"):
        train(state, Bad(), config.training)
    after = tiny.weights(state)
    assert same({k: v for k, v in before.items() if "model." in k}, {k: v for k, v in after.items() if "model." in k})


def test_under_fp16_a_resumed_run_is_bit_equal_and_the_scale_goes_with_it(tmp_path):
    def again(images: int):
        state, config = fresh(Execution(precision="fp16"), images=images, checkpoint=32)
        if resume(state, tmp_path):
            assert state.scaler.get_scale() == 64
        else:
            state.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1)
        return train(state, tiny.images(), config.training, tmp_path, tiny.describe(config))

    again(32)
    parts = again(96)
    state, config = fresh(Execution(precision="fp16"), images=96)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1)
    whole = train(state, tiny.images(), config.training)
    assert same(tiny.weights(parts), tiny.weights(whole))
    assert parts.scaler.state_dict() == whole.scaler.state_dict()


def test_a_run_may_go_on_in_another_precision(tmp_path):
    for precision, images in (("fp16", 64), ("fp32", 128), ("fp16", 160)):
        state, config = fresh(Execution(precision=precision), images=images)
        resume(state, tmp_path)
        train(state, tiny.images(), config.training, tmp_path, tiny.describe(config))
    assert [line["images"] for line in state.metrics] == [32, 64, 96, 128, 160]


# ---- portions -------------------------------------------------------------------------------------------------------


def test_portions_change_neither_data_nor_times_nor_noise():
    """Without dropout all that is left is the order of sums; and a run in portions is as repeatable as another."""
    whole, parts, again = (run(Execution(micro=micro), 0.0, images=32) for micro in (0, 4, 4))
    a, b = tiny.weights(whole), tiny.weights(parts)
    assert all((a[name] - b[name]).abs().max() < 1e-5 for name in a)
    assert parts.metrics[0]["loss"] == pytest.approx(whole.metrics[0]["loss"], rel=1e-6)
    assert same(b, tiny.weights(again))


def test_in_portions_every_example_has_dropout_of_its_own():
    a, b = (tiny.weights(run(Execution(micro=micro), images=32)) for micro in (4, 4))
    assert same(a, b)
    alike = torch.ones(4, *tiny.SHAPE)
    state, config = fresh(Execution(micro=2))
    state.times.draw = lambda n, _: (torch.full((n,), 7), torch.ones(n))
    state.model.process.draw_noise = lambda x0, _: torch.ones_like(x0)
    for parameter in state.model.parameters():  # branches begin as nothing, dropout and all
        parameter.data.fill_(0.1)
    told = []
    state.times.update = lambda t, losses: told.append(losses)

    class Alike:
        def __len__(self):
            return 40

        def batch(self, index, generator):
            return alike[:1].expand(len(index), *tiny.SHAPE), {}

    train_step(state, Alike(), config.training, state.model.train())
    (losses,) = told
    assert losses.shape == (16,) and losses.unique().numel() > 8


def test_one_process_resumes_in_other_portions_what_another_began(tmp_path):
    for micro, images in ((0, 64), (8, 128), (4, 160)):
        state, config = fresh(Execution(micro=micro), 0.0, images=images)
        resume(state, tmp_path)
        train(state, tiny.images(), config.training, tmp_path, tiny.describe(config))
    whole = tiny.weights(run(Execution(), 0.0))
    assert all((value - whole[name]).abs().max() < 1e-4 for name, value in tiny.weights(state).items())


# ---- layout, compilation, kernels -----------------------------------------------------------------------------------


def test_moments_take_the_layout_of_the_machine_that_resumes(tmp_path):
    """Written with channels last, as on a GPU; read by a model without."""
    state, config = fresh(Execution(), 0.0, images=64)
    state.model.to(memory_format=torch.channels_last)
    train(state, tiny.images(), config.training, tmp_path, tiny.describe(config))
    plain, config = fresh(Execution(), 0.0, images=160)
    assert resume(plain, tmp_path)
    for parameter, kept in plain.optimizer.state.items():
        assert kept["exp_avg"].stride() == parameter.stride() == kept["exp_avg_sq"].stride()
    train(plain, tiny.images(), config.training)
    whole = tiny.weights(run(Execution(), 0.0))
    assert all((value - whole[name]).abs().max() < 1e-4 for name, value in tiny.weights(plain).items())


class Small(nn.Module):
    """A network that no checks of shapes are woven into, which would tear the graph apart."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh() * t[:, None, None, None].cos()


def test_compiled_it_trains_alike_and_is_saved_alike(tmp_path, monkeypatch):
    compile_with, graphs = nn.Module.compile, []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    def small(compiled: bool):
        config = tiny.config()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Model(Small(), GaussianDiffusion(linear_betas(30)))
        return begin(model, UniformTimes(30), config.training, Execution(compile=compiled)), config

    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend=backend))
    state, config = small(True)
    train(state, tiny.images(), config.training, tmp_path, tiny.describe(config))
    assert len(graphs) == 1  # the whole network, once
    plain, config = small(False)
    train(plain, tiny.images(), config.training)
    assert len(graphs) == 1 and same(tiny.weights(state), tiny.weights(plain))
    again, config = small(False)
    assert resume(again, tmp_path) and same(tiny.weights(again), tiny.weights(plain))


def test_kernels_are_deterministic_inside_where_asked_and_as_before_outside():
    mode = lambda: (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    before = mode()
    with Execution().kernels():
        assert mode() == (False, True)
    with Execution(deterministic=True).kernels():
        assert mode() == (True, False)
    assert mode() == before
    state, config = fresh(Execution(deterministic=True), images=32)
    seen = []
    train(state, tiny.images(), config.training, on_step=lambda _: seen.append(mode()))
    assert set(seen) == {(True, False)} and mode() == before
    assert same(tiny.weights(state), tiny.weights(run(Execution(), images=32)))  # a CPU's always are


@pytest.mark.parametrize("name", ["micro", "keep", "milestone"])
def test_numbers_below_zero_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        Execution(**{name: -1})


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_on_a_gpu_no_step_waits_for_it(precision):
    config = tiny.config(times="importance")
    state = tiny.fresh(config)
    state = begin(state.model.cuda(), state.times, config.training, Execution(precision=precision, micro=8))
    train_step(state, tiny.images(), config.training, state.model.train())  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(state, tiny.images(), config.training, state.model)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_on_a_gpu_deterministic_runs_are_bit_equal_in_two_parts_too(precision, tmp_path):
    def part(images: int, folder):
        config = tiny.config(images=images)
        state = tiny.fresh(config)
        execution = Execution(precision=precision, deterministic=True)
        state = begin(state.model.cuda(), state.times, config.training, execution)
        resume(state, folder)
        return tiny.weights(train(state, tiny.images(), config.training, folder, tiny.describe(config)))

    part(64, tmp_path / "parts")
    assert same(part(160, tmp_path / "parts"), part(160, tmp_path / "whole"))


@pytest.mark.gpu
def test_on_a_gpu_what_is_not_finite_is_never_applied():
    config = tiny.config(tick=160)
    state = tiny.fresh(config)
    state = begin(state.model.cuda(), state.times, config.training)
    state.model.net.conv_out.weight.data.fill_(float("nan"))
    before = state.model.net.conv_in.weight.clone()
    with pytest.raises(FloatingPointError, match="not finite after 160 images"):
        train(state, tiny.images(), config.training)
    assert torch.equal(state.model.net.conv_in.weight, before)


@pytest.mark.gpu
def test_on_a_gpu_images_and_weights_have_their_channels_last():
    state, _ = fresh(Execution())
    state = begin(state.model.cuda(), state.times, tiny.config().training)
    assert state.model.net.down[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    x = moved(torch.zeros(2, 3, 4, 4), torch.device("cuda"))
    assert x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)
    assert moved(torch.zeros(5), torch.device("cuda")).is_cuda


@pytest.mark.gpu
def test_on_a_gpu_compiled_training_is_the_eager_one():
    losses = []
    for compiled in (False, True):
        config = tiny.config(images=64)
        state = tiny.fresh(config)
        execution = Execution(precision="fp32", compile=compiled)
        state = begin(state.model.cuda(), state.times, config.training, execution)
        losses.append([line["loss"] for line in train(state, tiny.images(), config.training).metrics])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # dropout draws its masks otherwise
