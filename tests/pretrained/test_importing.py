"""Published files: every name and shape has its place, and the network answers as the official code does."""

from dataclasses import replace

import pytest
import torch
from published import GOLDEN, ORDER, SMALL, contents, lists, question, weights
from torch import nn

from minidiff import load
from minidiff.networks.layers import Attention
from minidiff.pretrained import ddpm_port, diffusers_folder, edm, import_checkpoint, openai, score_sde
from minidiff.pretrained.mapping import translate
from minidiff.recipes import describe
from minidiff.training.build import build_network

PUBLISHED = {
    "ddpm_cifar10_32": "ddpm-cifar10",
    "ddpm_celeba_64": "ddim-celeba64",
    "ddpm_lsun_celebahq_256": "ddpm-celebahq256",
    "diffusers_ddpm_cifar10_32": "ddpm-cifar10",
    "improved_cifar10_uncond": "iddpm-cifar10",
    "improved_cifar10_uncond_fixedsigma": "iddpm-cifar10",
    "improved_imagenet64_cond": "iddpm-imagenet64-cond",
    "improved_imagenet64_uncond": "iddpm-imagenet64",
    "improved_lsun_bedroom256": "iddpm-lsun-bedroom256",
    "improved_upsample_64_256_cond": "iddpm-upsample-64-256",
    "guided_imagenet64_cond": "adm-imagenet64",
    "guided_imagenet128_cond": "adm-imagenet128",
    "guided_imagenet128_uncond": "adm-imagenet128",
    "guided_imagenet256_cond": "adm-imagenet256",
    "guided_imagenet256_uncond": "adm-imagenet256-uncond",
    "guided_imagenet512_cond": "adm-imagenet512",
    "guided_lsun256": "adm-lsun-cat256",
    "guided_upsampler_64_256": "adm-upsample-64-256",
    "guided_upsampler_128_512": "adm-upsample-128-512",
    **{f"guided_classifier_{side}": f"adm-classifier-{side}" for side in (64, 128, 256, 512)},
    "edm_baseline_cifar10_32_uncond_vp": "edm-baseline-cifar10-vp",
    "edm_baseline_cifar10_32_uncond_ve": "edm-baseline-cifar10-ve",
    "edm_baseline_imagenet64_cond_adm_inner": "edm-baseline-imagenet64",
    "edm_cifar10_32_cond_vp": "edm-cifar10-cond-vp",
    "edm_cifar10_32_cond_ve": "edm-cifar10-cond-ve",
    "edm_cifar10_32_uncond_vp": "edm-cifar10-uncond-vp",
    "edm_cifar10_32_uncond_ve": "edm-cifar10-uncond-ve",
    "edm_ffhq_64_uncond_vp": "edm-ffhq64-vp",
    "edm_ffhq_64_uncond_ve": "edm-afhqv2-ve",
    "edm_imagenet64_cond_adm": "edm-imagenet64",
}


def network(name: str) -> tuple[nn.Module, int]:
    """The network of a published list, on ``meta``, and the side of its images."""
    description = describe(PUBLISHED[name])
    config = description.config
    options = {"classes": 0} if name == "guided_imagenet128_uncond" else {}
    fixed = name == "improved_cifar10_uncond_fixedsigma" or name.startswith("guided_classifier")
    learned = getattr(config.process, "variance", "") == "range" or getattr(config.process, "learned_variance", False)
    with torch.device("meta"):
        answers = 2 if learned and not fixed else 1
        return build_network(replace(config.network, **options), description.shape, answers, 0), description.shape[1]


def named(name: str, net: nn.Module, side: int):
    """The naming of a list's format."""
    if name.startswith("edm"):
        return edm.naming(net, side)
    if name.startswith("diffusers"):
        return diffusers_folder.naming(net)
    return ddpm_port.NAMING if name.startswith("ddpm") else openai.naming("legacy")


def test_there_are_33_lists():
    assert len(PUBLISHED) == 33 and set(PUBLISHED) | set(SMALL) == set(lists())


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_file_has_one_place(name):
    """All of theirs are used once, all of ours are filled, shapes agree: else ``translate`` would refuse."""
    net, side = network(name)
    theirs = {key: torch.empty(shape, device="meta") for key, shape in lists()[name].items()}
    if name.startswith("edm"):  # filters have their own test
        theirs = {k.removeprefix("model."): v for k, v in theirs.items() if not k.endswith("resample_filter")}
    ours = translate(net, named(name, net, side), theirs)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert sum(v.numel() for v in ours.values()) == sum(v.numel() for v in theirs.values())
    for change in (dict(list(theirs.items())[1:]), theirs | {"extra.weight": torch.empty(3, device="meta")}):
        with pytest.raises(ValueError, match=r"is missing|extra\.weight is left over"):
            translate(net, named(name, net, side), change)


def imported(name, tmp_path, attention=None):
    """A small published file as a run."""
    file = tmp_path / f"{name}.pt"
    torch.save(contents(name), file)
    import_checkpoint(file, SMALL[name], tmp_path / "run", attention)
    model, description = load(tmp_path / "run")
    assert description == SMALL[name]
    return model.net


