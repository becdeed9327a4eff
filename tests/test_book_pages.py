"""The pages of the book that are made from the library and from the chapters, before a browser sees them."""

import json
import re
import sys
from pathlib import Path

import api
import equations
import notation
import paper_tables
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from book_reading import alternative_text, words  # noqa: E402 (an extension of the book's builder, no package)

# ---- the API reference ----

SOURCE = '''
"""A module (DDPM 1)."""

@dataclass
class Thing(Base):
    """It has *stars*, ``code_with_*`` and x_t (DDPM 1, DDPM 99).

    Args:
        x: first, over
            two lines.
        y: second.

    Raises ValueError.
    """

    size: int = 3
    """How large."""

    def __init__(self, x: Float[Tensor, "batch *dims"], y=None):
        self.x = x

    def show(self) -> str:
        """Its name."""
        return "```"

    def _hide(self): ...


def make(
    x: int,
) -> Thing:
    """Make one."""
    return Thing(x)


def _private(): ...
'''


@pytest.fixture
def module(tmp_path) -> api.Module:
    path = tmp_path / "minidiff" / "part" / "m.py"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return api.Module(path, tmp_path, {"DDPM 1"})


def test_an_entry_is_what_the_source_says(module):
    page = "\n".join(module.page())
    assert page.startswith("(minidiff.part.m)=\n## m\n\nA module ([DDPM 1](#ddpm-1)).")
    assert "@dataclass\nclass Thing(Base):\n    size: int = 3\n    def __init__(self, x: Float[Tensor," in page
    assert r"It has \*stars\*, ``code_with_*`` and x\_t ([DDPM 1](#ddpm-1), DDPM 99)." in page
    assert "- `x`: first, over two lines.\n- `y`: second." in page and "- `size`: How large." in page
    assert (
        "(minidiff.part.m.Thing.show)=" in page and "``````python\ndef make(\n    x: int,\n) -> Thing:\n``````" in page
    )
    assert "lines 4–26" in page and "(minidiff.part.m._private)=" not in page and "Thing._hide)=" not in page


def test_every_function_that_cites_an_equation_is_in_the_reference():
    known, trace = api.names(ROOT), equations.read(ROOT)
    functions = {function for places in trace.citations.values() for function in places}
    assert len(functions) > 60
    assert [function for function in functions if api.entry(function, known) is None] == []
    assert api.entry("minidiff.plots:_secret.part", known) == "minidiff.plots" and api.entry("torch:nn", known) is None


def test_the_names_that_everybody_imports_are_in_the_reference():
    import minidiff as md

    known = {name.rpartition(".")[2] for name in api.names(ROOT)}
    functions = [name for name, value in vars(md).items() if callable(value) and hasattr(value, "__module__")]
    assert len(functions) > 60
    assert [name for name in functions if name not in known] == []


def test_no_two_entries_have_the_same_anchor():
    names = [name.lower() for name in api.names(ROOT)]
    assert len(names) == len(set(names)) > 250


# ---- the tables ----


def numbers(text: str) -> list[str]:
    """The numbers of a text, with their signs, in the order in which they stand."""
    return re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", text.replace("−", "-").replace(r"\ ", " "))


