"""Recipes hold the papers' numbers, and each of them can be built."""

import inspect
import json

import pytest
import torch

from minidiff import RECIPES, build, load_data, recipe
from minidiff.diffusion import SCHEDULES, EDMPath, linear_betas
from minidiff.networks import SongUNet
from minidiff.recipes import PAPERS, SETS, describe
from minidiff.training import ClassifierConfig, EDMConfig, GaussianConfig, check, time_sampler
from minidiff.training.build import build_column
from minidiff.training.config import from_dict, to_dict
from minidiff.training.loop import learning_rate

PARAMETERS = {  # of the published files, and of what ADM's code makes of the flags of its ablations
    "ddpm-cifar10": 35_746_307,
    "ddpm-celebahq256": 113_673_219,
    "ddpm-lsun-church256": 113_673_219,
    "ddpm-lsun-bedroom256": 113_673_219,
    "ddpm-lsun-cat256": 113_673_219,
    "ddim-celeba64": 78_700_803,
    "iddpm-cifar10": 52_546_438,
    "iddpm-cifar10-vlb": 52_546_438,
    "iddpm-imagenet64": 121_063_942,
    "iddpm-imagenet64-vlb": 121_063_942,
    "iddpm-imagenet64-cond": 273_049_350,
    "iddpm-upsample-64-256": 279_792_390,
    "iddpm-lsun-bedroom256": 113_676_678,
    "iddpm-lsun-bedroom256-lr2e-5": 113_676_678,
    "adm-imagenet64": 295_904_454,
    "adm-imagenet128": 421_529_606,
    "adm-imagenet256": 553_838_086,
    "adm-imagenet256-uncond": 552_814_086,
    "adm-imagenet512": 558_997_638,
    "adm-lsun-bedroom256": 552_814_086,
    "adm-lsun-cat256": 552_814_086,
    "adm-lsun-horse256": 552_814_086,
    "adm-lsun-horse256-nodropout": 552_814_086,
    "adm-upsample-64-256": 311_795_910,
    "adm-upsample-128-512": 308_835_270,
    "adm-classifier-64": 65_438_568,
    "adm-classifier-128": 42_568_040,
    "adm-classifier-256": 54_096_360,
    "adm-classifier-512": 54_448_360,
    "adm-ablation-base": 140_830_246,
    "adm-ablation-depth": 146_187_142,
    "adm-ablation-heads": 140_830_246,
    "adm-ablation-rescale": 140_830_246,
    "adm-ablation-all": 164_967_686,
    "adm-ablation-adagn": 105_710_598,
    "adm-ablation-add": 100_457_478,
    "edm-cifar10-uncond-vp": 55_733_891,
    "edm-cifar10-uncond-ve": 56_397_827,
    "edm-cifar10-cond-vp": 55_735_299,
    "edm-cifar10-cond-ve": 56_400_643,
    "edm-ffhq64-vp": 61_805_571,
    "edm-ffhq64-ve": 62_761_091,
    "edm-afhqv2-vp": 61_805_571,
    "edm-afhqv2-ve": 62_761_091,
    "edm-imagenet64": 295_899_267,
    "edm-baseline-cifar10-vp": 61_804_419,
    "edm-baseline-cifar10-ve": 62_758_787,
    "edm-baseline-imagenet64": 295_904_454,
}
DIGITS = {"digits", "digits-classes", "digits-classifier", "digits-edm", "mnist8", "mnist16", "mnist16-upsample"}
OF_OURS = DIGITS | {"swissroll-sd", "heartbeat-sd", "dead-leaves-sd"}
NOT_PUBLISHED = {"adm-ablation-attention", "adm-ablation-biggan"}

