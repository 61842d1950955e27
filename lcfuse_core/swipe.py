"""
A swipe comparison: several pictures of one place over each other, with a border between each and the next to be moved.

One piece of HTML without scripts to load: pictures inside as PNG, borders as range inputs, so that mouse, finger and
arrow keys all move them, from a file as well as from a server.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcfuse_core.errors import GridError


def swipe(pictures: Mapping[str, NDArray[np.uint8]], *, alt: Mapping[str, str] | None = None) -> str:
    """
    HTML of a comparison of two or three pictures, the first on the left.

    pictures : by title, uint8 (H, W, 3) or (H, W, 4), all of one size
    alt : text for those who cannot see a picture, by its title; else the title

    With three pictures, dragging in the upper half moves the first border, in the lower half the second; each border
    is reached with Tab and moved with the arrow keys. The id comes from the content: two on one page do not meet.
    Raises GridError on another number of pictures, or sizes that differ.
    """
    shapes = {picture.shape[:2] for picture in pictures.values()}
    if len(pictures) not in (2, 3) or len(shapes) != 1:
        found = f"{len(pictures)} pictures of {', '.join(f'{h} x {w}' for h, w in sorted(shapes))} pixels"
        raise GridError("swipe", found=found, expected="two or three of one size", do="Bring them to one grid.")
    titles, alt = list(pictures), alt or {}
    encoded = [_png(picture) for picture in pictures.values()]
    name = "swipe-" + hashlib.sha256("".join([*titles, *encoded]).encode()).hexdigest()[:10]
    [(height, width)] = shapes
    borders = len(titles) - 1
    layers = "".join(
        f'<img class="layer{k}" alt="{html.escape(alt.get(title, title), quote=True)}" '
        f'src="data:image/png;base64,{data}">'
        for k, (title, data) in reversed(list(enumerate(zip(titles, encoded, strict=True))))
    )
    inputs = "".join(
        f'<input type="range" class="b{k}" min="0" max="100" step="0.5" value="{_start(k, borders)}" '
        f'aria-label="Border between {html.escape(titles[k], quote=True)} and '
        f'{html.escape(titles[k + 1], quote=True)}" '
        f"oninput=\"this.parentNode.style.setProperty('--b{k}',this.value+'%')\">"
        for k in range(borders)
    )
    lines = "".join(f'<span class="line l{k}"></span>' for k in range(borders))
    captions = "".join(f"<span>{html.escape(title)}</span>" for title in titles)
    starts = ";".join(f"--b{k}:{_start(k, borders)}%" for k in range(borders))
    return (
        f"<style>{_css(name, borders)}</style>"
        f'<div id="{name}" class="swipe"><div class="stage" style="{starts};aspect-ratio:{width}/{height}">'
        f'{layers}{lines}{inputs}</div><div class="titles">{captions}</div></div>'
    )


def _start(border: int, borders: int) -> float:
    """Where a border stands at first, in per cent: pictures share the width alike."""
    return round(100 * (border + 1) / (borders + 1) * 2) / 2


def _css(name: str, borders: int) -> str:
    """
    Layer k is cut at border k; a border cannot pass the next one, for the layers' sake.

    Above the pictures lie the inputs, invisible but for their thumbs, each with its share of the height to itself.
    """
    at = {k: f"min({','.join(f'var(--b{n})' for n in range(k, borders))})" for k in range(borders)}
    cuts = "".join(f"#{name} .layer{k}{{clip-path:inset(0 calc(100% - {at[k]}) 0 0)}}" for k in range(borders))
    lines = "".join(f"#{name} .l{k}{{left:{at[k]}}}" for k in range(borders))
    share = 100 / borders
    places = "".join(f"#{name} .b{k}{{top:{k * share:g}%;height:{share:g}%}}" for k in range(borders))
    thumb = "appearance:none;-webkit-appearance:none;width:14px;height:44px;border:2px solid #20302b;"
    thumb += "border-radius:7px;background:#fff;cursor:ew-resize"
    return (
        f"#{name}{{max-width:640px;margin:0}}"
        f"#{name} .stage{{position:relative;width:100%;overflow:hidden;background:#fff}}"
        f"#{name} img{{position:absolute;inset:0;width:100%;height:100%;max-width:none;margin:0;"
        "padding:0!important;border-radius:0;"
        "image-rendering:pixelated;pointer-events:none}"
        f"{cuts}#{name} .line{{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;"
        f"box-shadow:0 0 2px #000;pointer-events:none}}{lines}"
        # A thumb's middle runs from half its width to the width less that: 7 px wider on each side, it meets the line.
        f"#{name} input{{position:absolute;left:-7px;width:calc(100% + 14px);margin:0;padding:0;background:none;"
        "appearance:none;-webkit-appearance:none;cursor:ew-resize;touch-action:pan-y}"
        f"#{name} input::-webkit-slider-runnable-track{{height:100%;background:none;display:flex;align-items:center}}"
        f"#{name} input::-webkit-slider-thumb{{{thumb}}}"
        f"#{name} input::-moz-range-track{{background:none}}#{name} input::-moz-range-thumb{{{thumb};width:10px}}"
        f"#{name} input:focus-visible{{outline:3px solid #33658a;outline-offset:-3px}}{places}"
        f"#{name} .titles{{display:flex;justify-content:space-between;gap:1em;font-size:.95rem}}"
    )


def _png(picture: NDArray[np.uint8]) -> str:
    """A PNG in base64, with a palette where 256 colours do: a map takes a tenth of the bytes."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) <= 256 and picture.shape[-1] == 3:
        image = image.quantize(256)
    content = io.BytesIO()
    image.save(content, "png", optimize=True)
    return base64.b64encode(content.getvalue()).decode()
