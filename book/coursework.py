"""The exercises as a course: ``python book/coursework.py release OUT/`` and ``python book/coursework.py grade PATH``.

``release`` writes ``OUT/student/``, the chapters without solutions, hidden tests and outputs, to hand out, and
``OUT/rubric.md``, model answers and criteria, to keep. ``grade`` takes one notebook that came back, or a folder of them
with whatever else lies in it, and writes ``grades.json`` and ``grades.csv``: code is graded by its tests, the rest is
listed as to be marked. The files are nbgrader's own kind, so that nbgrader can take over either half.
"""

import argparse
import copy
import csv
import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
from exercises import EXERCISE_SECONDS, Chapter, Exercise, model_answer, read_chapters, read_criteria

STUBS = ("", "YOUR ANSWER HERE", "# YOUR CODE HERE\nraise NotImplementedError()")  # nbgrader's own
LARGEST = 50 * 2**20  # bytes of a submission; a chapter with all its outputs has 3 MB
COLUMNS = ("submission", "chapter", "exercise", "grade_id", "points", "of", "remark")


# ---- release ----


def student_version(chapter: Chapter) -> nbformat.NotebookNode:
    """Return the chapter as a student gets it, by the steps of ``nbgrader generate_assignment``."""
    from nbgrader import preprocessors as steps

    notebook = copy.deepcopy(chapter.notebook)
    for step in (
        steps.LockCells,
        steps.ClearSolutions,
        steps.ClearOutput,
        steps.ClearHiddenTests,
        steps.ComputeChecksums,
        steps.CheckCellMetadata,
    ):
        notebook, _ = step().preprocess(notebook, {})
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(header(chapter), id="coursework"))
    return notebook