# per recipe: batch, learning rate, images / batch, dropout, mirrored, how many classes
TRAINING = {
    "ddpm-cifar10": (128, 2e-4, 800_000, 0.1, True, 0),
    "ddpm-celebahq256": (64, 2e-5, 500_000, 0.0, True, 0),
    "ddpm-lsun-church256": (64, 2e-5, 1_200_000, 0.0, True, 0),
    "ddpm-lsun-bedroom256": (64, 2e-5, 2_400_000, 0.0, False, 0),
    "ddpm-lsun-cat256": (64, 2e-5, 1_800_000, 0.0, True, 0),
    "ddim-celeba64": (128, 2e-4, 800_000, 0.1, True, 0),
    "iddpm-cifar10": (128, 1e-4, 500_000, 0.3, False, 0),
    "iddpm-cifar10-vlb": (128, 1e-4, 500_000, 0.3, False, 0),
    "iddpm-imagenet64": (128, 1e-4, 1_500_000, 0.0, False, 0),
    "iddpm-imagenet64-vlb": (128, 1e-4, 1_500_000, 0.0, False, 0),
    "iddpm-imagenet64-cond": (2048, 3e-4, 250_000, 0.0, False, 1000),
    "iddpm-upsample-64-256": (256, 3e-4, 500_000, 0.0, False, 1000),
    "iddpm-lsun-bedroom256": (128, 1e-4, 1_200_000, 0.0, False, 0),
    "iddpm-lsun-bedroom256-lr2e-5": (64, 2e-5, 2_400_000, 0.0, False, 0),
    "adm-imagenet64": (2048, 3e-4, 540_000, 0.1, True, 1000),
    "adm-imagenet128": (256, 1e-4, 4_360_000, 0.0, True, 1000),
    "adm-imagenet256": (256, 1e-4, 1_980_000, 0.0, True, 1000),
    "adm-imagenet256-uncond": (256, 1e-4, 2_000_000, 0.0, True, 0),
    "adm-imagenet512": (256, 1e-4, 1_940_000, 0.0, True, 1000),
    "adm-lsun-bedroom256": (256, 1e-4, 500_000, 0.1, True, 0),
    "adm-lsun-horse256": (256, 1e-4, 250_000, 0.1, True, 0),
    "adm-lsun-horse256-nodropout": (256, 1e-4, 250_000, 0.0, True, 0),
    "adm-lsun-cat256": (256, 1e-4, 200_000, 0.1, True, 0),
    "adm-upsample-64-256": (256, 1e-4, 500_000, 0.0, True, 1000),
    "adm-upsample-128-512": (256, 1e-4, 1_050_000, 0.0, True, 1000),
    "adm-classifier-64": (1024, 6e-4, 300_000, 0.0, True, 1000),
    "adm-classifier-128": (256, 3e-4, 300_000, 0.0, True, 1000),
    "adm-classifier-256": (256, 3e-4, 500_000, 0.0, True, 1000),
    "adm-classifier-512": (256, 3e-4, 500_000, 0.0, True, 1000),
    **{
        f"adm-ablation-{change}": (256, 1e-4, 700_000, 0.0, True, 1000)
        for change in "base depth heads attention biggan rescale all adagn add".split()
    },
    **{f"edm-cifar10-uncond-{net}": (512, 1e-3, 200e6 / 512, 0.13, False, 0) for net in ("vp", "ve")},
    **{f"edm-cifar10-cond-{net}": (512, 1e-3, 200e6 / 512, 0.13, False, 10) for net in ("vp", "ve")},
    **{f"edm-ffhq64-{net}": (256, 2e-4, 200e6 / 256, 0.05, False, 0) for net in ("vp", "ve")},
    **{f"edm-afhqv2-{net}": (256, 2e-4, 200e6 / 256, 0.25, False, 0) for net in ("vp", "ve")},
    "edm-imagenet64": (4096, 1e-4, 2500e6 / 4096, 0.1, False, 1000),
    **{f"edm-baseline-cifar10-{net}": (128, 2e-4, 200e6 / 128, 0.1, True, 0) for net in ("vp", "ve")},
    "edm-baseline-imagenet64": (2048, 3e-4, 540_000, 0.1, True, 1000),
}


def named(part: str) -> list[str]:
    """The recipes whose name begins so; never none."""
    found = [name for name in RECIPES if name.startswith(part)]
    assert found
    return found


def built(name: str) -> torch.nn.Module:
    """A recipe's model, its size known and its weights nowhere."""
    with torch.device("meta"):
        return describe(name).build()


