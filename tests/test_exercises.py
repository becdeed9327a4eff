"""Exercises: solvable from the setup cells alone, and their tests tell a solution from a blank."""

import re
from pathlib import Path

import jupytext
import pytest
from matplotlib import pyplot as plt

CHAPTERS = sorted((Path(__file__).parents[1] / "chapters").glob("[0-9]*.py"))
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.MULTILINE | re.DOTALL)


def cells(chapter: Path) -> list:
    """The setup cells and those of the exercises, in order."""
    wanted = [
        cell for cell in jupytext.read(chapter).cells
        if "setup" in cell.metadata.get("tags", []) or "nbgrader" in cell.metadata
    ]  # fmt: skip
    assert any("setup" in cell.metadata.get("tags", []) for cell in wanted), f"{chapter.name} has no cell tagged setup"
    return wanted


def points(cell) -> int:
    return cell.metadata.get("nbgrader", {}).get("points", 0)


def run(code: list[str], monkeypatch) -> dict:
    """Execute cells in one fresh namespace, as a kernel in the chapters' folder would."""
    monkeypatch.chdir(CHAPTERS[0].parent)
    namespace: dict = {}
    try:
        for source in code:
            exec(source, namespace)
    finally:
        plt.close("all")
    return namespace


@pytest.fixture(autouse=True)
def default_dtype():
    """A chapter may set torch's default precision; the next test must not notice."""
    import torch

    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_six_exercises_of_the_three_kinds(chapter):
    graded = [cell for cell in cells(chapter) if cell.metadata.get("nbgrader", {}).get("grade")]
    on_paper = [cell for cell in graded if cell.cell_type == "markdown"]
    tested = [cell for cell in graded if cell.metadata["nbgrader"]["locked"]]
    assert len(on_paper) >= 2 and len(tested) >= 3 and len(graded) >= 6 and all(points(cell) > 0 for cell in graded)
    names = [cell.metadata["nbgrader"]["grade_id"] for cell in cells(chapter) if "nbgrader" in cell.metadata]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_reference_solves_every_exercise_from_the_setup_alone(chapter, monkeypatch):
    run([cell.source for cell in cells(chapter) if cell.cell_type == "code"], monkeypatch)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_blank_answer_fails_each_test(chapter, monkeypatch):
    code = [cell for cell in cells(chapter) if cell.cell_type == "code"]
    setup = [cell.source for cell in code if "setup" in cell.metadata.get("tags", [])]
    for place, cell in enumerate(code):
        if cell.metadata.get("nbgrader", {}).get("locked"):
            blank, found = SOLUTION.subn(r"\1pass", code[place - 1].source)
            assert found == 1, f"{chapter.name}: no solution cell before {cell.metadata['nbgrader']['grade_id']}"
            with pytest.raises((AssertionError, TypeError, AttributeError)):
                run([*setup, blank, cell.source], monkeypatch)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_text_uses_nothing_that_a_student_writes(chapter):
    all_cells = jupytext.read(chapter).cells
    own = set()
    for cell in all_cells:
        if cell.cell_type != "code":
            continue
        if cell.metadata.get("nbgrader", {}).get("solution"):
            own |= set(re.findall(r"^def (\w+)", cell.source, re.MULTILINE))
        elif "nbgrader" not in cell.metadata:
            used = own & set(re.findall(r"\w+", cell.source))
            assert not used, f"{chapter.name}: a later cell uses {used}"
