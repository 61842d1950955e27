"""
Parts of figures that live in a page by themselves: pictures as data addresses, inline SVG, handles, and the frame.

What `interactive` is made of. Nothing here names another file or a server.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcfuse_core.legends import DFC2020, Legend
from lcfuse_core.style import ink_on

STYLE = """
.lc-figure{max-width:42rem;margin:0;font-size:.92rem;color:inherit}
.lc-figure .lc-panels{display:flex;flex-wrap:wrap;gap:.6rem;margin:0}
.lc-figure .lc-panels>div{flex:1 1 9rem;min-width:0;max-width:26rem}
.lc-figure svg{width:100%;height:auto;display:block}
.lc-figure image{image-rendering:pixelated}
.lc-figure .lc-handle{display:flex;flex-wrap:wrap;align-items:center;gap:.3rem .8rem;margin:.6rem 0 .2rem}
.lc-figure input[type=range]{flex:1 1 12rem;min-width:9rem;accent-color:#1f6b4f;height:1.6rem}
.lc-figure p{margin:.2rem 0}
.lc-figure .lc-bar{display:grid;grid-template-columns:9.5rem 1fr 3.4rem;gap:.5rem;align-items:center;line-height:1.5}
.lc-figure .lc-bar[hidden]{display:none}
.lc-figure .lc-bar>span:last-child{text-align:right;font-variant-numeric:tabular-nums}
.lc-figure .lc-bar i{display:block;height:.95rem;border:1px solid #777;box-sizing:border-box}
.lc-figure .lc-code{display:inline-block;width:1.6em;text-align:center;font-size:.8em;border:1px solid #777}
.lc-figure .lc-code{margin-right:.4em}
@media print{.lc-figure .lc-handle{display:none}}
""".strip().replace("\n", "")
"""One style for all of them; `lc-figure` is the class of each."""


def label_png(codes: NDArray[np.integer], legend: Legend = DFC2020) -> str:
    """A map of classes as a data address: a PNG with the colours of the legend, a byte a pixel or less."""
    picture = Image.fromarray(codes.astype(np.uint8), mode="P")
    palette = np.zeros((256, 3), np.uint8)
    for code in np.unique(codes).tolist():
        palette[code] = legend.rgba(code)[:3]
    picture.putpalette(palette.tobytes())
    return _address(picture)


def photo_png(image: NDArray[np.floating]) -> str:
    """An image, float (H, W, 3) in 0..1, as a data address: a PNG of 128 colours, a third of the bytes."""
    picture = Image.fromarray(np.round(255 * image).astype(np.uint8))
    return _address(picture.quantize(128, dither=Image.Dither.NONE))


def _address(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def unique_id(kind: str, content: str) -> str:
    """An id that the same content always gets: pages and tests stay as they are."""
    return f"lc-{kind}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def svg(image: str, shape: tuple[int, ...], words: str, over: str) -> str:
    """A picture (a data address) of *shape* pixels with SVG drawn *over* it; *words* say what it shows."""
    height, width = shape
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(words)}">'
        f'<image width="{width}" height="{height}" href="{image}"/>{over}</svg>'
    )


def range_input(name: str, label: str, count: int, value: int = 0) -> str:
    """A handle of *count* places with its label. *name* is unique on the page."""
    return (
        f'<div class="lc-handle"><label for="{name}-range">{html.escape(label)}</label>'
        f'<input type="range" id="{name}-range" min="0" max="{count - 1}" value="{value}"></div>'
    )


def swatch(code: int, legend: Legend) -> str:
    """The colour of a class with its code number in it."""
    red, green, blue, _ = legend.rgba(code)
    ink = ink_on(legend.rgba(code))
    return f'<span class="lc-code" style="background:rgb({red},{green},{blue});color:{ink}">{code}</span>'


def frame(name: str, body: str, data: str, script: str) -> str:
    """
    The whole: style, what is seen, and a script that changes it when a handle moves.

    A browser keeps where a handle was when a page is loaded again: so the script runs once at the start, too.
    """
    begin = f"const {data};" if data else ""
    return (
        f'<div class="lc-figure" id="{name}"><style>{STYLE}</style>{body}'
        f"<script>(()=>{{{begin}const f=document.getElementById('{name}'),r=f.querySelector('input'),"
        f"say=document.getElementById('{name}-said'),go=()=>{{{script}}};"
        f"f.addEventListener('input',go);go()}})()</script></div>"
    )
