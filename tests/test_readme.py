"""The commands that these pages give exist: targets of the Makefile, commands and options of minidiff, files."""

import itertools
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = ("README.md", "CONTRIBUTING.md", "book/intro.md", "chapters/00_reading_guide.py")
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def commands(text: str) -> list[list[str]]:
    """Return the commands in the fenced shell blocks and in the code spans of a page, as words without comments."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    spans = re.findall(r"`((?:make|minidiff|python book/\S+) [^`]+)`", prose)
    lines = "\n".join(blocks + spans).replace("\\\n", " ").splitlines()
    split = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in split if words]


def read(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"^# ?", "", text, flags=re.M) if page.endswith(".py") else text


ALL = [(page, words) for page in PAGES for words in commands(read(page))]


def unknown_targets(words: list[str]) -> set[str]:
    pairs = itertools.pairwise(words)
    return {word for before, word in pairs if before != "-C" and not re.match("-|.*=", word)} - TARGETS


@cache
def help_of(*words: str) -> str:
    result = subprocess.run([str(BIN / "minidiff"), *words, "--help"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def unknown_options(words: list[str]) -> set[str]:
    """Return the options of a minidiff command that its own help does not list."""
    subject = words[1:3] if words[1] == "train" else words[1:2]
    options = {word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", help_of(*subject)))
    return options - known


@pytest.mark.parametrize(("page", "words"), ALL, ids=[" ".join(words) for _, words in ALL])
def test_every_command_exists(page, words):
    if words[0] == "torchrun":
        words = words[words.index("minidiff") :]
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        assert unknown_targets(words) == set()
    elif program == "minidiff":
        assert words[1] == "NAME" or words[1] in help_of()
        assert "NAME" in words or unknown_options(words) == set()
    elif program == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()
    elif program == "jupyter-book":
        assert words == ["jupyter-book", "build", "book/"]
    else:  # a word that none of these pages should teach without a test of it
        assert program in ("source", "conda", "pip", "python3")


def test_the_first_commands_are_the_ones_that_are_checked():
    readme = [words for page, words in ALL if page == "README.md"]
    assert readme[:2] == [["make", "demo"], ["make", "test"]]
    for words in ("minidiff train digits", "minidiff sample digits", "minidiff likelihood", "jupyter-book build book/"):
        assert any(" ".join(command).startswith(words) for command in readme)


@pytest.mark.parametrize("page", PAGES[:2])
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)\)", read(page))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_what_does_not_exist_is_found():
    text = "```sh\nmake demo  # yes\n$ make nothing -C there\nminidiff sample digits \\\n  -n 4\n```\nor `make nought`"
    found = commands(text)
    assert found == [
        ["make", "demo"],
        ["make", "nothing", "-C", "there"],
        ["minidiff", "sample", "digits", "-n", "4"],
        ["make", "nought"],
    ]
    assert [unknown_targets(words) for words in (found[0], found[1], found[3])] == [set(), {"nothing"}, {"nought"}]
    assert unknown_options(["minidiff", "sample", "digits", "-n", "4", "--sed", "0"]) == {"--sed"}
