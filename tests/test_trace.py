"""The trace: every equation of the manifest has a tag, every tag a check, and every citation in the library a tag."""

from pathlib import Path

import equations
import pytest
from equations import Trace, expand

ROOT = Path(__file__).parents[1]


def test_the_book_keeps_its_word():
    trace = equations.read(ROOT)
    problems = trace.problems(equations.read_manifest(ROOT))
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems)


def test_the_library_cites_what_it_implements():
    assert len(equations.read(ROOT).citations) >= 10


def test_every_chapter_of_the_manifest_exists():
    manifest = equations.read_manifest(ROOT)
    assert set(manifest) <= set(equations.PAPERS)
    assert [c for e in manifest.values() if not (ROOT / "chapters" / f"{(c := e['chapter'])}.py").exists()] == []
    assert [str(key) for key in manifest["DDPM"]["equations"]] == [
        *map(str, range(1, 27)),
        *(f"Alg. {k}" for k in range(1, 5)),
        "Table 2",
    ]


# ---- the join is an oracle, so it is tested as one ----

CHAPTER = r"""
# %% [markdown]
# $$ a = b \tag{DDPM 1}\label{eq:ddpm-1} $$
# $$ c = d \tag{DDPM 2–3, IDDPM 7} $$

# %% tags=["setup"]
# check: DDPM 1
assert True

# %%
# check: DDPM 2–3, IDDPM 7
torch.testing.assert_close(c, d)
"""

MODULE = '''
"""A module (DDPM 1)."""

def f():
    """One (DDPM 2; DDPM §4.1), two (IDDPM 7,
    or DDPM 3, for any data), (DDPM uses 1000 steps), (SDE 13), (DDPM App. A)."""
'''

MANIFEST = {"DDPM": {"title": "", "chapter": "02_ddpm", "equations": {1: "one", 2: "two", 3: "three"}}}


def problems(chapter: str = CHAPTER, module: str = MODULE, manifest: dict = MANIFEST, **more: str) -> list[str]:
    trace = Trace()
    for name, text in {"02_ddpm": chapter, **more}.items():
        trace.read_chapter(name, text)
    trace.read_module("minidiff.m", module)
    return trace.problems(manifest)


def test_a_later_papers_number_may_stand_below_the_equation():
    also = CHAPTER.replace(", IDDPM 7} $$", "} $$\n#\n# *Also IDDPM 7.*")
    assert problems(also) == [] and also != CHAPTER
    assert any("IDDPM 8: tagged in 02_ddpm, but no cell" in line for line in problems(also.replace("7.*", "7–8.*")))
    assert any("cannot read 'seven'" in line for line in problems(also.replace("IDDPM 7.*", "seven.*")))


def test_a_sound_book_has_no_problem():
    assert problems() == []
    trace = Trace()
    trace.read_chapter("02_ddpm", CHAPTER)
    trace.read_module("minidiff.m", MODULE)
    assert set(trace.tags) == set(trace.checks) == {"DDPM 1", "DDPM 2", "DDPM 3", "IDDPM 7"}
    assert dict(trace.citations) == {
        "DDPM 1": ["minidiff.m"],
        **{statement: ["minidiff.m:f"] for statement in ("DDPM 2", "IDDPM 7", "DDPM 3", "SDE 13")},
    }
    page = equations.index_page(trace, MANIFEST, ["02_ddpm"], {"minidiff.m:f": "minidiff.m.f"}.get)
    assert "| [(2)](#ddpm-2) | two | [02](02_ddpm.ipynb) | [✓](#check-ddpm-2) | [`f`](#minidiff.m.f) |" in page
    bare = equations.index_page(trace, MANIFEST, [], lambda name: None)
    assert "| (2) | two | 02 | ✓ | `f` |" in bare


