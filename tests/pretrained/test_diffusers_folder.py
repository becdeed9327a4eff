"""diffusers' folders, in and out: outputs and gradients of an independent implementation with the same weights."""

import inspect
import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from published import SMALL, describe, wave
from safetensors.torch import load_file, save_file

from minidiff import Description, EDMConfig, GaussianConfig, SongUNetConfig, UNetConfig, load
from minidiff.pretrained import diffusers_folder, export, import_checkpoint

DDPM = {"channels": 128, "mult": (1, 1), "blocks": 1, "attention": (1,), "dropout": 0.0}
OPENAI = {**DDPM, "inject": "scale", "convention": "openai"}
KINDS = {
    "ddpm": describe(UNetConfig(**DDPM), GaussianConfig(T=30)),
    "ddpm, three levels": describe(
        UNetConfig(**DDPM | {"mult": (1, 2, 2), "blocks": 2, "attention": (0, 2)}), GaussianConfig(T=30)
    ),
    "openai, heads": describe(UNetConfig(**OPENAI, heads=4)),
    "openai, by class": describe(UNetConfig(**OPENAI, head_channels=32, classes=5), labels=True),
    "openai, blocks": describe(UNetConfig(**OPENAI | {"mult": (1, 2)}, head_channels=64, resample="block")),
}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def model_of(description: Description):
    """A model whose every weight is drawn at random, those that start at zero too."""
    model = description.build()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 8
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
    return model.eval()


def asked(description: Description):
    x, t = wave("x", 2, 3, 8, 8).float().requires_grad_(), torch.tensor([3.0, 22.0])
    return x, t, torch.tensor([1, 4]) if description.config.data.labels else None


def assert_same(ours, theirs, description: Description) -> None:
    """Outputs, and gradients with respect to the input and to weights at both ends, to 1e-5 of their size."""
    found = []
    for net, first, last in (
        (ours, "conv_in.weight", "norm_out.weight"),
        (theirs, "conv_in.weight", "conv_norm_out.weight"),
    ):
        x, t, labels = asked(description)
        net.requires_grad_(True)
        if net is ours:
            y = net(x, t, **({} if labels is None else {"labels": labels}))
        else:
            y = net(x, t, class_labels=labels).sample
        weights = dict(net.named_parameters())
        scalar = (y * wave("direction", *y.shape).float()).sum()
        found.append([y, *torch.autograd.grad(scalar, [x, weights[first], weights[last]])])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.fixture(params=KINDS)
def exported(request, tmp_path):
    description = KINDS[request.param]
    model = model_of(description)
    export(model, description, tmp_path / "out")
    return description, model, tmp_path / "out"


def test_diffusers_loads_what_is_exported_and_answers_alike(exported):
    description, model, folder = exported
    theirs, loading = UNet2DModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    assert_same(model.net, theirs.eval(), description)