def test_the_papers_figures_are_those_that_the_chapters_quote():
    """Two people typed them: those in the chapters, which cells assert, are the oracle."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "chapters").glob("[0-9]*.py")))
    quoted = {}
    for block in re.findall(r"\$\$(?:(?!\$\$).)*?Table \d\}(?:(?!\$\$).)*?\$\$", text, flags=re.S):
        for name in re.findall(r"(\w+ Table \d)\}", block):
            quoted[name] = set(numbers(re.sub(r"[{}^*]|\\mathbf|\\ |\\pm", " ", block)))
    not_quoted, compared = {"before this paper", "ImageNet at 64×64, trained anew"}, 0
    for table in paper_tables.read(ROOT):
        name = f"{table['paper']} {table['table']}"
        if name in quoted:
            rows = [row["paper"].replace("± ", "") for row in table["rows"] if row["what"] not in not_quoted]
            figures = [figure for row in rows for figure in numbers(row)]
            assert [figure for figure in figures if figure not in quoted[name]] == [], name
            compared += len(figures)
    assert compared > 150


def test_ours_is_never_typed():
    tables = paper_tables.read(ROOT)
    assert {table["paper"] for table in tables} == {"SD", "DDPM", "IDDPM", "ADM", "EDM"}
    rows = [row for table in tables for row in table["rows"]]
    assert len(rows) > 90 and all(isinstance(row["paper"], str) for row in rows)
    for row in rows:
        assert not re.search(r"\d\.\d", row.get("ours", "")), row
        assert not re.search(r"UNSURE|\[M\]", str(row)), row
    page = paper_tables.page(ROOT, {"SD Table 1"})
    assert page.count("not run here |") == sum("ours" not in row for row in rows)
    assert "[SD Table 1](#sd-table-1)" in page and "#sd-table-2" not in page


def test_ours_is_computed_from_the_stored_result():
    result = {
        "seeds": [0, 1],
        "rows": {
            "E, 0": {"distance": 1.0},
            "E, 1": {"distance": 2.5},
            "base, 0": {"loss": 0.04},
            "base, 1": {"loss": 0.05},
            "heads, 0": {"loss": 0.039},
            "heads, 1": {"loss": 0.047},
            "roll": {"K": -1.5, "L_null": -4.0},
        },
        "sets": {"told, 1": {"distance": [1, 2], "precision": [0.5, 0.7], "recall": [0, 1]}},
    }
    assert paper_tables.ours("station('E')", result, "{:.2f}") == "1.75"
    assert paper_tables.ours("change('heads')", result, "{:+.2f}") == "−2.00"
    assert paper_tables.ours("gain(rows['roll'])", result, "{:.1f}") == "2.5"
    assert paper_tables.ours("scores('told, 1')", result, "{:.1f}") == "1.5; 0.6; 0.5"
    kinds = {
        k: {"1000": {"total": bits}, "looks": {"distance": far}} for k, bits, far in (("large", 3, 7), ("small", 4, 6))
    }
    assert paper_tables.ours("seeded(lambda s: simple(rows))", {"seeds": [0], "rows": kinds}, "{:.0f}") == "3; 6"
    stored = json.loads((ROOT / "chapters/results/ddpm_ablation.json").read_text())["rows"]["eps, simple"]["frechet"]
    assert f"| 3.17 | – | {stored:.2f} |" in paper_tables.page(ROOT, ())


# ---- notation, glossary, figures in words ----


def test_the_notation_is_that_of_the_chapters():
    page = notation.page(ROOT)
    guide = (ROOT / "chapters" / "00_reading_guide.py").read_text(encoding="utf-8")
    symbols = re.search(r"# \| symbol \| in code \| meaning \|\n(?:# \|.*\n)+", guide)[0].replace("# |", "|")
    assert symbols in page and symbols.count("\n") > 20
    chapters = [path for path in (ROOT / "chapters").glob("[0-9]*.py") if "| here, in code |" in path.read_text()]
    assert page.count("| here, in code |") == len(chapters) >= 6


def test_the_glossary_says_each_term_shortly_and_where_it_is_explained():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)\n((?:  .*\n)+)", text, flags=re.M)
    assert 60 <= len(terms) <= 90
    names = [re.sub(r"\W", "", term).lower() for term, _ in terms]
    assert len(names) == len(set(names))
    for term, words_ in terms:
        assert re.search(r"\]\(#\S+\)", words_), f"{term}: where is it explained?"
        assert len(re.sub(r"\[.*?\]\(.*?\)", "", words_)) < 400, f"{term}: one or two sentences"


def test_a_figure_is_told_by_its_titles_and_axes():
    code = """
    fig, axes = plt.subplots(2)
    axes[0].set(title="Loss $\\\\bar\\\\alpha_t$", xlabel="step $t$", ylabel=f"{name}")
    axes[1].set_title("Error."); axes[1].set_xlabel("step $t$")
    fig.suptitle("It falls")
    """
    said = alternative_text(re.sub("^    ", "", code, flags=re.M))
    assert said == "It falls. Panels: Loss alpha bar_t; Error. Across: step t."
    assert alternative_text('md.show_grid(x, title="Digits")') == "Digits."
    assert alternative_text("plt.plot(x, label='no title')") == ""


@pytest.mark.parametrize(
    ("tex", "spoken"),
    [
        (r"$\hat x_0$ settles", "x hat_0 settles"),
        (r"$\sqrt{1-\bar\alpha}$", "root of 1- alpha bar"),
        (r"$S_{\mathrm{churn}}$", "S_churn"),
        (r"$1\dots t$ of 1000", "1 … t of 1000"),
        ("plain, 5 %", "plain, 5 %"),
    ],
)
def test_tex_is_read_aloud(tex, spoken):
    assert words(tex) == spoken
