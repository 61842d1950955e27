"""The swipe: one piece of HTML that moves its borders by mouse and by keyboard, without a network."""

import re

import numpy as np
import pytest

import pdf
from lcfuse_core.errors import GridError
from lcfuse_core.swipe import swipe

CHROMIUM = pdf.find_chromium()
RED, GREEN, BLUE = (np.full((60, 80, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
THREE = {"MODIS <label>": RED, "Map": GREEN, "Truth": BLUE}


def test_it_is_whole_in_itself_and_named_for_its_content():
    """Nothing is loaded; titles are escaped; another content has another id; every picture has a text."""
    text = swipe(THREE, alt={"Map": 'a "green" map'})
    assert not re.search(r"https?:|<script|url\(", text)
    assert "MODIS &lt;label&gt;" in text
    assert text.count("data:image/png;base64,") == 3
    assert text.count('type="range"') == 2
    assert re.findall(r'alt="([^"]*)"', text) == ["Truth", "a &quot;green&quot; map", "MODIS &lt;label&gt;"]
    assert re.findall(r'aria-label="([^"]*)"', text)[1] == "Border between Map and Truth"
    ids = {re.search(r'id="(swipe-\w+)"', one)[1] for one in (text, swipe(THREE), swipe({"a": RED, "b": BLUE}))}
    assert len(ids) == 2
    assert swipe(THREE) == swipe(THREE)


def test_a_wrong_number_or_size_is_refused():
    with pytest.raises(GridError, match="found 1 pictures"):
        swipe({"a": RED})
    with pytest.raises(GridError, match="60 x 80, 61 x 80"):
        swipe({"a": RED, "b": np.zeros((61, 80, 3), np.uint8)})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_borders_follow_mouse_finger_and_keys(tmp_path):
    """What stands at a place of the page is the picture that should, after each kind of input."""
    sync_api = pytest.importorskip("playwright.sync_api")
    from PIL import Image

    (tmp_path / "page.html").write_text(f"<html><body style='margin:0;width:400px'>{swipe(THREE)}</body></html>")

    def colour(x, y=120):  # below the handles
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
        page.locator("input.b0").focus()
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        assert [colour(x) for x in (60, 100)] == ["r", "g"]
        page.locator("input.b0").fill("95")  # past the second border: stops there
        assert [colour(x) for x in (340, 380)] == ["r", "b"]
        browser.close()