def gap(answer: torch.Tensor, golden: dict) -> float:
    """Largest difference from the stored figures, in their standard deviations."""
    flat = answer.double().flatten()
    found = [flat.mean(), flat.std(), *flat[torch.linspace(0, len(flat) - 1, 8).long()]]
    expected = torch.tensor([golden["mean"], golden["std"], *golden["values"]])
    return ((torch.stack(found) - expected).abs().max() / golden["std"]).item()


@pytest.mark.parametrize("name", SMALL)
def test_the_network_answers_as_the_official_code(name, tmp_path):
    net = imported(name, tmp_path, ORDER.get(name))
    given, cond = question(name)
    assert gap(net(*given, **cond), GOLDEN[name]) < 1e-5


@pytest.mark.parametrize("name", ORDER)
def test_the_other_order_of_attention_is_another_network(name, tmp_path):
    net = imported(name, tmp_path, {"legacy": "new", "new": "legacy"}[ORDER[name]])
    given, cond = question(name)
    assert gap(net(*given, **cond), GOLDEN[name]) > 0.05


def test_rows_of_legacy_attention_by_their_indices():
    """Row head·3c + j·c + k there is row j·(heads·c) + head·c + k here."""
    net = SMALL["guided-legacy"].build().net
    theirs = weights("guided-legacy")
    ours = translate(net, openai.naming("legacy"), theirs)
    heads, c = 4, 16
    qkv, moved = theirs["middle_block.1.qkv.weight"].squeeze(2), ours["middle.1.qkv.weight"].flatten(1)
    for head in range(heads):
        for j in range(3):
            for k in range(c):
                assert torch.equal(moved[j * heads * c + head * c + k], qkv[head * 3 * c + j * c + k])


def test_only_one_published_file_has_the_new_order():
    assert len(openai.PUBLISHED) == 23
    assert [name for name, order in openai.PUBLISHED.items() if order == "new"] == ["64x64_diffusion.pt"]


@pytest.mark.parametrize("file, same_as", [("64x64_diffusion.pt", "new"), ("256x256_diffusion.pt", "legacy")])
def test_a_published_name_tells_the_order(file, same_as, tmp_path):
    torch.save(contents("guided-new"), tmp_path / file)
    import_checkpoint(tmp_path / file, SMALL["guided-new"], tmp_path / "named")
    import_checkpoint(tmp_path / file, SMALL["guided-new"], tmp_path / "told", same_as)
    by_name, told = (load(tmp_path / run)[0].state_dict() for run in ("named", "told"))
    assert all(torch.equal(by_name[key], told[key]) for key in told)


def test_the_order_must_be_told_where_no_name_does(tmp_path):
    with pytest.raises(ValueError, match="--attention legacy"):
        imported("guided-legacy", tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_training_state_of_the_port_gives_its_average(tmp_path):
    state = weights("port")
    raw = {f"module.{key}": torch.zeros_like(value) for key, value in state.items()}
    torch.save([raw, {"state": {}}, 3, 77, state], tmp_path / "ckpt.pth")
    import_checkpoint(tmp_path / "ckpt.pth", SMALL["port"], tmp_path / "run")
    model, _ = load(tmp_path / "run")
    assert gap(model.net(*question("port")[0]), GOLDEN["port"]) < 1e-5


def test_files_in_the_old_container_of_torch(tmp_path):
    torch.save(weights("port"), tmp_path / "model-790000.ckpt", _use_new_zipfile_serialization=False)
    import_checkpoint(tmp_path / "model-790000.ckpt", SMALL["port"], tmp_path / "run")
    assert gap(load(tmp_path / "run")[0].net(*question("port")[0]), GOLDEN["port"]) < 1e-5


def test_half_precision_becomes_single(tmp_path):
    torch.save({key: value.half() for key, value in weights("port").items()}, tmp_path / "half.ckpt")
    import_checkpoint(tmp_path / "half.ckpt", SMALL["port"], tmp_path / "run")
    model, _ = load(tmp_path / "run")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert gap(model.net(*question("port")[0]), GOLDEN["port"]) < 1e-2


def test_an_average_that_does_not_fit_its_model_is_refused(tmp_path):
    saved = contents("score-sde-vp")
    saved["ema"]["shadow_params"].pop()
    torch.save(saved, tmp_path / "checkpoint_8.pth")
    with pytest.raises(ValueError, match="shadow_params, does not go with"):
        import_checkpoint(tmp_path / "checkpoint_8.pth", SMALL["score-sde-vp"], tmp_path / "run")


def test_the_walk_of_score_sde_counts_every_module():
    net = SMALL["score-sde-ve"].build().net
    numbers = {key.split(".")[1] for key in score_sde.unwrap(contents("score-sde-ve"))}
    assert numbers == {str(k) for k in range(len(numbers))}
    assert sum(isinstance(module, Attention) for module in net.modules()) == 3
