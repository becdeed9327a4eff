"""The sliders of the book: the stored pictures are those that the shipped models draw, and each file stands alone."""

import base64
import io
import re
from pathlib import Path

import interactive
import numpy as np
import pytest
import torch
from PIL import Image

import minidiff as md

BOOK = Path(__file__).parents[1] / "book"
SHEET = re.compile(r"data:image/png;base64,([\w+/=]+)")


def stored(name: str) -> tuple[str, np.ndarray]:
    """A slider as it is committed: its text without the sheet, and its frames (stop, row, column, 8, 8)."""
    text = (BOOK / "sliders" / f"{name}.html").read_text(encoding="ascii")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(SHEET.search(text)[1])))).astype(int)
    rows, columns = text.count("<canvas"), sheet.shape[1] // 8
    return SHEET.sub("", text), sheet.reshape(-1, rows, 8, columns, 8).transpose(0, 1, 3, 2, 4)


@pytest.mark.parametrize("name", interactive.SLIDERS)
def test_a_slider_stands_alone_and_says_what_it_shows(name):
    path = BOOK / "sliders" / f"{name}.html"
    assert path.stat().st_size < 1_000_000
    text, frames = stored(name)
    assert not re.search(r"https?:|//\w|url\(|@import|<link|\bsrc=(?!')", text)
    assert "$" not in text
    last = re.search(r'max="(\d+)"', text)[1]
    assert int(last) + 1 == len(frames) == len(re.findall(r'"[^"]+"', re.search(r"const stops = \[(.*)\]", text)[1]))
    assert len(re.search(r'role="img" aria-label="([^"]+)"', text)[1]) > 80


def same(drawn: np.ndarray, stored: np.ndarray) -> bool:
    """Of 255 levels: between processors the last bits differ."""
    off = np.abs(drawn.astype(int) - stored)
    return off.mean() < 0.5 and (off > 2).mean() < 0.005


def test_the_stored_chain_is_the_one_that_the_model_draws():
    text, frames = stored("chain")
    slider = interactive.chain()
    assert same(slider.frames, frames) and not same(slider.frames, np.roll(frames, 1, axis=0))
    assert SHEET.sub("", slider.to_html()) == text


@pytest.mark.parametrize("scale", [0.0, 2.5, 8.0])
def test_the_stored_guided_digits_are_those_that_the_models_draw(scale):
    stop = interactive.SCALES.index(scale)
    drawn = [[interactive.guided(told, scale) for told in (False, True)]]
    assert same(interactive.as_bytes(drawn), stored("guidance")[1][[stop]])


@pytest.mark.parametrize("calls", [5, 11, 25])
def test_the_stored_digits_of_each_sampler_are_those_that_it_draws(calls):
    stop = interactive.CALLS.index(calls)
    drawn = [[interactive.drawn(sampler, calls) for sampler in interactive.SAMPLERS]]
    assert same(interactive.as_bytes(drawn), stored("samplers")[1][[stop]])


def test_the_chains_begin_and_end_where_they_must():
    frames = stored("chain")[1] / 127.5 - 1
    digits = md.digits()
    chosen = [int((digits.labels == k).nonzero()[0]) for k in range(10)]
    np.testing.assert_allclose(frames[0, 0], digits.x[chosen].squeeze(1), atol=1 / 255)
    lit = [np.abs(frames[-1, row]).mean() for row in (0, 1)]
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).abs().mean().item()
    assert np.allclose(lit, normal, atol=4 * 0.33 / 640**0.5)
    np.testing.assert_array_equal(frames[0, 1], frames[0, 2])  # at t = 0 nothing is left to believe


def test_with_enough_calls_the_solvers_of_one_equation_draw_the_same():
    frames = stored("samplers")[1]
    apart = np.abs(frames[:, 1:] - frames[:, 3:4]).mean((2, 3, 4))  # from Heun's
    assert (apart[-1] < 2).all() and (apart[0, [0, 1, 3]] > 20).all()
    assert np.abs(frames[-1, 0] - frames[-1, 3]).mean() > 20  # the ancestral chain has its own


@pytest.mark.parametrize("sampler", interactive.SAMPLERS)
@pytest.mark.parametrize("calls", [5, 11])
def test_each_sampler_calls_the_network_as_often_as_the_slider_says(sampler, calls, monkeypatch):
    model, description = md.load("digits")
    seen = []
    model.net.register_forward_pre_hook(lambda *_: seen.append(1))
    monkeypatch.setattr(md, "load", lambda name: (model, description))
    assert len(interactive.drawn(sampler, calls)) == 10
    assert len(seen) == calls
