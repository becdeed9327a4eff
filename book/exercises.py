"""The exercises of the chapters: what each one asks, what it is worth, its reference answer, its tests, its criteria.

They stand in the chapters themselves, in nbgrader's convention: a cell with metadata ``nbgrader`` is an answer, a test
of the answer above it, or both (then a person marks it). How a person marks is written in ``criteria.yml``.
"""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
EXERCISE_SECONDS = 7  # that an answer and its tests may take; the references take a tenth of a second
HEADING = re.compile(r"^(?:\*\*|#+ )Exercise (\d+\.\d+)\b", re.MULTILINE)
SOLUTION = re.compile(r"^[^\n]*### BEGIN SOLUTION[^\n]*\n(.*?)^[^\n]*### END SOLUTION[^\n]*$", re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"^### BEGIN HIDDEN TESTS\n(.*?)^### END HIDDEN TESTS$", re.MULTILINE | re.DOTALL)
LABEL = re.compile(r"\\tag\{([^}]*)\}\s*\\label\{([^}]*)\}")
EQREF = re.compile(r"\$?\\eqref\{([^}]*)\}\$?")


@dataclass
class Part:
    """A cell that earns points: tests of an answer, or an answer that a person marks (then ``tests`` is None)."""

    name: str
    points: int
    answer: str  # the grade_id of the cell into which the student writes
    reference: str
    tests: str | None = None

    @property
    def defines(self) -> list[str]:
        """The names that the tests take from the answer."""
        return [node.name for node in ast.parse(self.reference).body if isinstance(node, ast.FunctionDef)]


@dataclass
class Exercise:
    number: str
    statement: str
    parts: list[Part] = field(default_factory=list)

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def kind(self) -> str:
        if any(part.tests is not None for part in self.parts):
            return "code"
        return "experiment" if len(self.parts) > 1 else "on paper"


@dataclass
class Chapter:
    path: Path
    notebook: nbformat.NotebookNode
    setup: list[str]
    exercises: list[Exercise]

    @property
    def parts(self) -> list[Part]:
        return [part for exercise in self.exercises for part in exercise.parts]

    def plain(self, text: str) -> str:
        """Put the numbers of equations where a page without the chapter could not resolve a reference."""
        numbers = {label: tag for cell in self.notebook.cells for tag, label in LABEL.findall(cell.source)}
        return EQREF.sub(lambda match: f"({numbers.get(match[1], match[1])})", text)


def read_chapter(path: Path) -> Chapter:
    """Read a chapter's notebook; its exercises are empty where it has none."""
    notebook = nbformat.read(path, as_version=4)
    setup, exercises, answer = [], [], None
    for cell in notebook.cells:
        marks = cell.metadata.get("nbgrader")
        if "setup" in cell.metadata.get("tags", []):
            setup.append(cell.source)
        if cell.cell_type == "markdown" and not marks and (match := HEADING.search(cell.source)):
            exercises.append(Exercise(match[1], cell.source[match.start() :].strip()))
        if marks and marks["solution"]:
            answer = cell
        if marks and marks["grade"]:
            tests = None if marks["solution"] else cell.source
            part = Part(marks["grade_id"], marks["points"], answer.metadata.nbgrader.grade_id, answer.source, tests)
            exercises[-1].parts.append(part)
    return Chapter(path, notebook, setup, exercises)


def read_chapters(root: Path = ROOT) -> list[Chapter]:
    """Read every chapter that has exercises."""
    chapters = [read_chapter(path) for path in sorted((root / "chapters").glob("[0-9]*.ipynb"))]
    return [chapter for chapter in chapters if chapter.exercises]


def read_criteria(root: Path = ROOT) -> dict[str, dict[str, int]]:
    """Read how a person marks: for each grade_id, what earns how many points."""
    return yaml.safe_load((root / "book" / "criteria.yml").read_text(encoding="utf-8"))


def model_answer(part: Part) -> str:
    """Return the reference of a part that a person marks, without the marks that hide it."""
    text = SOLUTION.sub(lambda match: match[1], part.reference)
    return re.sub(r"</?details>|<summary>.*?</summary>", "", text).strip()
