"""The command line as a caller meets it: arguments in; exit code, output and files back."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_flags import FIRST_PAPER, TINY

from minidiff.cli.main import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def minidiff(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: ``minidiff("sample", "run", "-n", 3)``."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> Ended:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # tyro leaves this way
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of 96 images, with checkpoints after 32, 64 and 96."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--out", str(run), *TINY]) == 0
    return run


@pytest.fixture(scope="session")
def first_paper(tmp_path_factory) -> dict[str, Path]:
    """Finished runs of the first paper's recipes, as the one above."""
    runs = {name: tmp_path_factory.mktemp("first") / name for name in FIRST_PAPER}
    for name, run in runs.items():
        assert main(["train", name, "--out", str(run), *FIRST_PAPER[name]]) == 0
    return runs


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it to spoil, as ``run`` in the folder where commands are called."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
