"""The course: what is handed out holds no answer, and what comes back gets its points, whatever it is.

One run of the grader over one folder answers nearly every test: the reference and the untouched notebook of each
chapter, every wrong answer of tests/wrong_answers, hostile answers, and files that are no submissions.
"""

import copy
import csv
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import coursework
import examiner
import nbformat
import pytest
from exercises import HIDDEN, SOLUTION, read_chapters, read_criteria

ROOT = Path(__file__).parents[1]
CHAPTERS = {chapter.path.stem: chapter for chapter in read_chapters()}
TESTED = [(name, part) for name, chapter in CHAPTERS.items() for part in chapter.parts if part.tests is not None]
MARK = f"COURSEWORK_TEST_{os.getpid()}"  # in the environment of the grader and of everything that it starts


def wrong_answers(chapter: str) -> dict[str, list[tuple[str, str, str]]]:
    return runpy.run_path(str(ROOT / "tests" / "wrong_answers" / f"{chapter[:2]}.py"))["WRONG"]


WRONG = [
    (name, part, place, *wrong)
    for name, part in TESTED
    for place, wrong in enumerate(wrong_answers(name).get(part.answer, []))
]


def run(*arguments) -> str:
    command = [sys.executable, str(ROOT / "book" / "coursework.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {MARK: "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(path: Path, answers: dict[str, str], tests: dict[str, str] | None = None) -> None:
    """Write a notebook that holds these cells and no more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        nbformat.v4.new_code_cell(source, metadata={"nbgrader": {"grade_id": name}})
        for name, source in (answers | (tests or {})).items()
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("release")
    run("release", out)
    return out


# ---- hostile answers to exercise 2.4, in the cell one_step; the other two answers are right ----

REFERENCE = {part.answer: part.reference for name, part in TESTED if name == "02_ddpm"}
RIGHT = REFERENCE["one_step"]
BLANK = "def one_step(xt, eps, t, z, betas):\n    "
CHEAT = f"{BLANK}return 0 * xt\n"
HOSTILE = {  # name: (answer, points, a word of the remark)
    "exits": ("import sys\nsys.exit(0)", 0, "SystemExit"),
    "exits at once": (f"import os\n{BLANK}os._exit(0)", 0, "ended Python"),
    "forges the reply": (
        "import contextlib, os\n"
        "for k in range(3, 20):\n    with contextlib.suppress(OSError):\n        os.write(k, b'null\\n')\nos._exit(0)",
        0,
        "ended Python",
    ),
    "crashes": ("import ctypes\nctypes.string_at(0)", 0, "SIGSEGV"),
    "eats the memory": ("much = bytearray(10**11)", 0, "MemoryError"),
    "prints megabytes": (f"import sys\nprint('x' * 10**8)\nsys.stderr.write('y' * 10**8)\n{RIGHT}", 3, ""),
    "asks": (f"input('your name')\n{RIGHT}", 0, "EOFError"),
    "recurses": (f"{BLANK}return one_step(xt, eps, t, z, betas)", 0, "RecursionError"),
    "leaves a thread": (
        f"import threading\ndef spin():\n    while True:\n        pass\nthreading.Thread(target=spin).start()\n{RIGHT}",
        3,
        "",
    ),
    "forks": (f"import os\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        pass\n{RIGHT}", 0, "os.fork"),
    "starts a process": (f"import subprocess\nsubprocess.Popen(['sleep', '1000'])\n{RIGHT}", 0, "subprocess.Popen"),
    "kills": (f"import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n{RIGHT}", 0, "os.kill"),
    "telephones": (f"import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\n{RIGHT}", 0, "socket."),
    "replaces assert_close": (
        f"torch.testing.assert_close = lambda *a, **k: None\n{CHEAT}",
        0,
        "torch.testing.assert_close",
    ),
    "replaces it when called": (
        f"{BLANK}torch.testing.assert_close = lambda *a, **k: None\n    return 0 * xt\n",
        0,
        "replaces torch.testing.assert_close",
    ),
    "replaces a builtin": (
        f"import builtins\nbuiltins.AssertionError = int\nbuiltins.abs = lambda x: 0\n{CHEAT}",
        0,
        "builtins.",
    ),
    "replaces the library": (f"md.GaussianDiffusion.reverse = None\n{CHEAT}", 0, "GaussianDiffusion.reverse"),
    "replaces names of the setup": (f"{RIGHT}\ntorch = process = md = rng = beta = None", 0, "the answer raised"),
    "shadows names of the tests": (f"abs = lambda x: 0\nprocess = None\nbeta = None\n{RIGHT}", 3, ""),
    "spoils the setup": (f"process.alpha_bar.zero_()\nbeta.zero_()\n{RIGHT}", 3, ""),
    "loosens assert": (f"import sys\nsys.flags\n__debug__\nassert True, 'x'\n{CHEAT}", 0, "hidden test"),
    "is no Python": ("def one_step(:\n", 0, "not Python"),
    "uses magics": (f"%matplotlib inline\n!ls\n{RIGHT}", 3, ""),
    "renames": (RIGHT.replace("def one_step", "def my_step"), 0, "defines no one_step"),
    "is empty": ("", 0, "defines no one_step"),
    "holds a null byte": ("one_step = '\0'", 0, "not Python"),
    "raises itself": (f"class E(BaseException):\n    pass\n{BLANK}raise E('=1+1\\n' * 9**6)", 0, "E: =1+1"),
}


def write_files(folder: Path) -> str:
    """An answer that would write where it must not."""
    victims = [*(ROOT / "chapters").glob("02_*"), folder / "reference" / "02_ddpm.ipynb"]
    lines = ["import os, pathlib, shutil"]
    for path in map(str, victims):
        for attempt in (f"open({path!r}, 'w')", f"open({path!r}, 'a')", f"os.open({path!r}, os.O_RDWR)"):
            lines.append(attempt)
        lines += [
            f"os.remove({path!r})",
            f"os.rename({path!r}, 'x')",
            f"os.truncate({path!r}, 0)",
            f"os.chmod({path!r}, 0)",
        ]
        lines.append(f"shutil.copy('/etc/hostname', {path!r})")
    return "\n".join(f"try:\n    {line}\nexcept PermissionError:\n    pass" for line in lines) + "\n" + RIGHT


def state_of(folder: Path) -> dict[str, str]:
    """What a run of the grader must leave as it is: the submissions, the chapters and the grader."""
    files = [*folder.rglob("*.*"), *(ROOT / "chapters").rglob("*.*"), *(ROOT / "book").glob("*.*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def graded(tmp_path_factory, released) -> dict[str, dict]:
    """Grade everything there is to grade, once; a result for each submission, and the table's rows beside it."""
    folder, out = tmp_path_factory.mktemp("submissions"), tmp_path_factory.mktemp("grades")
    for name, chapter in CHAPTERS.items():
        for kind, source in (("reference", chapter.path), ("untouched", released / "student" / chapter.path.name)):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{name}.ipynb").write_bytes(source.read_bytes())
    for name, part, place, _, old, new in WRONG:
        path = folder / "wrong" / f"{name}-{place}.ipynb"
        others = coursework.read_answers(path) if path.exists() else {}
        submit(path, others | {part.answer: part.reference.replace(old, new)})
    yes = "__getattr__ = __call__ = lambda self, *a, **k: self\n"
    yes += "".join(f"    __{name}__ = lambda self, *a: True\n" for name in ("eq", "lt", "le", "gt", "ge", "bool"))
    yes += "".join(f"    __{name}__ = lambda self, *a: self\n" for name in ("abs", "add", "sub", "mul", "getitem"))
    yes += "    __iter__ = lambda self: iter([self, self])\n    __hash__ = None\n"
    for name in CHAPTERS:
        parts = [part for chapter, part in TESTED if chapter == name]
        define = lambda part: f"class Yes:\n    {yes}\n{part.defines[0]} = lambda *a, **k: Yes()"
        submit(folder / "yes" / f"{name}.ipynb", {part.answer: define(part) for part in parts})
    for name, (answer, _, _) in HOSTILE.items():
        submit(folder / "hostile" / f"{name}.ipynb", REFERENCE | {"one_step": answer})
    submit(folder / "hostile" / "writes.ipynb", REFERENCE | {"one_step": write_files(folder)})
    slow = {"posterior": "while True:\n    pass", "one_step": f"import time\n{BLANK}time.sleep(1000)"}
    submit(folder / "hostile" / "loops.ipynb", REFERENCE | slow)
    submit(folder / "hostile" / "deletes.ipynb", {"four_names": REFERENCE["four_names"]})
    stub = {"posterior": CHAPTERS["02_ddpm"].parts[2].reference.split("###")[0] + "raise NotImplementedError()"}
    submit(
        folder / "hostile" / "edits tests.ipynb", REFERENCE | stub, {"posterior_test": "pass", "one_step_test": "1 / 0"}
    )
    twice = nbformat.read(folder / "hostile" / "deletes.ipynb", 4)
    twice.cells.insert(0, copy.deepcopy(twice.cells[0]))
    twice.cells[0].update(source="raise ValueError", id="first")
    nbformat.write(twice, folder / "hostile" / "copies a cell.ipynb")
    broken = folder / "broken"
    (broken / "a folder.ipynb").mkdir(parents=True)
    os.mkfifo(broken / "a pipe.ipynb")
    (broken / "a link.ipynb").symlink_to("nowhere")
    texts = {"empty": "", "a list": "[]", "number": "1", "deep": "[" * 10**5, "foreign": '{"cells": []}'}
    texts |= {"cells": '{"cells": 3}', "null": '{"cells": [{"metadata": null}]}'}
    texts["half"] = (folder / "reference" / "02_ddpm.ipynb").read_text()[:5000]
    for name, text in texts.items():
        (broken / f"{name}.ipynb").write_text(text)
    (broken / "bytes.ipynb").write_bytes(bytes(range(256)))
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "old.ipynb").write_text("")
    (folder / "notes.txt").write_text("not a notebook")

    before, said = state_of(folder), run("grade", folder, "--out", out)
    assert state_of(folder) == before
    results = {result["submission"]: result for result in json.loads((out / "grades.json").read_text())}
    with (out / "grades.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    for result in results.values():
        result["rows"] = [row for row in rows if row["submission"] == result["submission"]]
        result["said"] = next(line for line in said.splitlines() if line.startswith(f"{result['submission']}: "))
    assert sum(len(result["rows"]) for result in results.values()) == len(rows)
    results["files"] = {str(path.relative_to(folder)) for path in folder.rglob("*.ipynb")}
    return results


def part_of(result: dict, name: str) -> dict:
    return next(row for row in result["exercises"] if row["grade_id"] == name)


# ---- grading ----


def test_every_file_gets_a_result(graded):
    assert set(graded) - {"files"} == {name for name in graded["files"] if ".ipynb_checkpoints" not in name}


def test_nothing_that_an_answer_started_is_left(graded):
    left = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            left += [environ] if MARK.encode() in environ.read_bytes() else []
        except OSError:
            continue
    assert not left


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_reference_earns_everything(graded, name):
    result = graded[f"reference/{name}.ipynb"]
    chapter = CHAPTERS[name]
    by_hand = sum(part.points for part in chapter.parts if part.tests is None)
    assert result["chapter"] == name and result["of"] == sum(part.points for part in chapter.parts)
    assert result["to_be_marked"] == by_hand and result["points"] == result["of"] - by_hand
    for row in result["exercises"]:
        assert (row["points"], row["remark"]) in ((row["of"], ""), (None, "to be marked"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_untouched_notebook_earns_nothing(graded, name):
    result = graded[f"untouched/{name}.ipynb"]
    assert result["points"] == result["to_be_marked"] == 0 and len(result["exercises"]) >= 6
    assert {row["remark"] for row in result["exercises"]} == {"not answered"}


@pytest.mark.parametrize(("name", "part"), TESTED, ids=[f"{name[:2]}-{part.answer}" for name, part in TESTED])
def test_each_exercise_has_wrong_answers(name, part):
    listed = wrong_answers(name)[part.answer]
    assert len(listed) >= 5 and len({wrong[0] for wrong in listed}) == len(listed)
    for words, old, new in listed:
        assert old in part.reference and part.reference.replace(old, new) != part.reference, words


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[0][:2]}-{wrong[1].answer}-{wrong[2]}")
def test_a_wrong_answer_earns_nothing(graded, wrong):
    name, part, place, words, *_ = wrong
    row = part_of(graded[f"wrong/{name}-{place}.ipynb"], part.name)
    assert row["points"] == 0, f"accepted: {words}"
    assert "not Python" not in row["remark"] and "is not defined" not in row["remark"], row["remark"]
    assert re.search(r"(visible|hidden) test \d of \d", row["remark"]), row["remark"]


@pytest.mark.parametrize(("name", "part"), TESTED, ids=[f"{name[:2]}-{part.answer}" for name, part in TESTED])
def test_an_object_that_agrees_with_everything_earns_nothing(graded, name, part):
    assert part_of(graded[f"yes/{name}.ipynb"], part.name)["points"] == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_costs_its_own_exercise_alone(graded, name):
    result = graded[f"hostile/{name}.ipynb"]
    _, points, remark = HOSTILE[name]
    row = part_of(result, "one_step_test")
    assert row["points"] == points and remark in row["remark"] and len(row["remark"]) <= 300, row
    assert row["remark"].isprintable() and bool(row["remark"]) == (points == 0)
    assert part_of(result, "posterior_test")["points"] == 2 and part_of(result, "four_names_test")["points"] == 3


def test_loops_cost_their_own_exercises_alone(graded):
    result = graded["hostile/loops.ipynb"]
    assert result["points"] == 3
    assert part_of(result, "posterior_test")["remark"] == "the answer took longer than 7 s"
    assert part_of(result, "one_step_test")["remark"] == "the answer took longer than 7 s"


def test_an_answer_writes_no_file(graded):
    # that the files are as they were is seen in the fixture; the answer tries in vain, and is right
    assert part_of(graded["hostile/writes.ipynb"], "one_step_test")["points"] == 3


def test_deleted_cells_and_edited_tests(graded):
    result = graded["hostile/deletes.ipynb"]
    assert result["points"] == 3 and "deleted" in part_of(result, "one_step_test")["remark"]
    result = graded["hostile/edits tests.ipynb"]
    assert part_of(result, "posterior_test")["remark"] == "not answered"
    assert part_of(result, "one_step_test")["points"] == 3


def test_of_copies_the_last_counts(graded):
    assert graded["hostile/copies a cell.ipynb"]["points"] == 3


def test_a_broken_file_is_named_and_stops_nothing(graded):
    broken = {name: result for name, result in graded.items() if name.startswith("broken/")}
    assert len(broken) == 12
    for result in broken.values():
        assert result["points"] == 0 and result["exercises"] == []
        assert result["error"] in result["said"] and result["rows"][0]["remark"] == result["error"]
    assert "no cell of it belongs" in broken["broken/foreign.ipynb"]["error"]
    assert "not a notebook" in broken["broken/half.ipynb"]["error"]


def test_the_table_says_what_the_json_says(graded):
    for name in ("reference/02_ddpm.ipynb", "hostile/loops.ipynb", "untouched/06_edm.ipynb"):
        result = graded[name]
        for row, line in zip(result["exercises"], result["rows"], strict=True):
            expected = {"submission": name, "chapter": result["chapter"], **row}
            assert line == {key: "" if value is None else str(value) for key, value in expected.items()}
        assert [row["exercise"] for row in result["exercises"]] == sorted(
            row["exercise"] for row in result["exercises"]
        )


def test_one_notebook_is_graded_alone(tmp_path, capfd, monkeypatch):
    with pytest.raises(SystemExit, match="no notebook at"):
        coursework.grade(tmp_path / "nothing.ipynb", tmp_path)
    submit(tmp_path / "alone.ipynb", {"four_names": REFERENCE["four_names"]})
    run("grade", tmp_path / "alone.ipynb", "--out", tmp_path / "out")
    (result,) = json.loads((tmp_path / "out" / "grades.json").read_text())
    assert result["submission"] == "alone.ipynb" and result["points"] == 3


# ---- the words for a failed test ----

TESTS = """# one
assert f(1) == 1
x = 2
assert (
    f(x)
    == 4
)
### BEGIN HIDDEN TESTS
for k in (3, 4):
    # squares
    torch.testing.assert_close(f(k), k**2)
    assert f(-k) > 0
### END HIDDEN TESTS"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (2, "visible test 1 of 2 (one) `assert f(1) == 1`"),
        (3, "visible test 2 of 2 `assert ( f(x) == 4 )`"),
        (5, "visible test 2 of 2 `assert ( f(x) == 4 )`"),
        (11, "hidden test 1 of 2 (squares)"),
        (12, "hidden test 2 of 2"),
    ],
)
def test_a_failed_test_is_named(line, words):
    assert examiner.which_test(TESTS, line) == words


# ---- the release ----


def secrets_of(chapter) -> set[str]:
    """Lines of solutions and hidden tests that stand nowhere else in the chapter."""
    cells = [cell for cell in chapter.notebook.cells]
    hidden = [text for cell in cells for pattern in (SOLUTION, HIDDEN) for text in pattern.findall(cell.source)]
    shown = "\n".join(HIDDEN.sub("", SOLUTION.sub("", cell.source)) for cell in cells)
    lines = {line.strip() for text in hidden for line in text.splitlines()}
    return {line for line in lines if len(line) > 12 and line not in shown}


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_release_holds_no_answer(released, name):
    text = (released / "student" / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    sources = "\n".join(cell.source for cell in notebook.cells)
    lines = secrets_of(CHAPTERS[name])
    assert len(lines) > 50 and not [line for line in lines if line in sources]
    assert "BEGIN SOLUTION" not in text and "HIDDEN TESTS" not in text and "Model answer" not in text
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_release_is_the_chapter_with_places_to_write(released, name):
    chapter = CHAPTERS[name]
    notebook = nbformat.read(released / "student" / f"{name}.ipynb", as_version=4)
    header, *cells = notebook.cells
    total = sum(part.points for part in chapter.parts)
    assert f"{total} points" in header.source
    for exercise in chapter.exercises:
        assert f"| {exercise.number} | {exercise.kind} | {exercise.points} |" in header.source
        stated = re.search(r"(\d+) points", exercise.statement.splitlines()[0])
        assert int(stated[1]) == exercise.points, exercise.number
    for before, after in zip(chapter.notebook.cells, cells, strict=True):
        marks = before.metadata.get("nbgrader")
        if marks and marks["solution"]:
            assert after.source.endswith(
                ("YOUR ANSWER HERE", "# YOUR CODE HERE\nraise NotImplementedError()", "Error()")
            )
            assert not marks["grade"] or after.source in coursework.STUBS
        elif marks:
            assert after.source and before.source.startswith(after.source) and after.metadata.editable is False
        else:
            assert after.source == before.source
    assert (released / "student" / "results").is_dir()


def test_the_rubric_says_how_each_answer_is_marked(released):
    text, criteria = (released / "rubric.md").read_text(encoding="utf-8"), read_criteria()
    by_hand = {part.name: part.points for chapter in CHAPTERS.values() for part in chapter.parts if part.tests is None}
    assert {name: sum(points.values()) for name, points in criteria.items()}.items() >= by_hand.items()
    assert all(f"- {points}: {words}\n" in text for name in by_hand for words, points in criteria[name].items())
    assert not re.search(r"eqref|SOLUTION|<details>", text)
    for chapter in CHAPTERS.values():
        assert f"## {chapter.path.stem}: {sum(part.points for part in chapter.parts)} points" in text
        assert all(f"Exercise {exercise.number}" in text for exercise in chapter.exercises)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_exercises_of_every_kind(name):
    kinds = [exercise.kind for exercise in CHAPTERS[name].exercises]
    assert len(kinds) >= 6 and kinds.count("on paper") >= 2 and kinds.count("code") >= 3 and "experiment" in kinds
    answers = [part for exercise in CHAPTERS[name].exercises if exercise.kind == "on paper" for part in exercise.parts]
    assert all(len(coursework.model_answer(part)) > 200 for part in answers)


# ---- nbgrader itself ----


def test_nbgrader_takes_what_is_released(released, tmp_path):
    name = "00_reading_guide"
    chapter, handed_out = CHAPTERS[name], nbformat.read(released / "student" / f"{name}.ipynb", as_version=4)
    for folder in ("source", "submitted/untouched", "submitted/solved"):
        (tmp_path / folder / name).mkdir(parents=True)
    patience = "c = get_config()\nc.Execute.timeout = c.Execute.startup_timeout = 600\n"  # on a busy machine
    (tmp_path / "nbgrader_config.py").write_text(patience)
    nbformat.write(chapter.notebook, tmp_path / "source" / name / f"{name}.ipynb")

    def nbgrader(*arguments):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls alembic by name
        command = [sys.executable, "-m", "nbgrader", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PATH": path})
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment", name)
    theirs = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", as_version=4)
    pairs = zip(handed_out.cells[1:], theirs.cells, strict=True)
    assert all((ours.source, ours.metadata) == (cell.source, cell.metadata) for ours, cell in pairs)

    nbformat.write(handed_out, tmp_path / "submitted" / "untouched" / name / f"{name}.ipynb")
    solved = {part.answer: part.reference for part in chapter.parts}
    for cell in handed_out.cells:
        cell.source = solved.get(cell.metadata.get("nbgrader", {}).get("grade_id"), cell.source)
    nbformat.write(handed_out, tmp_path / "submitted" / "solved" / name / f"{name}.ipynb")
    nbgrader("autograde", name)
    nbgrader("export")
    with (tmp_path / "grades.csv").open(newline="") as table:
        scores = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(table)}
    by_tests = sum(part.points for part in chapter.parts if part.tests is not None)
    assert scores == {"untouched": (0, 20), "solved": (by_tests, 20)} and by_tests == 8


# ---- the projects ----

PROJECTS = sorted((ROOT / "book" / "projects").glob("*.md"))


@pytest.mark.parametrize("page", PROJECTS, ids=lambda page: page.stem)
def test_a_project_begins_with_code_that_runs(page, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(block, page.name, "exec"), {})
    assert re.search(r"\d\.\d\d$", capsys.readouterr().out.strip())


@pytest.mark.parametrize("page", PROJECTS, ids=lambda page: page.stem)
def test_the_rubric_of_a_project_adds_up(page):
    text = page.read_text(encoding="utf-8")
    stated = int(re.search(r"(\d+) points\.\*", text)[1])
    assert len(PROJECTS) >= 2 and sum(map(int, re.findall(r"^\| (\d+) \|", text, re.MULTILINE))) == stated
