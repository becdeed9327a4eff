"""The official networks' own answers: their authors' code, run once in float64 on the weights of formula.py.

golden.json holds figures of answers and of gradients with respect to the image. There the repository and commit are
named, the weights were carried over by name, and queries, keys and values brought into that code's order.
"""

import json
from pathlib import Path

import pytest
import torch
from formula import figures, fill, wave

from minidiff import Classifier, SongUNet, UNet

CASES = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_answers_and_gradients_are_those_of_the_official_code(name, float64):
    case = CASES[name]
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in case["options"].items()}
    net = fill({"UNet": UNet, "SongUNet": SongUNet, "Classifier": Classifier}[case["network"]](**options))
    cond = {"labels": torch.tensor(case["labels"])} if "labels" in case else {}
    cond |= {"low_res": wave(*case["low_res"], phase=2)} if "low_res" in case else {}
    x = wave(*case["shape"], phase=1).requires_grad_()
    found = figures(x, net(x, torch.tensor(case["times"]), **cond))
    for part in ("answer", "gradient"):
        assert found[part] == pytest.approx(case[part], rel=1e-9, abs=1e-10)
