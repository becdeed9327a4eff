"""The page *Paper tables*: what the papers print, what their code states, and what was measured here, and where."""

import json
from collections.abc import Container, Mapping
from pathlib import Path
from statistics import fmean

import yaml
from equations import anchor

INTRODUCTION = """# Paper tables

The headline tables of the five papers, row by row, beside what their authors' code states and what this book has
measured. Ours are small: handwritten digits on a processor, with another network, other data and, for samples, another
distance than the paper's FID. Where a row has two figures, compare the order of the rows and not the figures. None of
them is typed: the page computes them from the results that are stored with the chapters, and a row without one says
*not run here*. A dash under *official code* means that it states no figure.
"""


def read(root: Path) -> list[dict]:
    """The tables as ``paper_tables.yml`` lists them."""
    return yaml.safe_load((root / "book" / "paper_tables.yml").read_text(encoding="utf-8"))


def vocabulary(result: Mapping) -> dict:
    """What an expression under ``ours`` may speak of: the stored result, and means over its seeds."""

    def mean(values: list) -> float | tuple[float, ...]:
        return tuple(map(fmean, zip(*values, strict=True))) if isinstance(values[0], tuple) else fmean(values)

    def seeded(of) -> float | tuple[float, ...]:
        return mean([of(seed) for seed in result["seeds"]])

    def looks(row: Mapping) -> tuple[float, float]:
        return row["1000"]["total"], row["looks"]["distance"]

    def rows(key: str, seed: int) -> Mapping:
        return result["rows"][f"{key}, {seed}"]

    return dict(result) | {
        "seeded": seeded,
        "looks": looks,
        "simple": lambda row: tuple(map(min, looks(row["large"]), looks(row["small"]))),
        "gain": lambda row: row["K"] - row["L_null"],
        "change": lambda key: seeded(lambda s: 1000 * (rows(key, s)["loss"] - rows("base", s)["loss"])),
        "scores": lambda key: tuple(fmean(result["sets"][key][it]) for it in ("distance", "precision", "recall")),
        "station": lambda key: seeded(lambda s: rows(key, s)["distance"]),
    }


def ours(expression: str, result: Mapping, form: str) -> str:
    """The value of an expression over a stored result, rounded; several values stand with semicolons between them."""
    value = eval(expression, vocabulary(result))
    values = value if isinstance(value, tuple) else (value,)
    return "; ".join(form.format(v).replace("-", "−") for v in values)


def page(root: Path, statements: Container[str]) -> str:
    """The page in Markdown; ``statements`` are the tables that stand in a chapter, and can be linked to."""
    lines, paper = [INTRODUCTION], None
    titles = yaml.safe_load((root / "book" / "equations.yml").read_text(encoding="utf-8"))
    for table in read(root):
        if table["paper"] != paper:
            paper = table["paper"]
            lines += [f"## {paper}", "", f"{titles[paper]['title']}.", ""]
        name = f"{paper} {table['table']}"
        where = f"[]({'#' + table['section']})"
        also = f"; the table stands at [{name}](#{anchor(name)})" if name in statements else ""
        lines += [f"### {table['table']}: {table['title']}", "", f"{table['says']} In the book: {where}{also}.", ""]
        lines += ["| | paper | official code | ours | where ours was run |", "|---|---|---|---|---|"]
        result = (
            json.loads((root / f"chapters/results/{table['result']}.json").read_text()) if "result" in table else {}
        )
        for row in table["rows"]:
            here, run = "not run here", "–"
            if "ours" in row:
                here = ours(row["ours"], result, table["format"])
                run = f"{table['where']}; {result['machine'].partition(',')[0]}"
            lines.append(f"| {row['what']} | {row['paper']} | {row.get('official', '–')} | {here} | {run} |")
        if result:
            made = f"`{result['command']}`, commit {result['commit']}, {result['machine']}, {result['date']}"
            lines += ["", f"Ours: {made}."]
        lines.append("")
    return "\n".join(lines) + "\n"
