"""The trace: which equation of which paper is derived where, checked by which cell, and implemented by which function.

Three kinds of mark are the only source of truth; the manifest ``equations.yml`` says which equations must be there.

    tag        \\tag{DDPM 8}      in a chapter's text      the equation stands here
               *Also IDDPM 12.*  a line below it          and under this number in a later paper
    check      # check: DDPM 8   first in a code cell     this cell would fail if the equation were wrong
    citation   (DDPM 8)          in a docstring           this function is that equation

A mark names one statement or several: ``DDPM 17–22``, ``DDPM 4, IDDPM 8``, ``DDPM Alg. 1``, ``DDPM Table 2``; the
book's own equations, which no paper numbers, are called ``0.4`` after their chapter, and tagged and checked alike.
Used by the tests (nothing is missing, nothing dangles) and by the book (the equation index).
"""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

PAPERS = ("SD", "DDPM", "IDDPM", "ADM", "EDM", "DDIM", "SDE")
LABEL = "|".join(PAPERS)
ITEM = re.compile(rf"(?:(?P<paper>{LABEL}) )?(?P<kind>Alg\. |Table )?(?P<first>[A-Z]?[\d.]*\d)(?:[-–](?P<last>\d+))?")
OWN = re.compile(r"\d+\.\d+")  # an equation of the book that no paper numbers: the fourth of chapter 00 is 0.4
CITES = re.compile(rf"(?:{LABEL}) (?:\d|[Ee]q|Alg|Table)")  # § 3, App. A and Fig. 2 state nothing that could be proven


def expand(mark: str) -> list[str]:
    """Return the statements that a mark names: ``"DDPM 1–3, Alg. 1"`` gives DDPM 1, DDPM 2, DDPM 3 and DDPM Alg. 1."""
    statements, paper = [], None
    for item in re.split(r"[,;]\s*", mark.strip()):
        if OWN.fullmatch(item):
            statements.append(item)
            continue
        match = ITEM.fullmatch(item)
        paper = (match and match["paper"]) or paper
        if match is None or paper is None:
            raise ValueError(f"cannot read {item!r} in {mark!r}: write for example DDPM 8, DDPM 17–22 or DDPM Alg. 1")
        name = f"{paper} {match['kind'] or ''}"
        if match["last"] is None:
            statements.append(name + match["first"])
            continue
        numbers = range(int(match["first"]), int(match["last"]) + 1)
        if len(numbers) < 2:
            raise ValueError(f"the range {item!r} in {mark!r} runs backwards")
        statements += [f"{name}{k}" for k in numbers]
    return statements


def anchor(statement: str) -> str:
    """Return the name by which pages link to an equation: DDPM Alg. 1 is ddpm-alg-1, the book's own 0.4 is eq-0-4."""
    name = re.sub(r"[ .]+", "-", statement.lower())
    return f"eq-{name}" if OWN.fullmatch(statement) else name