def test_the_tables_here_name_every_recipe():
    assert set(RECIPES) == set(PARAMETERS) | OF_OURS | NOT_PUBLISHED == set(TRAINING) | OF_OURS


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained_and_survives_json(name):
    config = recipe(name)
    check(config)
    assert config.recipe == name
    assert config.training.checkpoint % config.training.tick == 0
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    if not isinstance(config.process, EDMConfig):
        options = config.process.schedule_options
        assert len(SCHEDULES[config.process.schedule](config.process.T, **options)) == config.process.T
    t, weight = time_sampler(config).draw(3, torch.Generator().manual_seed(0))
    assert t.shape == weight.shape == (3,)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_to_the_unit(name):
    assert sum(p.numel() for p in built(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TRAINING)
def test_training_is_the_papers(name):
    batch, lr, steps, dropout, flip, classes = TRAINING[name]
    config = recipe(name)
    training = config.training
    assert (training.batch, training.lr) == (batch, lr)
    assert training.images == pytest.approx(batch * steps, rel=1e-9)
    assert (config.network.dropout, config.data.flip, config.network.classes) == (dropout, flip, classes)
    assert config.data.labels == (classes > 0)


@pytest.mark.parametrize("name", [n for part in ("ddpm-", "ddim-", "iddpm-", "adm-") for n in named(part)])
def test_averages_keep_0_9999_a_step_but_for_the_classifiers_which_have_none(name):
    training = recipe(name).training
    (half_life,) = training.ema
    if "classifier" in name:
        assert half_life == 0
    else:
        assert 0.5 ** (training.batch / half_life) == pytest.approx(0.9999, abs=1e-7)


@pytest.mark.parametrize("name", named("iddpm-") + named("adm-"))
def test_openai_had_neither_ramp_nor_clipping_and_learned_between_the_variances(name):
    config = recipe(name)
    assert (config.training.ramp, config.training.clip_grad) == (0, 0.0)
    if "classifier" not in name:
        assert config.process.variance == "range"
        assert built(name).net.conv_out.out_channels == 6


@pytest.mark.parametrize("name", named("ddpm-") + named("ddim-"))
def test_ddpm_has_the_process_of_its_appendix(name):
    config = recipe(name)
    process, training = config.process, config.training
    assert (process.predict, process.variance, process.loss) == ("eps", "large", "simple")
    assert torch.equal(SCHEDULES[process.schedule](process.T, **process.schedule_options), linear_betas(1000))
    assert training.clip_grad == 1.0
    assert training.ramp == (0 if name.startswith("ddim") else training.batch * 5_000)


@pytest.mark.parametrize(
    "name, schedule, T, loss, scale_of_a_term, rescaled",
    [  # of L_t in L_hybrid: λ T is T/1000 with the flag that rescales, and 1 without
        ("iddpm-cifar10", "cosine", 4000, "hybrid", 4.0, True),
        ("iddpm-cifar10-vlb", "cosine", 4000, "bound", None, True),
        ("iddpm-imagenet64", "cosine", 4000, "hybrid", 4.0, True),
        ("iddpm-imagenet64-vlb", "cosine", 4000, "bound", None, True),
        ("iddpm-imagenet64-cond", "cosine", 4000, "hybrid", 1.0, False),
        ("iddpm-upsample-64-256", "linear", 4000, "hybrid", 1.0, False),
        ("iddpm-lsun-bedroom256", "linear", 1000, "hybrid", 1.0, False),
        ("iddpm-lsun-bedroom256-lr2e-5", "linear", 1000, "hybrid", 1.0, False),
        ("adm-imagenet64", "cosine", 1000, "hybrid", 1.0, False),
        *(
            (name, "linear", 1000, "hybrid", 1.0, False)
            for name in named("adm-")
            if name != "adm-imagenet64" and "classifier" not in name
        ),
    ],
)
def test_learned_variances_and_their_bound(name, schedule, T, loss, scale_of_a_term, rescaled):
    config = recipe(name)
    process = config.process
    assert (process.schedule, process.T, process.loss, process.predict) == (schedule, T, loss, "eps")
    if loss == "hybrid":
        assert process.lambda_vlb * T == pytest.approx(scale_of_a_term)
    assert process.rescale_times == rescaled
    assert config.training.times == ("importance" if loss == "bound" else "uniform")
    fed = built(name).process.fed
    assert fed[-1].item() == pytest.approx(1000 * (T - 1) / T if rescaled else T - 1)


@pytest.mark.parametrize(
    "name, resolutions",
    [
        ("ddpm-cifar10", {16}),
        ("ddpm-celebahq256", {16}),
        ("ddim-celeba64", {16}),
        ("iddpm-cifar10", {16, 8}),
        ("iddpm-imagenet64-cond", {16, 8}),
        ("iddpm-upsample-64-256", {16, 8}),
        ("iddpm-lsun-bedroom256", {16}),
        ("adm-imagenet64", {32, 16, 8}),
        ("adm-imagenet128", {32, 16, 8}),
        ("adm-imagenet512", {32, 16, 8}),
        ("adm-lsun-cat256", {32, 16, 8}),
        ("adm-upsample-64-256", {32, 16, 8}),
        ("adm-upsample-128-512", {32, 16}),
        ("adm-classifier-64", {32, 16, 8}),
        ("adm-classifier-512", {32, 16, 8}),
        ("adm-ablation-base", {16}),
        ("adm-ablation-all", {32, 16, 8}),
        ("edm-cifar10-cond-ve", {16}),
        ("edm-afhqv2-vp", {16}),
        ("edm-imagenet64", {32, 16, 8}),
        ("edm-baseline-cifar10-vp", {16}),
    ],
)
def test_attention_is_at_the_papers_resolutions(name, resolutions):
    description = describe(name)
    assert {description.shape[1] >> level for level in description.config.network.attention} == resolutions


@pytest.mark.parametrize(
    "name, heads, width",
    [
        ("iddpm-cifar10", 4, 0),
        ("iddpm-lsun-bedroom256", 1, 0),
        ("adm-imagenet64", None, 64),
        ("adm-imagenet128", 4, 0),
        ("adm-imagenet256", None, 64),
        ("adm-upsample-64-256", 4, 0),
        ("adm-upsample-128-512", None, 64),
        ("adm-ablation-base", 1, 0),
        ("adm-ablation-heads", 4, 0),
        ("adm-ablation-all", 4, 0),
        ("adm-ablation-adagn", None, 64),
    ],
)
def test_heads_are_counted_or_have_a_width(name, heads, width):
    network = recipe(name).network
    assert network.head_channels == width
    assert heads in (None, network.heads)


@pytest.mark.parametrize(
    "change, differs",
    [
        ("depth", {"channels": 128, "blocks": 4}),
        ("heads", {"heads": 4}),
        ("attention", {"attention": (2, 3, 4)}),
        ("biggan", {"resample": "block"}),
        ("rescale", {"rescale": True}),
        ("all", {"heads": 4, "attention": (2, 3, 4), "resample": "block"}),
    ],
)
def test_an_ablation_changes_what_it_names_and_nothing_else(change, differs):
    base, other = (vars(recipe(f"adm-ablation-{name}").network) for name in ("base", change))
    assert {key: value for key, value in other.items() if value != base[key]} == differs
    assert recipe(f"adm-ablation-{change}").process == recipe("adm-ablation-base").process


@pytest.mark.parametrize("name, factor, size", [("iddpm-upsample-64-256", 4, 256), ("adm-upsample-64-256", 4, 256),
                                                ("adm-upsample-128-512", 4, 512)])  # fmt: skip
def test_upsamplers_see_a_fourth_of_the_size(name, factor, size):
    description = describe(name)
    assert (description.config.data.low_res, description.shape) == (factor, (3, size, size))


@pytest.mark.parametrize("size, decay, schedule", [(64, 0.2, "cosine"), (128, 0.05, "linear"), (256, 0.05, "linear"),
                                                   (512, 0.05, "linear")])  # fmt: skip
def test_classifiers_have_the_noise_of_what_they_guide(size, decay, schedule):
    config, guided = recipe(f"adm-classifier-{size}"), recipe(f"adm-imagenet{size}")
    assert isinstance(config.network, ClassifierConfig) and isinstance(config.process, GaussianConfig)
    assert config.process.schedule == guided.process.schedule == schedule
    assert (config.process.T, config.data.source) == (guided.process.T, guided.data.source)
    assert (config.training.weight_decay, config.training.anneal, config.data.crop) == (decay, True, 0.8)
    assert (guided.training.weight_decay, guided.training.anneal, guided.data.crop) == (0.0, False, 1.0)


@pytest.mark.parametrize(
    "classifier, guided", [("digits-classifier", "digits-classes"), ("digits-classifier", "mnist8")]
)
def test_the_digits_classifier_fits_what_it_guides(classifier, guided):
    theirs, ours = describe(guided), describe(classifier)
    assert ours.shape == theirs.shape and ours.config.network.classes == theirs.config.network.classes == 10
    a, b = (describe(name).build().process for name in (guided, classifier))
    assert torch.equal(a.betas, b.process.betas) and torch.equal(a.fed, b.process.fed)
    assert (a.variance, a.loss_kind, b.process.predict) == ("range", "hybrid", "eps")


def test_labels_are_dropped_where_a_network_may_guide_itself_and_nowhere_else():
    assert {name for name in RECIPES if recipe(name).data.drop_labels} == {"digits-classes"}
    assert recipe("digits-classes").data.drop_labels == 0.1


def test_mnists_two_stages_fit_together():
    first, second = describe("mnist8"), describe("mnist16-upsample")
    factor = second.config.data.low_res
    assert (first.shape, second.shape, factor) == ((1, 8, 8), (1, 16, 16), 2)
    assert first.config.network.classes == second.config.network.classes == 10
    assert (first.config.data.low_res, second.config.network.low_res) == (1, True)
    large, small = load_data(second.config.data.source, labels=True, low_res=factor), load_data("mnist-8", labels=True)
    _, seen = large.batch(torch.arange(100), torch.Generator().manual_seed(0))
    assert torch.equal(seen["labels"], small.labels[:100])
    assert (seen["low_res"] - small.x[:100]).abs().max() < 1.01 * 2 / 255  # both are rounded, each by half a level


@pytest.mark.parametrize(
    "name, column, steps, probability, half_life, ramp",
    [
        *((name, "edm", 18, 0.12, 0.5e6, 10e6) for name in named("edm-cifar10")),
        *((name, "edm", 40, 0.15, 0.5e6, 10e6) for name in named("edm-ffhq64") + named("edm-afhqv2")),
        ("edm-imagenet64", "edm", 256, 0.0, 50e6, 10e6),
        ("edm-baseline-cifar10-vp", "vp", 128, 0.0, 887_184, 640_000),
        ("edm-baseline-cifar10-ve", "ve", 96, 0.0, 88_678, 640_000),
        ("edm-baseline-imagenet64", "iddpm", 40, 0.0, 14_194_944, 0),
    ],
)
def test_edm_has_the_numbers_of_its_appendix(name, column, steps, probability, half_life, ramp):
    config = recipe(name)
    assert (config.process.column, config.process.steps, config.process.column_options) == (column, steps, {})
    assert config.data.augment == probability
    assert getattr(config.network, "augment", 0) == (9 if probability else 0)
    assert config.training.ema == (half_life,)
    assert config.training.ramp == ramp
    assert config.training.clip_grad == (1.0 if "baseline-cifar10" in name else 0.0)


@pytest.mark.parametrize("name", [n for n in named("edm-") if n.endswith(("vp", "ve"))])
def test_edms_two_networks(name):
    net = built(name).net
    assert isinstance(net, SongUNet)
    expected = (True, "residual", 4) if name.endswith("ve") else (False, "standard", 2)
    assert (hasattr(net, "frequencies"), net.encoder, net.shrink.kernel.shape[0]) == expected


def test_edms_imagenet_network_is_adms_without_the_variance():
    ours, theirs = recipe("edm-imagenet64").network, recipe("adm-imagenet64").network
    assert ours == theirs
    outs = [built(name).net.conv_out.out_channels for name in ("edm-imagenet64", "edm-baseline-imagenet64")]
    assert outs == [3, 6]


@pytest.mark.parametrize("name", RECIPES)
def test_examples_are_what_the_data_are(name):
    description = describe(name)
    source = description.config.data.source
    if source.endswith(".npz"):
        size = {"cifar10.npz": 32}.get(source) or int("".join(filter(str.isdigit, source.replace("v2", ""))))
        assert (description.shape, description.levels) == ((3, size, size), 256)
        assert size % built(name).net.divisor == 0
    else:
        data = load_data(source, "test")
        assert (description.shape, description.levels) == (data.shape, data.levels)


def test_the_data_are_all_used():
    assert set(SETS) == {recipe(name).data.source for name in RECIPES}


@pytest.mark.parametrize("name", sorted(set(RECIPES) - DIGITS))
def test_a_recipe_says_where_its_numbers_stand(name):
    said = inspect.getdoc(RECIPES[name]).splitlines()[0]
    papers = {"swissroll": "SD", "heartbeat": "SD", "dead": "SD"}
    paper = papers.get(name.split("-")[0], name.split("-")[0].upper())
    assert paper in said
    assert any(place in said for place in ("Table", "App.", "README"))


@pytest.mark.parametrize("name", PAPERS)
def test_scores_are_of_a_recipe_and_of_its_paper(name):
    assert name in RECIPES
    assert PAPERS[name].source.startswith(name.split("-")[0].upper() + ", Table")
    assert set(PAPERS[name].values) <= {"fid", "sfid", "is", "precision", "recall"} and PAPERS[name].values["fid"] > 1


@pytest.mark.parametrize(
    "name, T, ends, parameters",
    [
        ("swissroll-sd", 40, (1e-4, 0.5), 100 * 2 + 100 + 40 * 4 * 101 + 39),
        ("heartbeat-sd", 2000, (1 / 2000, 1.0), 21 * 50 + 2 * 51 * 50 + 16 * 20 * 51),
        (
            "dead-leaves-sd",
            1000,
            (1e-4, 0.05),
            3 * (10 * 24 + 2 * 217 * 24) + 25 * 24 + 10 * 2 * 25 + 999,
        ),
    ],
)
def test_the_first_papers_recipes_are_built_on_their_own_data(name, T, ends, parameters):
    config = recipe(name)
    data = load_data(config.data.source, "test")
    model = build(config, data.shape, data.levels)
    betas = model.process.betas
    assert (len(betas), betas[0].item(), betas[-1].item()) == (T, pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert sum(p.numel() for p in model.parameters()) == parameters
    if name == "heartbeat-sd":
        assert model.process.m == 0.2 == pytest.approx(data.x.mean().item())
    else:
        assert (data.x**2).mean().item() == pytest.approx(1, abs=0.05)
    t = torch.randint(T, (4,), generator=torch.Generator().manual_seed(0))
    losses = model(data.x[:4], t, model.process.draw_noise(data.x[:4], torch.Generator().manual_seed(0)))
    assert losses["loss"].isfinite().all()


@pytest.mark.parametrize("name, nearest", [("digit", "digits"), ("ddpm_cifar10", "ddpm-cifar10")])
def test_an_unknown_recipe_is_refused_with_the_nearest_and_all(name, nearest):
    with pytest.raises(ValueError, match=rf"no recipe '{name}'\. Did you mean {nearest}\? Known are: ") as refusal:
        recipe(name)
    assert all(known in str(refusal.value) for known in RECIPES)


def test_digits_edm_is_digits_under_the_papers_noise_in_units_of_these_data():
    edm, ddpm, paper = recipe("digits-edm"), recipe("digits"), EDMConfig()
    assert (edm.data, edm.network, edm.training) == (ddpm.data, ddpm.network, ddpm.training)
    options = edm.process.column_options
    rms = load_data("digits").x.square().mean().sqrt().item()
    assert options["sigma_data"] == pytest.approx(rms, abs=5e-4)
    median = lambda process: build_column(process).quantile(torch.tensor([0.5], dtype=torch.float64)).item()
    assert median(edm.process) / rms == pytest.approx(median(paper) / 0.5, rel=0.01)


def test_mnist16_knows_the_size_of_its_data_and_ends_at_rate_0():
    config = recipe("mnist16")
    options, training = config.process.column_options, config.training
    assert options["sigma_data"] == pytest.approx(load_data("mnist-16").x.square().mean().sqrt().item(), abs=5e-4)
    assert build_column(config.process).path.t_max == options["sigma_max"] < EDMPath().t_max
    assert training.anneal and learning_rate(training, training.images) == 0
