"""The book: the exact command builds it from a clean tree without a warning, and a browser shows every page whole."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import browser
import pytest

ROOT = Path(__file__).parents[1]
BUILD = [str(Path(sys.executable).parent / "jupyter-book"), "build", "book/"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what a fresh clone holds for the book."""
    tree = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("_build", "__pycache__", ".ipynb_checkpoints", ".*.tmp")
    for name in ("chapters", "minidiff"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    shutil.copytree(ROOT / "book", tree / "book", ignore=lambda d, names: {*ignored(d, names), "chapters"} & set(names))
    return tree


def build(tree: Path, *flags: str) -> str:
    shutil.rmtree(tree / "book" / "_build", ignore_errors=True)
    result = subprocess.run([*BUILD, *flags], cwd=tree, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-6000:]
    return output


@pytest.fixture(scope="module")
def html(tree) -> Path:
    """The book as the exact command builds it."""
    output = build(tree)
    assert "build succeeded." in output and "WARNING" not in output, output[-6000:]  # otherwise: succeeded, 1 warning.
    return tree / "book" / "_build" / "html"


def test_every_page_of_the_table_of_contents_is_built(html):
    names = re.findall(r"^\s*(?:root:|- file:)\s*(\S+)", (ROOT / "book" / "_toc.yml").read_text(), flags=re.M)
    assert len(names) >= 5
    assert [name for name in names if not (html / f"{name}.html").is_file()] == []


def test_every_chapter_is_in_the_table_of_contents():
    listed = set(re.findall(r"- file: chapters/(\d\S+)", (ROOT / "book" / "_toc.yml").read_text()))
    assert listed == {path.stem for path in (ROOT / "chapters").glob("[0-9]*.py")}


def test_the_equation_index_lists_the_manifest(html):
    page = (html / "chapters" / "equations.html").read_text(encoding="utf-8")
    assert page.count("<tr") >= 26
    assert "✓" in page


def test_a_strict_build_has_nothing_to_say(tree, html):
    build(tree, "-W", "-n", "--keep-going")


# ---- what a reader sees ----


@pytest.fixture(scope="module")
def reader():
    executable = browser.find()
    if executable is None:
        reason = "NO CHROMIUM: nobody looked at the pages of the book (Debian, Ubuntu: apt install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    with browser.Browser(executable) as reader:
        yield reader


@pytest.mark.browser
def test_the_reader_sees_what_is_wrong(reader, tmp_path):
    """The reader of pages is itself an oracle: one page with every fault, and one with none."""
    head = "<!doctype html><link rel=icon href=data:,><meta name=viewport content=width=device-width>"
    (tmp_path / "good.html").write_text(head + "<p>It costs $5; <code>$x$</code> and <pre>\\(y\\)</pre>.")
    (tmp_path / "bad.html").write_text(
        head + "<p>Let \\(x\\) be.</p><p>Then $y$ is.</p><img src=missing.png><div style='width:900px'>wide</div>"
        "<img src=https://example.org/a.png><mjx-container>(???)</mjx-container><mjx-merror>bad</mjx-merror>"
        "<p style='width:90px;overflow:auto'><mjx-container display=true><b>a=bbbbbbbbbbbbbbbb</b></mjx-container></p>"
        "<script>console.error('spoken'); undefined_function()</script>"
    )
    with browser.serve(tmp_path) as home:
        assert reader.faults(home + "good.html") == []
        faults = "\n".join(reader.faults(home + "bad.html"))
    for expected in (
        "unrendered math Let",
        "unrendered math Then",
        "broken image http://127.0.0.1",
        "404 for",
        "at 390 px: ",
        "request off the machine: https://example.org/a.png",
        "not on the page",
        "an equation that is too wide: a=bb",
        "math error",
        "console error: spoken",
        "uncaught ReferenceError",
    ):
        assert expected in faults
    assert "at 1280 px" not in faults


@pytest.mark.browser
def test_every_page_reads_well(reader, html):
    pages = {path.relative_to(html).as_posix() for path in html.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) >= 6
    assert 'url=intro.html"' in (html / "index.html").read_text()  # nothing to read there: the browser is sent on
    with browser.serve(html) as home:
        faults = {page: found for page in sorted(pages - {"index.html"}) if (found := reader.faults(home + page))}
    assert not faults, "\n".join(f"{page}: {fault}" for page, found in faults.items() for fault in found)