def test_what_is_exported_is_imported_as_it_was(exported, tmp_path):
    description, model, folder = exported
    import_checkpoint(folder, description, tmp_path / "run")
    back, read = load(tmp_path / "run")
    assert read == description
    assert all(torch.equal(value, back.net.state_dict()[key]) for key, value in model.net.state_dict().items())


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("old", [False, True], ids=["new names", "old names"])
def test_a_model_that_diffusers_saved(safe, old, tmp_path):
    """Under both names of attention, in both kinds of file."""
    description = KINDS["ddpm"]
    torch.manual_seed(5)
    theirs = UNet2DModel(
        sample_size=8,
        block_out_channels=(128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        freq_shift=1,
        flip_sin_to_cos=False,
        norm_eps=1e-6,
        attention_head_dim=None,
    ).eval()
    theirs.save_pretrained(tmp_path / "hub", safe_serialization=safe)
    (file,) = (tmp_path / "hub").glob("diffusion_pytorch_model.*")
    if old:
        state = load_file(file) if safe else torch.load(file)
        for new, name in OLD.items():
            state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
        assert "mid_block.attentions.0.proj_attn.bias" in state
        save_file(state, file) if safe else torch.save(state, file)
    import_checkpoint(tmp_path / "hub", description, tmp_path / "run")
    assert_same(load(tmp_path / "run")[0].net, theirs, description)


def test_a_pipeline_holds_its_network_in_a_folder_of_its_own(tmp_path):
    description = KINDS["ddpm"]
    model = model_of(description)
    export(model, description, tmp_path / "out")
    DDPMPipeline.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "pipeline")
    import_checkpoint(tmp_path / "pipeline", description, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")[0].net.conv_out.weight, model.net.conv_out.weight)


@pytest.mark.parametrize("variance", ["large", "small", "range"])
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_the_scheduler_takes_the_same_step(variance, predict, tmp_path):
    loss = "hybrid" if variance == "range" else "simple"
    process = GaussianConfig(T=30, variance=variance, predict=predict, loss=loss)
    description = describe(UNetConfig(**DDPM), process)
    model = model_of(description)
    export(model, description, tmp_path / "out")
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out")
    assert scheduler.config.num_train_timesteps == 30
    x, answer = wave("x", 2, 3, 8, 8), wave("y", 2, 6 if variance == "range" else 3, 8, 8)
    for t in (1, 15, 29):
        step = model.process.reverse(lambda *_: answer, x, torch.tensor([t, t]))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t), dtype=x.dtype)
        theirs = scheduler.step(answer, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(step.mean + step.stddev * noise, theirs, rtol=1e-5, atol=1e-5)


def test_the_defaults_are_those_of_diffusers():
    theirs = inspect.signature(UNet2DModel.__init__).parameters
    for key, value in diffusers_folder.DEFAULTS.items():
        default = theirs[key].default
        assert (list(default) if isinstance(default, tuple) else default) == value


@pytest.mark.parametrize(
    "key, value",
    [
        ("flip_sin_to_cos", True),
        ("freq_shift", 0),
        ("norm_eps", 1e-5),
        ("downsample_padding", 1),
        ("attention_head_dim", 8),
        ("norm_num_groups", 16),
        ("resnet_time_scale_shift", "scale_shift"),
        ("mid_block_scale_factor", 2),
        ("_class_name", "UNet2DConditionModel"),
        ("block_out_channels", None),
    ],
)
def test_what_no_shape_tells_is_compared(key, value, tmp_path):
    """A key that is left out means diffusers' default, which is not this network's."""
    description = KINDS["ddpm"]
    export(model_of(description), description, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text()) | {key: value}
    if value is None:
        del config[key]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"its {key} is|UNet2DConditionModel"):
        import_checkpoint(tmp_path / "out", description, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spoil", ["config.json", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_folder_is_refused(spoil, how, tmp_path):
    description = KINDS["ddpm"]
    export(model_of(description), description, tmp_path / "out")
    path = tmp_path / "out" / spoil
    path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a whole folder of diffusers"):
        import_checkpoint(tmp_path / "out", description, tmp_path / "run")


T1000 = GaussianConfig()
REFUSED = {
    "its first level": describe(UNetConfig(**DDPM | {"mult": (2, 2)}), T1000),
    "network.rescale": describe(UNetConfig(**DDPM, rescale=True), T1000),
    "network.low_res": describe(UNetConfig(**DDPM, low_res=True), T1000, low_res=2),
    "number of groups": describe(UNetConfig(**DDPM | {"channels": 32}), T1000),
    "network.heads=2": describe(UNetConfig(**DDPM | {"mult": (1, 2), "attention": (0,)}, heads=2), T1000),
    "SongUNet under EDM": describe(SongUNetConfig(channels=32, mult=(1, 1), blocks=1), EDMConfig()),
    "Classifier under Gaussian": SMALL["guided-classifier"],
    "process.predict=mean": describe(UNetConfig(**DDPM), GaussianConfig(predict="mean")),
    "process.variance=learned": describe(UNetConfig(**DDPM), GaussianConfig(variance="learned", loss="bound")),
    "process.rescale_times": describe(UNetConfig(**DDPM), GaussianConfig(T=50, rescale_times=True)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_diffusers_cannot_be_is_not_exported(why, tmp_path):
    with pytest.raises(ValueError, match=why):
        export(REFUSED[why].build(), REFUSED[why], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_nothing_and_is_whole(tmp_path, monkeypatch):
    description = KINDS["ddpm"]
    model = description.build()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        export(model, description, tmp_path / "mine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diffusers_folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        export(model, description, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
