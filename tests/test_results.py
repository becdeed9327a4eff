"""Stored results: where they come from is said, and the script that made them still describes them."""

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
import torch

import minidiff as md
from minidiff.recipes import describe
from minidiff.training.cost import Cost

RESULTS = sorted((Path(__file__).parents[1] / "chapters" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made(path):
    result = json.loads(path.read_text())
    assert {"command", "commit", "machine", "date"} <= set(result) and {"seed", "seeds"} & set(result)
    assert Path(result["command"].split()[1]) == Path("chapters/results") / path.with_suffix(".py").name
    assert path.with_suffix(".py").is_file()


def script(name: str):
    """The module that made a result."""
    path = next(path for path in RESULTS if path.stem == name).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_1_has_the_rows_of_its_script_and_no_row_says_more_than_can_be_known():
    rows = json.loads(RESULTS[0].with_name("sd_table1.json").read_text())["rows"]
    table = script("sd_table1")
    assert set(rows) == set(table.ROWS)
    for name, row in rows.items():
        config = table.configuration(name)
        assert row["images"] == config.training.images == md.recipe(config.recipe).training.images
        data = md.load_data(config.data.source, "test") if row["dims"] < 256 else None
        if data is not None:
            assert md.build(config, data.shape, data.levels).process.T == config.process.T
        if row["dims"] == 20:
            assert row["K"] < -math.log2(5) and row["L_null"] == -14.4386  # the entropy of the data
        if row["dims"] == 2:
            exact = md.swiss_roll_log_prob(data.x).mean().item() / math.log(2)
            assert row["exact"] == pytest.approx(exact, abs=1e-4)
            assert row["K"] < exact + 4 * row["K_error"] and row["K"] < row["by_trajectories"] + 4 * row["K_error"]
            assert len(row["betas"]) == 40 and row["betas"][0] == 1e-4


def test_the_ablation_has_the_rows_of_its_script_and_each_can_be_built():
    ablation = script("ddpm_ablation")
    result = json.loads(Path(ablation.__file__).with_suffix(".json").read_text())
    assert set(result["rows"]) == set(ablation.ROWS) and result["images"] == ablation.IMAGES
    recipe = md.recipe("digits")
    for name, row in result["rows"].items():
        config = dataclasses.replace(recipe, process=dataclasses.replace(recipe.process, **ablation.ROWS[name]))
        model = md.build(config, (1, 8, 8), 17)
        assert model.process.loss_kind == ("bound" if "bound" in name else "simple")
        parts = row["decoder_bits"] + row["bits_t_2_to_60"] + row["bits_above_60"]
        assert abs(parts - row["bits_per_dim"]) < 1e-3  # what is left in x_T is below that
        assert len(row["samples"]) == 24 and all(len(sample) == 64 and max(sample) <= 16 for sample in row["samples"])


def test_the_digits_in_few_steps_are_those_of_their_script():
    table = script("ddim_steps")
    result = json.loads(table.OUT.read_text())
    spacings = {S: table.SPACINGS if S < 1000 else table.SPACINGS[:1] for S in table.STEPS}
    cells = {f"{S}, {kind}, {spacing}" for S in table.STEPS for kind in table.KINDS for spacing in spacings[S]}
    assert set(result["distance"]) == set(result["samples"]) == cells and result["n"] == table.N
    assert set(result["round_trip"]) == {str(S) for S in table.ROUND_TRIPS}
    model, _ = md.load("digits")
    for S, kind in ((5, "0"), (10, "larger")):  # drawn again; another processor may round a few pixels to the next grey
        drawn = table.draw(model, md.subsequence(1000, S), kind, n=12).flatten(1)
        stored = torch.tensor(result["samples"][f"{S}, {kind}, uniform"])
        assert ((drawn - stored).abs() <= 1).float().mean() > 0.98
    digits = md.digits("test").x[: table.CODED].double()
    again = table.round_trip(model, digits, md.subsequence(1000, 10))
    assert again == pytest.approx(result["round_trip"]["10"], rel=0.01)


def test_the_improved_ablation_has_the_rows_of_its_script_and_its_bits_add_up():
    table = script("improved_ddpm_ablation")
    result = json.loads(table.OUT.read_text())
    assert set(result["rows"]) == {
        f"{schedule}, {goal}, {seed}" for schedule, goal in table.ROWS for seed in table.SEEDS
    }
    assert set(result["steps"]) == {
        f"{S}, {kind}" for S in table.STEPS for kind in ("learned", "large", "small", "ddim")
    }
    for schedule, goal in table.ROWS:
        process = md.build(table.config(schedule, goal, 0), (1, 8, 8), 17).process
        for seed in table.SEEDS:
            row = result["rows"][f"{schedule}, {goal}, {seed}"]
            assert ("gradient" in row) == (goal == "hybrid")
            for kind in table.variants(process):
                for steps in ("1000", "25"):
                    bits = row[kind][steps]
                    assert abs(sum(bits["terms"]) + bits["prior"] - bits["total"]) < 1e-3
                assert row[kind]["25"]["total"] > row[kind]["1000"]["total"]


def test_the_widths_of_the_scaling_study_cost_what_their_networks_do():
    table = script("improved_ddpm_scaling")
    runs = json.loads(table.OUT.read_text())["runs"]
    assert set(runs) == {f"{width}, {seed}" for seed in table.SEEDS for width in table.WIDTHS}
    for width in table.WIDTHS:
        cost = Cost(md.Description(table.config(width, 0), (1, 8, 8), 17))
        for seed in table.SEEDS:
            run = runs[f"{width}, {seed}"]
            assert run["parameters"] == cost.parameters
            assert [point["images"] for point in run["points"]] == list(table.SNAPSHOTS)
            assert all(point["flop"] == cost.training * point["images"] for point in run["points"])


def test_the_networks_of_adms_ablation_are_those_of_its_script_and_of_equal_size():
    table = script("adm_ablation")
    result = json.loads(table.OUT.read_text())
    assert set(result["rows"]) == {f"{row}, {seed}" for row in table.ROWS for seed in table.SEEDS}
    for row, (change, widths, embedding) in table.ROWS.items():
        said = {"change": change, "widths": widths, "embedding": embedding}
        assert result["changes"][row] == json.loads(json.dumps(said))
        model = md.build(table.config(row, 0), (1, 28, 28), 256)
        parameters = sum(p.numel() for p in model.net.parameters())
        assert {result["rows"][f"{row}, {seed}"]["parameters"] for seed in table.SEEDS} == {parameters}
        assert abs(parameters / result["rows"]["base, 0"]["parameters"] - 1) < 0.02


def test_a_set_of_guided_digits_drawn_again_looks_as_it_did():
    table = script("guided_digits")
    result = json.loads(table.OUT.read_text())
    ways = table.ways()
    assert set(result["sets"]) == set(ways) and result["n"] == table.N
    assert all(len(values) == len(table.SETS) for found in result["sets"].values() for values in found.values())
    process, net, sampler = ways["ddim25, 2"]
    told = {"labels": table.labels}
    pixels = md.decode(md.generate(process, net, (1, 8, 8), range(table.N), sampler=sampler, cond=told), 17)
    for name, value in table.looks(pixels).items():  # another processor may round a few pixels to the next grey
        assert value == pytest.approx(result["sets"]["ddim25, 2"][name][0], abs=0.05)


def test_edms_ablation_has_the_rows_of_its_script_and_the_best_gaussian_denoisers_error():
    table = script("edm_ablation")
    result = json.loads(table.OUT.read_text())
    assert set(result["rows"]) == {f"{row}, {seed}" for row in table.ROWS for seed in table.SEEDS}
    assert result["images"] == {row: images for row, (*_, images) in table.ROWS.items()}
    assert result["sigmas"] == pytest.approx(table.SIGMAS.tolist(), rel=1e-5)
    assert all(
        len(row[part]) == len(table.SIGMAS) for row in result["rows"].values() for part in ("held_out", "training")
    )
    assert (
        result["gaussian"]["training"][-1]
        == pytest.approx(  # the only error that has a closed form, but for the draw
            md.gaussian_error(table.digits.x, table.SIGMAS[-1:]).item(), rel=0.05
        )
    )


def test_a_row_of_the_samplers_drawn_again_has_its_distance():
    table = script("edm_samplers")
    result = json.loads(table.OUT.read_text())
    solvers = {(name, count) for name in table.SOLVERS for count in table.EVALUATIONS} | {("euler", table.MORE)}
    expected = {f"{whose}, {c}, {s}, {n}" for whose in ("digits", "ideal") for c in table.COLUMNS for s, n in solvers}
    assert expected <= set(result["rows"])
    denoise, path = md.ContinuousDenoiser(table.model.process, table.model.net, clip=True), md.EDMPath()
    again = table.looks(md.dpmpp(denoise, table.start(path), path, 5))
    assert again["training"] == pytest.approx(result["rows"]["digits, edm, dpmpp, 5"]["training"], rel=0.02)


def test_two_processes_were_measured_with_the_steps_and_bytes_of_the_digits_recipe():
    table = script("scaling_two_processes")
    result = json.loads(table.OUT.read_text())
    assert set(result["one"]) == {str(batch) for batch in table.BATCHES}
    assert set(result["two"]) == {str(batch) for batch in table.BATCHES[1:]}
    assert set(result["exchange"]) == {str(size) for size in table.BYTES}
    digits = Cost(md.Description(md.recipe("digits"), (1, 8, 8), 17))
    assert result["gradient_bytes"] == digits.memory("tf32")["gradients"]
    assert (result["rounds"], result["steps"]) == (table.ROUNDS, table.STEPS - 1)
    for row in result["one"].values():  # one thread cannot work for longer than it takes
        assert 0 < row["cpu_seconds"] < 1.02 * row["seconds"]


def test_the_speed_of_training_is_told_of_every_part_and_its_ratios_are_those_of_its_times():
    speed = script("training_speed")
    bench, parts = speed.bench_training, json.loads(speed.OUT.read_text())["parts"]
    always = {f"step, {name}" for name in bench.LEVELS} | {"others", "two"}
    assert always <= set(parts) <= always | {"compiled"}
    for name, part in parts.items():
        again = bench.rows(name, {key: [value] for key, value in part["milliseconds"].items()})
        assert [(row["what"], row["target"]) for row in part["ratios"]] == [(what, target) for what, _, target in again]
        for row, (_, ratio, _) in zip(part["ratios"], again, strict=True):
            assert row["ratio"] == pytest.approx(ratio, rel=0.15)  # the median of ratios, beside that of medians


def test_equal_compute_has_a_row_for_each_contender_and_no_network_is_smaller_than_ours():
    table = script("equal_compute")
    result = json.loads(table.OUT.read_text())
    keys = {f"{name}, {seed}, {s}" for name in table.CONTENDERS for seed in table.SEEDS for s in table.SECONDS}
    rows = result["rows"]
    assert set(rows) == keys and result["n"] == table.N == len(table.held_out)
    ours = sum(p.numel() for p in describe("mnist16").build().net.parameters())
    for key, row in rows.items():
        name, seconds = key.split(", ")[0], int(key.split(", ")[2])
        assert row["parameters"] == ours if name == "minidiff" else row["parameters"] >= ours
        assert row["spent"] < seconds * 1.02
    assert set(result["packages"]) > set(table.CONTENDERS) - {"minidiff"}


def test_ours_is_less_than_a_fifth_of_the_least_distance_after_the_same_minutes_and_the_picture_says_so():
    table = script("equal_compute")
    result = json.loads(table.OUT.read_text())
    for seconds in table.SECONDS:
        others = [table.best(result["rows"], name, seconds) for name in list(table.CONTENDERS)[1:]]
        assert max(table.best(result["rows"], "minidiff", seconds)) < 0.2 * min(min(found) for found in others)
    title = table.picture(result).axes[0].get_title(loc="left")
    share = int(re.search(r"1/(\d+)", title)[1])
    mean = {name: sum(table.best(result["rows"], name, table.TOLD)) / len(table.SEEDS) for name in table.CONTENDERS}
    assert all(share * mean["minidiff"] < mean[name] for name in mean if name != "minidiff")
    assert table.PICTURE.is_file() and table.PICTURE.stat().st_size < 60_000


def test_the_distance_of_as_many_training_digits_is_found_again():
    table = script("equal_compute")
    result = json.loads(table.OUT.read_text())
    lots = table.floor(table.seen(table.held_out.pixels))
    assert lots == pytest.approx(result["training_digits"], rel=1e-3)
