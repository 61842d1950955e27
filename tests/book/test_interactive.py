"""Interactive figures: right numbers, whole without a script, the same each time, nothing from outside."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from bs4 import BeautifulSoup
from PIL import Image

import pdf
from lcfuse_core.book import images, interactive
from lcfuse_core.book.interactive import swipe
from lcfuse_core.data import cells, legends
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError

SHAPE = (150, 160)


@pytest.fixture(scope="module")
def patch():
    """Two classes in oblique halves, with a georeference; MODIS says Savanna everywhere."""
    rng = np.random.default_rng(3)
    row, col = np.indices(SHAPE)
    reference = np.where(row + 2 * col > 240, 1, 10).astype(np.uint8)
    s2 = rng.integers(300, 3000, (13, *SHAPE)).astype(np.uint16)
    lc = np.full((4, *SHAPE), 9, np.uint8)
    crs, transform = "EPSG:32632", Affine(10, 0, 5e5, 0, -10, 5e6)
    return Patch("here", np.zeros((2, *SHAPE), np.float32), s2, lc, reference, crs, transform)


def data_of(text):
    """The data that a figure brings for its script."""
    return json.loads(re.search(r"const data=(\[.*?\]);const f=", text)[1])


def opened(address):
    """The picture behind a data address, as stored."""
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))))


def figures(patch):
    """One of each kind."""
    rng = np.random.default_rng(0)
    one, other = rng.dirichlet(np.ones(8), (2, *SHAPE)).transpose(0, 3, 1, 2)
    return {
        "cells": interactive.cell_explorer(patch),
        "prior": interactive.prior_slider(one, other, reference=patch.dfc),
        "swipe": interactive.swipe({"Reference": patch.dfc, "Image": images.rgb(patch)}),
    }


def test_a_figure_is_whole_without_script_or_network_and_the_same_each_time(patch):
    """And every handle has a label of its own."""
    again = figures(patch)
    for kind, text in figures(patch).items():
        assert text == again[kind]
        assert len(text) < 400_000
        assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(", text)
        soup = BeautifulSoup(text, "html.parser")
        assert soup.select_one(".lc-figure")["id"].startswith(f"lc-{kind}-")
        for drawing in soup.find_all("svg"):
            assert drawing["role"] == "img"
            assert len(drawing["aria-label"]) > 20
        assert soup.find(attrs={"aria-live": "polite"}) is not None
        assert "synthetic" not in text
        handles, ids = soup.find_all("input"), [tag["id"] for tag in soup.find_all(id=True)]
        assert handles
        assert len(ids) == len(set(ids))
        for handle in handles:
            assert handle["type"] == "range"
            assert soup.find("label", attrs={"for": handle["id"]}).get_text(strip=True)
    images.use_book_style("synthetic sample")
    assert all("synthetic sample" in text for text in figures(patch).values())
    images.use_book_style()


def test_the_cell_explorer_counts_each_whole_cell_from_mixed_to_pure(patch):
    found = data_of(interactive.cell_explorer(patch))
    ids, _ = cells.cell_ids(patch.transform, patch.crs, SHAPE)
    whole = [n for n in range(ids.max() + 1) if (ids[1:-1, 1:-1] == n).sum() == (ids == n).sum()]
    assert len(found) == len(whole) > 1
    shares = [cell["parts"][0][1] for cell in found]
    assert shares == sorted(shares)
    assert shares[0] < 100
    for cell in found:
        assert sum(share for _, share in cell["parts"]) == pytest.approx(100, abs=0.2)
        assert re.match(r"MODIS label Savanna: 0\.0 % of the 21\d\d pixels", cell["text"])


def test_the_prior_decides_the_more_the_heavier_it_is():
    """Posterior says class 0 with 0.6, prior says class 1 with 0.8: they change places between 0 and 1."""
    posterior, prior = np.full((8, 40, 50), 1e-6), np.full((8, 40, 50), 1e-6)
    posterior[0], posterior[1] = 0.6, 0.4
    prior[0], prior[1] = 0.2, 0.8
    reference = np.full((40, 50), legends.SCORED[1])
    text = interactive.prior_slider(posterior, prior, reference=reference)
    frames = data_of(text)
    shown = [int(np.asarray(opened(frame["image"]))[0, 0]) for frame in frames]
    assert shown == [*legends.SCORED[:1] * 2, *[legends.SCORED[1]] * 5]  # at a power of 0.3 both are as probable
    assert [frame["text"] for frame in frames][::4] == [
        "Exponent 0: 0.0 % of the pixels are right.",
        "Exponent 1: 100.0 % of the pixels are right.",
    ]


def test_what_cannot_be_shown_is_refused(patch):
    for missing, words in (({"dfc": None}, "no reference"), ({"crs": None, "transform": None}, "no georeference")):
        with pytest.raises(GridError, match=words):
            interactive.cell_explorer(replace(patch, **missing))
    with pytest.raises(GridError, match="twice"):
        interactive.prior_slider(np.ones((8, 4, 4)), np.ones((8, 4, 5)), reference=np.ones((4, 4), int))
    with pytest.raises(GridError, match="found 1 pictures"):
        swipe({"a": RED})
    with pytest.raises(GridError, match="60 x 80, 61 x 80"):
        swipe({"a": RED, "b": np.zeros((61, 80, 3), np.uint8)})


CHROMIUM = pdf.find_chromium()
RED, GREEN, BLUE = (np.full((60, 80, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
THREE = {"MODIS <label>": RED, "Map": GREEN, "Truth": BLUE}


def test_pictures_of_a_swipe_are_cut_at_their_borders():
    """Titles are escaped; every picture has a text; the lowest comes first and is whole."""
    soup = BeautifulSoup(swipe(THREE, alt={"Map": 'a "green" map'}), "html.parser")
    pictures = soup.find_all("img")
    assert [one["alt"] for one in pictures] == ["Truth", 'a "green" map', "MODIS <label>"]
    assert [one.get("style") for one in pictures] == [None, "clip-path:inset(0 33% 0 0)", "clip-path:inset(0 67% 0 0)"]
    assert [one["value"] for one in soup.find_all("input")] == ["33", "67"]
    labels = [one.get_text() for one in soup.find_all("label")]
    assert labels == ["Border between MODIS <label> and Map", "Border between Map and Truth"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_borders_follow_mouse_finger_and_keys(tmp_path):
    """What stands at a place of the page is the picture that should, after each kind of input."""
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "page.html").write_text(f"<html><body style='margin:0;width:400px'>{swipe(THREE)}</body></html>")

    def colour(x, y=120):
        page.screenshot(path=tmp_path / "shot.png")
        return "rgb"[int(np.argmax(Image.open(tmp_path / "shot.png").convert("RGB").getpixel((x, y))))]

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 400}, has_touch=True)
        page.goto(f"file://{tmp_path / 'page.html'}")
        assert [colour(x) for x in (60, 200, 340)] == ["r", "g", "b"]
        page.mouse.move(133, 75)
        page.mouse.down()
        page.mouse.move(40, 75)
        page.mouse.up()
        assert [colour(x) for x in (20, 60)] == ["r", "g"]
        page.touchscreen.tap(360, 225)
        assert [colour(x) for x in (340, 380)] == ["g", "b"]
        page.keyboard.press("Tab")
        page.locator("input").nth(0).focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        assert [colour(x) for x in (60, 100)] == ["r", "g"]
        page.locator("input").nth(0).fill("95")  # past the second border: stops there
        assert [colour(x) for x in (340, 380)] == ["r", "b"]
        browser.close()


def test_legend_name_cannot_close_the_script_of_a_figure(patch, monkeypatch):
    """Names and titles with markup stay text, in HTML and in the data of the script."""
    attack = "</script><img src=x onerror=alert(1)>"
    monkeypatch.setattr(type(legends.DFC2020), "name_of", lambda self, code: attack)
    for text in (*figures(patch).values(), swipe({attack: RED, "b": RED})):
        soup = BeautifulSoup(text, "html.parser")
        assert len(soup.find_all("script")) == 1
        assert soup.find("img", src="x") is None
        assert soup.find(onerror=True) is None
    assert attack in data_of(interactive.cell_explorer(patch))[0]["text"]
