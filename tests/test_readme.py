"""The commands that these pages give exist: targets of the Makefile, commands and options of minidiff, files."""

import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import readme
import yaml
from PIL import Image

import minidiff

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = ("README.md", "CONTRIBUTING.md", "book/intro.md", "chapters/00_reading_guide.py")
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def commands(text: str) -> list[list[str]]:
    """Return the commands in the fenced shell blocks and in the code spans of a page, as words without comments."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    spans = re.findall(r"`((?:make|minidiff) [^`]+|python book/[^`]+)`", prose)
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
    elif program in ("python", "pytest") and words[1].endswith(".py"):
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


@pytest.mark.parametrize("name", readme.TABLES)
def test_a_table_is_what_its_script_writes(name):
    """Should one be older than what it comes from, ``python book/readme.py`` writes it again."""
    assert readme.between(read("README.md"), name)[0] == readme.TABLES[name]()


def test_every_file_tells_the_same_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert minidiff.__version__ == project["version"] == citation["version"]
    assert project["license"] == citation["license"] == read("LICENSE").split()[0] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and len(citation["references"]) == 5
    newest = re.search(r"^## \[(.*?)\].*?(?=^## |\Z)", read("CHANGELOG.md"), flags=re.M | re.S)
    assert project["version"] in newest[0]


def test_the_first_thing_to_see_is_the_picture_of_both_chains():
    above, _, below = read("README.md").partition("![")
    alternative, path = re.match(r"(.*)\]\((.*)\)", below).groups()
    assert len(above.splitlines()) < 10 and "noise" in alternative
    assert (ROOT / path).stat().st_size < 150_000
    with Image.open(ROOT / path) as picture:
        assert picture.width >= 700


def test_the_examples_of_style_are_ours_to_the_letter():
    examples = re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", read("CONTRIBUTING.md"), flags=re.S)
    assert [path.split("/")[0] for path, _ in examples] == ["minidiff", "tests"]
    for path, example in examples:
        assert example in (ROOT / path).read_text(encoding="utf-8")


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
