"""book/execute.py: the same chapter twice gives the same bytes; one that fails leaves what was stored alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1]

GOOD = """# %% [markdown]
# # A chapter

# %% tags=["setup"] nbgrader={"grade_id": "six", "solution": true}
import matplotlib.pyplot as plt

print("six", 6)
plt.plot([1, 2])
plt.show()
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "chapters").mkdir()
    shutil.copy(ROOT / "book" / "execute.py", tmp_path / "book")
    shutil.copy(ROOT / "chapters" / "jupytext.toml", tmp_path / "chapters")

    def run(source: str, *arguments: str):
        (tmp_path / "chapters" / "01_sample.py").write_text(source)
        command = [sys.executable, str(tmp_path / "book" / "execute.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    run.stored = tmp_path / "chapters" / "01_sample.ipynb"
    return run


def test_twice_is_the_same_and_a_failure_stores_nothing(run):
    first = run(GOOD)
    assert (first.returncode, first.stderr) == (0, "")
    assert "01_sample: " in first.stdout and first.stdout.endswith(", stored\n")
    stored = run.stored.read_bytes()
    assert b"six 6" in stored and b"image/png" in stored and b"python3" in stored

    source = run.stored.with_suffix(".py").read_text()
    assert jupytext.writes(jupytext.read(run.stored), fmt="py:percent") == source

    second = run(source, "01")
    assert run.stored.with_suffix(".py").read_text() == source
    assert second.stdout.endswith(", unchanged\n")
    assert run.stored.read_bytes() == stored

    for tail, complaint in (("1 / 0", "ZeroDivisionError"), ("import sys\nprint(1, file=sys.stderr)", "stderr")):
        failed = run(GOOD + tail + "\n")
        assert failed.returncode == 1
        assert complaint in failed.stderr and "01_sample: FAILED" in failed.stderr and tail in failed.stderr
        assert run.stored.read_bytes() == stored
    assert {path.name for path in run.stored.parent.iterdir()} == {"01_sample.ipynb", "01_sample.py", "jupytext.toml"}


def test_an_unknown_chapter_is_named(run):
    result = run(GOOD, "99_nothing")
    assert result.returncode != 0
    assert result.stderr == "no chapter '99_nothing'; there are: 01_sample\n"