def header(chapter: Chapter) -> str:
    total = sum(exercise.points for exercise in chapter.exercises)
    marked_by = {"code": "tests", "on paper": "a person", "experiment": "a person"}
    rows = [f"| {e.number} | {e.kind} | {e.points} | {marked_by[e.kind]} |" for e in chapter.exercises]
    return "\n".join(
        [
            f"**Coursework, {total} points.** Run the cells tagged `setup` (the first cells of code), then write where",
            "it says `YOUR CODE HERE` or `YOUR ANSWER HERE`. An answer must hold all that it needs: of your notebook",
            "only these cells are read, each beside a fresh run of the setup. Keep their places and the names of the",
            "functions; of copies of a cell the last one counts. Tests that you do not see follow those that you do;",
            f"they give each answer {EXERCISE_SECONDS} seconds, no network, and no file to write.",
            "",
            "| exercise | kind | points | marked by |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def rubric(chapters: list[Chapter], criteria: dict[str, dict[str, int]]) -> str:
    """Return the teacher's page: every exercise with its points, model answer and criteria."""
    lines = [
        "# Rubric",
        "",
        "For teachers. Code is marked by its tests, all or nothing for each; the rest is marked by a person:",
    ]
    lines += ["the criteria add up to the points. A right answer by another way than the model's earns them all.", ""]
    for chapter in chapters:
        total = sum(exercise.points for exercise in chapter.exercises)
        lines += [f"## {chapter.path.stem}: {total} points", ""]
        for exercise in chapter.exercises:
            lines += marking(chapter, exercise, criteria)
    return "\n".join(lines)


def marking(chapter: Chapter, exercise: Exercise, criteria: dict[str, dict[str, int]]) -> list[str]:
    lines = [chapter.plain(exercise.statement).lstrip("# "), ""]
    for part in exercise.parts:
        lines += [f"*`{part.name}`, {part.points} points*", ""]
        if part.tests is not None:
            lines += ["By its tests, all or nothing.", ""]
            continue
        code = part.answer == part.name and not part.reference.startswith("<!--")
        answer = chapter.plain(model_answer(part))
        lines += [f"```python\n{answer}\n```" if code else answer, "", "Criteria:", ""]
        lines += [f"- {points}: {words}" for words, points in criteria.get(part.name, {}).items()]
        lines += [""]
    return lines


def release(out: Path) -> None:
    """Write the student notebooks, the stored results that their cells read, and the rubric."""
    chapters = read_chapters()
    (out / "student").mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        nbformat.write(student_version(chapter), out / "student" / chapter.path.name)
    shutil.copytree(chapters[0].path.parent / "results", out / "student" / "results", dirs_exist_ok=True)
    (out / "rubric.md").write_text(rubric(chapters, read_criteria()), encoding="utf-8")
    print(f"{len(chapters)} notebooks in {out / 'student'}, the rubric in {out / 'rubric.md'}")


# ---- grade ----


class Unreadable(Exception):
    """A file is no submission; the message says why."""


def read_answers(path: Path) -> dict[str, str]:
    """Return the sources of a notebook's cells by grade_id; of copies the last one, as a kernel would have it."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise Unreadable(f"not a file of at most {LARGEST // 2**20} MB")
        answers = {}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            name = cell.get("metadata", {}).get("nbgrader", {}).get("grade_id")
            source = cell.get("source", "")
            answers[str(name)] = source if isinstance(source, str) else "".join(source)
        return answers
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"not a notebook ({type(error).__name__})") from error


def grade_one(path: Path, name: str, chapters: list[Chapter]) -> dict:
    """Return the points of one submission; whatever it holds, this neither raises nor waits long."""
    from examiner import verdicts

    try:
        answers = read_answers(path)
        chapter = max(chapters, key=lambda each: sum(part.answer in answers for part in each.parts))
        if not any(part.answer in answers for part in chapter.parts):
            raise Unreadable("no cell of it belongs to an exercise of this book")
    except Unreadable as error:
        return {"submission": name, "error": str(error), "points": 0, "exercises": []}
    found, rows = verdicts(chapter, answers), []
    for exercise in chapter.exercises:
        for part in exercise.parts:
            if part.tests is None:
                blank = answers.get(part.answer, "").strip() in STUBS
                points, remark = (0, "not answered") if blank else (None, "to be marked")
            else:
                remark = found[part.name]
                points, remark = (part.points, "") if remark is None else (0, remark)
            rows.append(
                {
                    "exercise": exercise.number,
                    "grade_id": part.name,
                    "points": points,
                    "of": part.points,
                    "remark": remark,
                }
            )
    return {
        "submission": name,
        "chapter": chapter.path.stem,
        "points": sum(row["points"] or 0 for row in rows),
        "of": sum(row["of"] for row in rows),
        "to_be_marked": sum(row["of"] for row in rows if row["points"] is None),
        "exercises": rows,
    }


def grade(path: Path, out: Path) -> None:
    """Grade a notebook or a folder of them, one after the other, and write what came out."""
    from examiner import load_modules

    folder = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.ipynb")) if path.is_dir() else [path] if path.exists() else []
    files = [file for file in files if ".ipynb_checkpoints" not in file.parts]
    if not files:
        raise SystemExit(f"no notebook at {path}")
    chapters, grades = read_chapters(), []
    load_modules(chapters)
    for file in files:
        grades.append(grade_one(file, str(file.relative_to(folder)), chapters))
        print(in_short(grades[-1]), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "grades.json").write_text(
        json.dumps(grades, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
    )
    with (out / "grades.csv").open("w", encoding="utf-8", errors="replace", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        writer.writerows(row for each in grades for row in table_rows(each))
    print(f"{len(grades)} submissions, in {out / 'grades.json'} and {out / 'grades.csv'}")


def table_rows(result: dict) -> list[list]:
    """One row for each part of a submission, or one that says why there is none."""
    rows = result["exercises"] or [{"points": 0, "remark": result["error"]}]
    return [[({**result, **row}).get(column) for column in COLUMNS] for row in rows]


def in_short(result: dict) -> str:
    if "error" in result:
        return f"{result['submission']}: {result['error']}"
    marked = result["of"] - result["to_be_marked"]
    return f"{result['submission']}: {result['points']} of {marked}, {result['to_be_marked']} to be marked"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hand out the exercises, and grade what comes back.")
    commands = parser.add_subparsers(dest="command", required=True)
    handing_out = commands.add_parser("release", help="student notebooks and the rubric")
    handing_out.add_argument("out", type=Path, metavar="OUT")
    grading = commands.add_parser("grade", help="points of one submission, or of a folder of them")
    grading.add_argument("path", type=Path, metavar="PATH")
    grading.add_argument("--out", type=Path, default=Path("build/grades"), help="default: build/grades")
    options = parser.parse_args(arguments)
    if options.command == "release":
        release(options.out)
    else:
        grade(options.path, options.out)
    return 0


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}  # before torch: a process with threads forks badly
    sys.exit(main())
