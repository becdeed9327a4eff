"""environment.yml asks conda for what pyproject.toml asks pip for: no package and no bound more or less."""

import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}
ONLY_ON_PYPI = {"sphinx-mathjax-offline"}


def bounds(requirement: Requirement) -> set[str]:
    return {str(bound) for bound in requirement.specifier}


def of_pip() -> dict[str, set[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = map(Requirement, project["dependencies"] + extras["notebooks"] + extras["dev"])
    found = {CONDA_NAMES.get(r.name, r.name): bounds(r) for r in requirements}
    return found | {"python": bounds(Requirement("python" + project["requires-python"]))}


def of_conda() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (section,) = (entry["pip"] for entry in listed if isinstance(entry, dict))
    lines = [entry for entry in listed if isinstance(entry, str)]
    assert "pip" in lines and "-e ." in section
    conda = {r.name: bounds(r) for r in map(Requirement, lines) if r.name != "pip"}
    return conda, {r.name: bounds(r) for r in map(Requirement, section[: section.index("-e .")])}


def test_conda_and_pip_install_the_same():
    conda, pip = of_conda()
    assert conda | pip == of_pip()
    assert set(pip) == ONLY_ON_PYPI
    assert len(conda) > 20
