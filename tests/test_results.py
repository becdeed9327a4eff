"""Stored results: where they come from is said, and the script that made them still describes them."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

import minidiff as md

RESULTS = sorted((Path(__file__).parents[1] / "chapters" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made(path):
    result = json.loads(path.read_text())
    assert {"command", "seed", "commit", "machine", "date"} <= set(result)
    assert Path(result["command"].split()[1]) == Path("chapters/results") / path.with_suffix(".py").name
    assert path.with_suffix(".py").is_file()


def test_the_ablation_has_the_rows_of_its_script_and_each_can_be_built():
    path = next(path for path in RESULTS if path.stem == "ddpm_ablation")
    spec = importlib.util.spec_from_file_location(path.stem, path.with_suffix(".py"))
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    result = json.loads(path.read_text())
    assert set(result["rows"]) == set(script.ROWS) and result["images"] == script.IMAGES
    recipe = md.recipe("digits")
    for name, row in result["rows"].items():
        config = dataclasses.replace(recipe, process=dataclasses.replace(recipe.process, **script.ROWS[name]))
        model = md.build(config, (1, 8, 8), 17)
        assert model.process.loss_kind == ("bound" if "bound" in name else "simple")
        parts = row["decoder_bits"] + row["bits_t_2_to_60"] + row["bits_above_60"]
        assert abs(parts - row["bits_per_dim"]) < 1e-3  # what is left in x_T is below that
        assert len(row["samples"]) == 24 and all(len(sample) == 64 and max(sample) <= 16 for sample in row["samples"])