def test_an_anchor_is_a_name_that_a_page_can_have():
    assert [equations.anchor(s) for s in ("DDPM 8", "DDPM Alg. 1", "SD Table A1", "0.4")] == [
        "ddpm-8",
        "ddpm-alg-1",
        "sd-table-a1",
        "eq-0-4",
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"chapter": CHAPTER.replace("# check: DDPM 1", "# DDPM 1")}, "DDPM 1: tagged in 02_ddpm, but no cell there"),
        ({"chapter": CHAPTER.replace("DDPM 1}", "DDPM 1, 4}")}, "DDPM 4: tagged in 02_ddpm, but no cell there"),
        ({"chapter": CHAPTER.replace(r"\tag{DDPM 1}", "")}, r"DDPM 1: in the manifest, but no chapter has \tag"),
        ({"chapter": CHAPTER.replace(r"\tag{DDPM 1}", "")}, r"DDPM 1: checked in 02_ddpm, which has no \tag{DDPM 1}"),
        ({"chapter": CHAPTER.replace(r"\tag{DDPM 1}", "")}, "DDPM 1: cited by minidiff.m, but no chapter has its tag"),
        ({"chapter": CHAPTER.replace("\nassert True", "\npass")}, "the cell '# check: DDPM 1' asserts nothing"),
        ({"chapter": CHAPTER.replace("# check: DDPM 1", "x = 1\n# check: DDPM 1")}, "must stand at the head"),
        ({"chapter": CHAPTER.replace("DDPM 1}", "DDPM one}")}, "02_ddpm: cannot read 'DDPM one'"),
        ({"chapter": CHAPTER.replace("DDPM 1}", "2.1}")}, "2.1: tagged in 02_ddpm, but no cell there"),
        ({"more": CHAPTER}, "DDPM 1: tagged more than once (02_ddpm, more)"),
        ({"more": CHAPTER.replace(r"\tag", r"\nottag")}, r"DDPM 1: checked in more, which has no \tag{DDPM 1}"),
        ({"module": '"""(DDPM 99)"""'}, "DDPM 99: cited by minidiff.m, but no chapter has its tag"),
        ({"module": 'class A:\n  def f(self):\n    """(DDPM Alg. 9)"""'}, "DDPM Alg. 9: cited by minidiff.m:A.f"),
        ({"module": '"""(DDPM eq. 7)"""'}, "minidiff.m: cannot read 'DDPM eq. 7'"),
        ({"module": '"""(DDPM 7 and 8)"""'}, "minidiff.m: cannot read 'DDPM 7 and 8'"),
        ({"manifest": MANIFEST | {"DDPM": MANIFEST["DDPM"] | {"equations": {1: "one"}}}}, "but not in the manifest"),
    ],
)
def test_every_kind_of_fault_is_named(change, complaint):
    assert any(complaint in problem for problem in problems(**change)), problems(**change)


@pytest.mark.parametrize(
    ("mark", "statements"),
    [
        ("DDPM 8", ["DDPM 8"]),
        (" DDPM 17–19 ", ["DDPM 17", "DDPM 18", "DDPM 19"]),
        ("DDPM 17-18", ["DDPM 17", "DDPM 18"]),
        ("DDPM 4, IDDPM 8", ["DDPM 4", "IDDPM 8"]),
        ("DDPM 6, 7", ["DDPM 6", "DDPM 7"]),
        ("DDPM Alg. 1–2, Table 2", ["DDPM Alg. 1", "DDPM Alg. 2", "DDPM Table 2"]),
        ("EDM Table 1", ["EDM Table 1"]),
        ("0.7, 0.10", ["0.7", "0.10"]),
    ],
)
def test_a_mark_names_its_statements(mark, statements):
    assert expand(mark) == statements


@pytest.mark.parametrize("mark", ["", "8", "FID 3", "DDPM", "DDPM 8 and 9", "DDPM 9–7", "DDPM Alg 1", "DDPM 8,"])
def test_a_malformed_mark_is_refused(mark):
    with pytest.raises(ValueError):
        expand(mark)
