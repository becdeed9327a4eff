"""Every chapter is stored as a reader should find it; what its cells say is compared by pytest --nbval beside this."""

import base64
import copy
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

CHAPTERS = Path(__file__).parents[1] / "chapters"
SOURCES = sorted(CHAPTERS.glob("[0-9]*.py"))
TAGS = {
    *("setup", "nbval-ignore-output", "nbval-check-output", "nbval-skip", "raises-exception"),
    *("hide-input", "hide-output", "hide-cell", "remove-input", "remove-output", "remove-cell"),
}
PATTERNS = {
    "a progress bar": r"\d%\|| it/s\b|s/it\b",
    "an absolute path": r"(?<![\w.<])(?:/(?:home|root|Users|tmp|private|usr|opt|mnt|var)/\w|[A-Z]:\\\w)",
    "a warning": r"\b\w*Warning: ",
}


def said(output) -> str:
    """Return the text of an output, without the pictures inside of its HTML."""
    data = output.get("data", {})
    text = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
    return re.sub(r"data:[\w/+;-]+base64,[^\"']+", "", text)


def faults(notebook) -> list[str]:
    """Return what is wrong with a stored notebook."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("the cells were not run once each, from top to bottom")
    for cell in notebook.cells:
        where = cell.source[:60]
        found += [f"unknown tag {tag!r}: {where}" for tag in sorted(set(cell.metadata.get("tags", ())) - TAGS)]
    for cell in code:
        where = cell.source[:60]
        if re.search(r"^\s*[%!]\s*(pip|conda)\b", cell.source, flags=re.M):
            found.append(f"a cell installs packages: {where}")
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"{output.get('ename', 'stderr')} in the output of: {where}")
            found += [f"{what} in the output of: {where}" for what, p in PATTERNS.items() if re.search(p, said(output))]
            if "application/vnd.jupyter.widget-view+json" in data:
                found.append(f"a widget in the output of: {where}")
            if data.get("text/plain", "").startswith("<Figure") and not {"image/png", "image/svg+xml"} & set(data):
                found.append(f"a figure without its picture: {where}")
            if "image/png" in data and not is_png(base64.b64decode(data["image/png"])):
                found.append(f"a damaged picture: {where}")
    graded = [k for k, cell in enumerate(notebook.cells) if "nbgrader" in cell.metadata]
    setup = [k for k, cell in enumerate(notebook.cells) if "setup" in cell.metadata.get("tags", ())]
    if graded and (not setup or setup[0] > graded[0]):
        found.append("no cell before the first exercise is tagged 'setup'")
    return found


def is_png(content: bytes) -> bool:
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


def test_there_are_chapters():
    assert {path.stem for path in SOURCES} >= {"00_reading_guide", "02_ddpm"}
    assert {path.stem for path in CHAPTERS.glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_two_files_of_a_chapter_are_equal(path):
    notebook = jupytext.read(path.with_suffix(".ipynb"))
    assert jupytext.writes(notebook, fmt="py:percent") == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_is_stored_as_it_should_be(path):
    path = path.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 3_000_000
    assert faults(notebook) == []


# ---- the inspection is an oracle, so it is tested as one ----


def sample():
    picture = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
    figure = {"text/plain": "<Figure size 1x1 with 1 Axes>", "image/png": base64.b64encode(picture).decode()}
    return new_notebook(
        cells=[
            new_code_cell("import torch", execution_count=1, metadata={"tags": ["setup"]}),
            new_code_cell("draw()", execution_count=2, outputs=[new_output("display_data", figure)]),
            new_code_cell("f = 1", execution_count=3, metadata={"nbgrader": {"grade_id": "f"}}),
        ]
    )


def printed(text: str, name: str = "stdout"):
    return lambda nb: nb.cells[0].outputs.append(new_output("stream", text=text, name=name))


def test_a_sound_notebook_passes():
    notebook = sample()
    printed("0.1 bits/dim, 50% of T, a ratio of 3/4, RMSE 2.0")(notebook)
    assert faults(notebook) == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda nb: nb.cells[1].update(execution_count=None), "not run"),
        (lambda nb: nb.cells[1].update(execution_count=7), "not run"),
        (printed("oops", "stderr"), "stderr"),
        (lambda nb: nb.cells[0].outputs.append(new_output("error", ename="KeyError")), "KeyError"),
        (printed(" 40%|████      | 4/10 [00:01<00:02]"), "a progress bar"),
        (printed("saved in /home/me/x.png"), "an absolute path"),
        (printed(r"saved in C:\Users"), "an absolute path"),
        (printed("UserWarning: no"), "a warning"),
        (lambda nb: nb.cells[0].update(source="%pip install torch"), "installs"),
        (lambda nb: nb.cells[0].update(source="import os\n!pip install torch"), "installs"),
        (lambda nb: nb.cells[1].outputs[0].data.pop("image/png"), "without its picture"),
        (lambda nb: nb.cells[1].outputs[0].data.update({"image/png": "AAAA"}), "damaged"),
        (lambda nb: nb.cells[0].metadata.update(tags=["nbval-ignore-outputs"]), "unknown tag"),
        (lambda nb: nb.cells[0].metadata.update(tags=[]), "'setup'"),
    ],
)
def test_every_kind_of_damage_is_seen(damage, complaint):
    notebook = copy.deepcopy(sample())
    damage(notebook)
    assert any(complaint in fault for fault in faults(notebook)), faults(notebook)
