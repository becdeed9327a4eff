"""The page *Notation*: the symbols of the whole book from chapter 00, and each paper's letters from its chapter."""

import re
from pathlib import Path

INTRODUCTION = """# Notation

Two kinds of table, both taken from the chapters when the book is built. The first holds the symbols of the whole book,
from [](#s0-11) of the reading guide. The others, one from the opening of each chapter, translate a paper's letters.

## The symbols of the book
"""


def tables(text: str) -> list[list[str]]:
    """The Markdown tables of a chapter, given as py:percent text, each as its lines."""
    return [
        re.sub(r"^# ", "", block, flags=re.M).splitlines() for block in re.findall(r"(?:^# \|.*\n)+", text, flags=re.M)
    ]


def page(root: Path) -> str:
    """The page in Markdown."""
    paths = sorted((root / "chapters").glob("[0-9]*.py"))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    symbols = next(table for table in tables(texts["00_reading_guide"]) if table[0].startswith("| symbol | in code |"))
    lines = [INTRODUCTION, *symbols, ""]
    for name, text in texts.items():
        letters = next((table for table in tables(text) if table[0].endswith("| meaning | here, in code |")), None)
        if letters:
            title = re.search(r"^# # (.*)", text, flags=re.M)[1]
            lines += [f"## [{title}]({name}.ipynb)", "", *letters, ""]
    return "\n".join(lines)
