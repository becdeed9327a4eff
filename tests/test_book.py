"""The book: the exact command builds it from a clean tree without a warning, and a browser shows every page whole."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import equations
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
    result = subprocess.run([*BUILD, *flags], cwd=tree, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-6000:]
    return output


@pytest.fixture(scope="module")
def html(tree) -> Path:
    """The book as a fresh clone builds it, where whatever it has to say is an error."""
    build(tree, "-W", "-n", "--keep-going")
    return tree / "book" / "_build" / "html"


class Page(HTMLParser):
    """What a page links to, and what can be linked to on it; its pictures' alternative texts."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.ids, self.links, self.alts = text, set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        if tag == "img":
            self.alts.append(found.get("alt"))


@pytest.fixture(scope="module")
def pages(html) -> dict[str, Page]:
    """Every page that a reader can come to, by its address."""
    paths = {path.relative_to(html).as_posix(): path for path in html.rglob("*.html") if "_static" not in path.parts}
    del paths["index.html"]  # it only sends the browser on
    assert len(paths) >= 25
    return {name: Page(path.read_text(encoding="utf-8")) for name, path in sorted(paths.items())}


def test_the_exact_command_builds_the_book(tree, html):
    output = build(tree)
    assert "build succeeded." in output and "WARNING" not in output, output[-6000:]  # otherwise: succeeded, 1 warning.


def test_every_page_of_the_table_of_contents_is_built(html):
    names = re.findall(r"^\s*(?:root:|- file:)\s*(\S+)", (ROOT / "book" / "_toc.yml").read_text(), flags=re.M)
    assert len(names) >= 25
    assert [name for name in names if not (html / f"{name}.html").is_file()] == []


def test_every_chapter_is_in_the_table_of_contents():
    listed = set(re.findall(r"- file: chapters/(\d\S+)", (ROOT / "book" / "_toc.yml").read_text()))
    assert listed == {path.stem for path in (ROOT / "chapters").glob("[0-9]*.py")}


def test_every_link_leads_somewhere(html, pages):
    broken, followed = [], 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            target = Path(os.path.normpath(Path(name).parent / unquote(parts.path))).as_posix() if parts.path else name
            if not (html / target).is_file():
                broken.append(f"{name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                broken.append(f"{name}: {link} has no such place")
    assert not broken and followed > 2500, "\n".join(broken)


def test_every_figure_is_told_in_words(pages):
    alts = [(name, alt) for name, page in pages.items() for alt in page.alts]
    assert len(alts) > 70
    assert [(name, alt) for name, alt in alts if not alt or len(alt) < 20 or " " not in alt or "\\" in alt] == []


def test_the_equation_index_lists_the_manifest(pages):
    index, manifest = pages["chapters/equations.html"], equations.read_manifest(ROOT)
    statements = [f"{paper} {key}" for paper, entry in manifest.items() for key in entry["equations"]]
    assert len(statements) > 400
    fragments = {link.partition("#")[2] for link in index.links}
    assert [s for s in statements if {equations.anchor(s), f"check-{equations.anchor(s)}"} - fragments] == []


def test_a_chapter_can_be_taken_along(html, pages):
    for chapter in sorted((ROOT / "chapters").glob("[0-9]*.py")):
        page = pages[f"chapters/{chapter.stem}.html"]
        assert 'class="left-prev"' in page.text and 'class="right-next"' in page.text
        for source in (chapter, chapter.with_suffix(".ipynb")):
            assert f"../_sources/chapters/{source.name}" in page.links
            assert (html / "_sources" / "chapters" / source.name).read_bytes() == source.read_bytes()


def test_nothing_of_others_is_put_on_every_page():
    """Jupyter Book links every script and style sheet below book/_static from every page."""
    assert {path.name for path in (ROOT / "book" / "_static").rglob("*.[cj]s*")} == {"book.css"}


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
        "<p class=math style='width:60px;overflow:hidden'><mjx-container><i>c=ddddddddddddddd</i></mjx-container></p>"
        "<p class=math style='width:60px;overflow:auto'><mjx-container><i>e=ffffffffffffffffff</i></mjx-container></p>"
        "<p style='color:#888'>pale</p><p style='opacity:.5'>faded</p><h1 style='color:#888'>large</h1>"
        "<details><p style='color:#eee;background:#333'>clear</p>"
        "<p style='color:#777;background:#222'>folded</p></details>"
        "<script>console.error('spoken'); undefined_function()</script>"
    )
    (tmp_path / "night.html").write_text(
        head + "<html data-theme=light><style>@media (prefers-color-scheme: dark) {p {background: #444}}</style><p>Ink."
    )
    with browser.serve(tmp_path) as home:
        assert reader.faults(home + "good.html") == []
        faults = "\n".join(reader.faults(home + "bad.html"))
        night = "\n".join(reader.faults(home + "night.html"))
    assert "dark: contrast" in night and "does not turn dark" in night and "light" not in night
    for expected in (
        "unrendered math Let",
        "unrendered math Then",
        "broken image http://127.0.0.1",
        "404 for",
        "at 390 px: ",
        "request off the machine: https://example.org/a.png",
        "not on the page",
        "an equation that is too wide: a=bb",
        "at 390 px: a part is cut off: c=dd",
        "math error",
        "console error: spoken",
        "uncaught ReferenceError",
        'light: contrast 3.54 of p. "pale"',
        'light: contrast 3.98 of p. "faded"',
        'light: contrast 3.55 of p. "folded"',
    ):
        assert expected in faults
    assert "cut off: e=ff" not in faults and '"large"' not in faults and '"clear"' not in faults
    assert not re.search(r"at 1280 px: \d", faults)