@dataclass
class Trace:
    """Who states, checks and cites each statement; ``faults`` tells of marks that are malformed or misplaced."""

    tags: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # statement -> chapters
    checks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # statement -> chapters
    citations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # -> module:Class.method
    faults: list[str] = field(default_factory=list)

    def _add(self, where: dict[str, list[str]], mark: str, place: str) -> None:
        try:
            for statement in expand(mark):
                where[statement].append(place)
        except ValueError as error:
            self.faults.append(f"{place}: {error}")

    def read_chapter(self, name: str, text: str) -> None:
        """Collect the tags and checks of a chapter, given as py:percent text."""
        for cell in re.split(r"^# %%", text, flags=re.M)[1:]:
            head, _, body = cell.partition("\n")
            if "[markdown]" in head:
                for mark in re.findall(r"\\tag\*?\{([^}]*)\}|^# \*Also ([^*]+)\.\*$", body, flags=re.M):
                    self._add(self.tags, "".join(mark), name)
                continue
            head = re.match(r"(?:\s*#.*\n?)*", body)[0]
            marks, heading = (re.findall(r"^#\s*check:(.*)", part, flags=re.M) for part in (body, head))
            for mark in marks[len(heading) :]:
                self.faults.append(f"{name}: '# check:{mark}' must stand at the head of its cell")
            if heading and "assert" not in body:
                self.faults.append(f"{name}: the cell '# check:{heading[0]}' asserts nothing")
                continue
            for mark in heading:
                self._add(self.checks, mark, name)

    def read_module(self, name: str, text: str) -> None:
        """Collect the citations in the docstrings of a module, given as its source."""

        def visit(node: ast.AST, name: str, joint: str) -> None:
            for mark in re.findall(rf"\(((?:{LABEL})\s[^()]*)\)", ast.get_docstring(node) or ""):
                items = re.split(r"[,;] (?:or |and )?", re.sub(r"\s+", " ", mark))
                if items := [item for item in items if ITEM.fullmatch(item) or CITES.match(item)]:  # the rest is prose
                    self._add(self.citations, ", ".join(items), name)
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    visit(child, f"{name}{joint}{child.name}", ".")

        visit(ast.parse(text), name, ":")

    def problems(self, manifest: Mapping) -> list[str]:
        """Return a sentence for every mark that is missing, dangles or contradicts the manifest."""
        wanted = [f"{paper} {key}" for paper, entry in manifest.items() for key in entry["equations"]]
        found = list(self.faults)
        found += [f"{s}: in the manifest, but no chapter has \\tag{{{s}}}" for s in wanted if s not in self.tags]
        for statement, chapters in self.tags.items():
            if len(chapters) > 1:
                found.append(f"{statement}: tagged more than once ({', '.join(chapters)}); prove it once, then link")
            found += [
                f"{statement}: tagged in {chapter}, but no cell there starts with '# check: {statement}'"
                for chapter in sorted(set(chapters) - set(self.checks.get(statement, ())))
            ]
            if statement.split()[0] in manifest and statement not in wanted:
                found.append(f"{statement}: tagged in {chapters[0]}, but not in the manifest")
        for statement, chapters in self.checks.items():
            strangers = sorted(set(chapters) - set(self.tags.get(statement, ())))
            found += [f"{statement}: checked in {chapter}, which has no \\tag{{{statement}}}" for chapter in strangers]
        for statement, functions in self.citations.items():
            if statement.split()[0] in manifest and statement not in self.tags:
                found += [f"{statement}: cited by {function}, but no chapter has its tag" for function in functions]
        return found


def read(root: Path) -> Trace:
    """Collect every mark of the chapters and of the library below ``root``."""
    trace = Trace()
    for path in sorted((root / "chapters").glob("[0-9]*.py")):
        trace.read_chapter(path.stem, path.read_text(encoding="utf-8"))
    for path in sorted((root / "minidiff").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trace.read_module(name, path.read_text(encoding="utf-8"))
    return trace


def read_manifest(root: Path) -> dict:
    """Return the manifest: paper -> title, chapter, equations (number -> what it says)."""
    return yaml.safe_load((root / "book" / "equations.yml").read_text(encoding="utf-8"))


def index_page(trace: Trace, manifest: Mapping, chapters: Iterable[str], entry: Callable[[str], str | None]) -> str:
    """Return the book's equation index in Markdown.

    ``chapters`` are the names that can be linked to; ``entry`` gives the anchor of a function in the API reference.
    """
    chapters = set(chapters)

    def chapter(name: str) -> str:
        number = name.partition("_")[0]
        return f"[{number}]({name}.ipynb)" if name in chapters else number

    def function(name: str) -> str:
        words, target = f"`{name.partition(':')[2] or name}`", entry(name)
        return f"[{words}](#{target})" if target else words

    lines = [
        "# Equation index",
        "",
        "Every numbered equation and algorithm that this book derives: where it stands, and which functions of the",
        "library are that equation. A number leads to the equation, a tick to the cell that asserts it each time the",
        "chapter runs, a function to its signature and its source. The page is made from the chapters and the",
        "docstrings themselves when the book is built.",
    ]
    for paper, entries in manifest.items():
        lines += ["", f"## {paper}", "", f"{entries['title']}.", ""]
        lines += ["| | says | chapter | checked | in the library |", "|---|---|:---:|:---:|---|"]
        for key, says in entries["equations"].items():
            statement = f"{paper} {key}"
            number = f"({key})" if str(key)[0].isdigit() else key
            where = trace.tags.get(statement, ())
            tick = "✓" if trace.checks.get(statement) else "–"
            if chapters.intersection(where):
                number = f"[{number}](#{anchor(statement)})"
                tick = f"[✓](#check-{anchor(statement)})" if tick == "✓" else tick
            places = ", ".join(map(chapter, where))
            functions = "<br>".join(sorted({function(name) for name in trace.citations.get(statement, ())}))
            lines.append(f"| {number} | {says} | {places} | {tick} | {functions} |")
    return "\n".join(lines) + "\n"