@pytest.mark.browser
def test_every_page_reads_well(reader, html, pages):
    assert 'url=intro.html"' in (html / "index.html").read_text()  # nothing to read there: the browser is sent on
    with browser.serve(html) as home:
        faults = {page: found for page in pages if (found := reader.faults(home + page))}
    assert not faults, "\n".join(f"{page}: {fault}" for page, found in faults.items() for fault in found)


@pytest.mark.browser
def test_search_finds_preconditioning(reader, html):
    results = """(async () => {
        const found = () => [...document.querySelectorAll('#search-results li a')].map(link => link.href);
        const enough = () => found().some(link => link.includes('06_edm.html'));  // they come one by one
        for (let i = 0; i < 500 && !enough(); i++) await new Promise(next => setTimeout(next, 20));
        return found();
    })()"""
    with browser.serve(html) as home, reader.page(f"{home}search.html?q=preconditioning") as session:
        found = reader.evaluate(session, results)
    assert any("06_edm.html" in link for link in found), found
    assert all(link.startswith(home) for link in found)


@pytest.mark.browser
def test_code_can_be_copied(reader, html):
    with browser.serve(html) as home, reader.page(f"{home}chapters/api_minidiff.html") as session:
        count = "document.querySelectorAll('%s').length"
        blocks = reader.evaluate(session, count % "div.highlight pre")
        assert blocks > 10 and reader.evaluate(session, count % "div.highlight button.copybtn") == blocks


# ---- the sliders ----

PLACE = """(() => {
    const range = document.querySelector('#NAME input');
    range.focus();
    range.scrollIntoView({block: 'center', behavior: 'instant'});
    const box = range.getBoundingClientRect();
    return [box.left, box.width, box.top + box.height / 2];
})()"""
SEEN = """(async () => {
    await new Promise(requestAnimationFrame);
    const figure = document.querySelector('#NAME'), range = figure.querySelector('input');
    const pixels = [...figure.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).join();
    const said = figure.querySelector('output').value, spoken = range.getAttribute('aria-valuetext');
    return [Number(range.value), Number(range.max), pixels, said, spoken];
})()"""


def act(reader, session: str, name: str, how: str | float, touch: bool) -> list:
    """Press this key on the slider, or click (tap) this far along it; return its value, the last one, what is seen."""
    left, width, y = reader.evaluate(session, PLACE.replace("NAME", name))
    if isinstance(how, str):
        code = {"End": 35, "Home": 36, "ArrowLeft": 37}[how]
        for kind in ("rawKeyDown", "keyUp"):
            reader.call("Input.dispatchKeyEvent", session, type=kind, key=how, code=how, windowsVirtualKeyCode=code)
    elif touch:
        points = [{"x": left + how * width, "y": y}]
        for kind, at in (("touchStart", points), ("touchEnd", [])):
            reader.call("Input.dispatchTouchEvent", session, type=kind, touchPoints=at)
    else:
        at = {"x": left + how * width, "y": y, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            reader.call("Input.dispatchMouseEvent", session, type=kind, **at)
    return reader.evaluate(session, SEEN.replace("NAME", name))


@pytest.mark.browser
@pytest.mark.parametrize("width", browser.WIDTHS)
def test_a_slider_moves_its_pictures_and_says_so(reader, html, width):
    with browser.serve(html) as home:
        reader.events.clear()
        target = reader.call("Target.createTarget", url="about:blank")["targetId"]
        session = reader.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            reader.call(f"{domain}.enable", session)
        reader.resize(session, width)
        reader.call("Emulation.setTouchEmulationEnabled", session, enabled=width < 500)
        reader.call("Page.navigate", session, url=home + "interactive.html")
        reader.wait_for("Page.loadEventFired", session)
        reader.evaluate(session, browser.SETTLE)
        names = reader.evaluate(session, "[...document.querySelectorAll('figure.slider')].map(figure => figure.id)")
        assert names == ["chain", "guidance", "samplers"]
        for name in names:
            moves = [act(reader, session, name, how, width < 500) for how in ("End", "ArrowLeft", 0.5, "Home")]
            values, (last, *_), pixels, said, spoken = zip(*moves, strict=True)
            assert values[:2] + values[3:] == (last, last - 1, 0) and abs(values[2] - last / 2) <= 1
            assert len(set(pixels)) == len(set(said)) == 4 and said == spoken
        faults = [browser.describe(event, home) for event in reader.events if event.get("sessionId") == session]
        assert not any(faults), faults
        reader.call("Target.closeTarget", targetId=target)
