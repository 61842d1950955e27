"""
Interactive figures as self-contained HTML: coarse cells, exponent of the prior, swipe between maps.

Each function returns a string for `IPython.display.HTML`: inline pictures, style and script, and no address, so it
works from a file and offline. Before any input it already shows a whole figure, also on paper and without scripts.
Every slider is a range input with a label, so all of it works by keyboard.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcfuse_core.book.images import ink_on, origin, rgb
from lcfuse_core.data.cells import cell_ids
from lcfuse_core.data.legends import DFC2020, SCORED, igbp_to_dfc, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError

_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the prior
_OUTLINE = "#ff4f9a"  # a colour that no class has, drawn over a dark line


def cell_explorer(patch: Patch) -> str:
    """
    Return a viewer of the whole coarse cells of a patch, from mixed to pure: image, label, and classes by area.

    Raises GridError when the patch lacks MODIS label, reference or georeference, or holds no whole cell.
    """
    if patch.dfc is None or patch.lc is None or patch.crs is None or patch.transform is None:
        parts = {"reference": patch.dfc, "MODIS label": patch.lc, "georeference": patch.crs and patch.transform}
        found = ", ".join(f"no {name}" for name, part in parts.items() if part is None)
        raise GridError(patch.name, found=found, expected="all of them", do="Choose a patch that has them.")
    ids = cell_ids(patch.transform, patch.crs, (patch.dfc.shape[0], patch.dfc.shape[1]))[0]
    coarse = igbp_to_dfc(patch.lc[0])
    whole = np.setdiff1d(ids, [*ids[0], *ids[-1], *ids[:, 0], *ids[:, -1]])
    cells = [_describe(ids == number, patch.dfc, coarse) for number in whole]
    if not cells:
        raise GridError(patch.name, found="no whole cell", expected="at least one", do="Choose a larger patch.")
    cells.sort(key=lambda cell: (cell["parts"][0][1], cell["outline"]))
    path = f'<path d="{cells[0]["outline"]}" fill="none" stroke-linecap="square"'
    outline = f'{path} stroke="#000" stroke-width="3"/>{path} stroke="{_OUTLINE}" stroke-width="1.6"/>'
    pictures: dict[str, NDArray[Any]] = {"Sentinel-2": rgb(patch), "Reference, 10 m": patch.dfc}
    panels = "".join(
        f"<div><p>{title}</p>{_svg(picture, f'{title}, one coarse cell outlined', outline)}</div>"
        for title, picture in pictures.items()
    )
    first = dict(cells[0]["parts"])
    bars = "".join(
        f'<div class="lc-bar" data-code="{code}"{"" if first.get(code) else " hidden"}><span>{_class_name(code)}</span>'
        f'<i style="width:{first.get(code, 0)}%;background:{_css_colour(code)}"></i>'
        f"<span>{first.get(code, 0):.1f} %</span></div>"
        for code in sorted({code for cell in cells for code, _ in cell["parts"]})
    )
    script = (
        "const c=data[+r.value];f.querySelectorAll('path').forEach(p=>p.setAttribute('d',c.outline));"
        "text.textContent=c.text;const m=Object.fromEntries(c.parts);f.querySelectorAll('.lc-bar').forEach(b=>{"
        "const v=m[b.dataset.code]||0;b.hidden=!v;b.querySelector('i').style.width=v+'%';"
        "b.lastElementChild.textContent=v.toFixed(1)+' %'})"
    )
    sliders = {"Cell, from mixed to pure": (len(cells), 0)}
    return _frame("cells", f'<div class="lc-panels">{panels}</div>', sliders, cells[0]["text"], cells, script, bars)


def _describe(inside: NDArray[np.bool_], reference: NDArray[Any], coarse: NDArray[Any]) -> dict[str, Any]:
    """Return the outline of a cell as an SVG path, (code, per cent of its area) in falling order, and a sentence."""
    codes, counts = np.unique(reference[inside], return_counts=True)
    order, percent = np.argsort(-counts, kind="stable"), (100 * counts / counts.sum()).round(1)
    parts = [(int(codes[k]), float(percent[k])) for k in order]
    label = int(np.bincount(coarse[inside]).argmax())
    text = f"MODIS label {DFC2020.name_of(label)}: {dict(parts).get(label, 0.0):.1f} % of the"
    return {"outline": _borders(inside), "parts": parts, "text": f"{text} {counts.sum()} pixels of this cell."}


def prior_slider(
    posterior: NDArray[np.floating], prior: NDArray[np.floating], *, reference: NDArray[np.integer]
) -> str:
    """
    Return maps of the class with the largest posterior * prior ** power, for powers of 0 to 2, chosen by a slider.

    Parameters
    ----------
    posterior, prior : ndarray of float, shape (8, H, W)
        Probabilities of the scored classes from the network, and from the coarse labels.
    reference : ndarray of int, shape (H, W)
        DFC2020 codes, for the accuracy of each map.

    Raises
    ------
    GridError
        If the shapes differ.
    """
    if posterior.shape != prior.shape or len(posterior) != len(SCORED):
        found = f"{posterior.shape} and {prior.shape}"
        raise GridError("prior_slider", found=found, expected=f"twice ({len(SCORED)}, H, W)", do="Align the two.")
    small = np.finfo(np.float64).tiny
    one, other = (np.log(np.maximum(p.astype(np.float64), small)) for p in (posterior, prior))
    maps = [index_to_dfc((one + power * other).argmax(axis=0)) for power in _POWERS]
    known = np.isin(reference, SCORED)
    data = []
    for power, codes in zip(_POWERS, maps, strict=True):
        percent = 100 * float((codes == reference)[known].mean())
        data.append({"image": _png(codes), "text": f"Exponent {power:g}: {percent:.1f} % of the pixels are right."})
    first = len(_POWERS) // 2
    drawn = _svg(maps[first], "Land-cover map of one patch, drawn with the chosen exponent of the prior", "")
    names = "".join(f"<p>{_class_name(int(code))}</p>" for code in np.unique(maps))
    script = "const c=data[+r.value];f.querySelector('image').setAttribute('href',c.image);text.textContent=c.text"
    body = f'<div class="lc-panels"><div>{drawn}</div><div>{names}</div></div>'
    return _frame("prior", body, {"Exponent of the prior": (len(_POWERS), first)}, data[first]["text"], data, script)


def swipe(pictures: Mapping[str, NDArray[Any]], *, alt: Mapping[str, str] | None = None) -> str:
    """
    Return a comparison of two or three pictures, the first on the left, with borders to drag or to move by slider.

    *pictures* are of one size, by title: DFC2020 codes (H, W), or images (H, W, 3), float in 0..1 or uint8. *alt* has
    text alternatives by title. Raises GridError on another number of pictures, or if sizes differ.
    """
    shapes = sorted({picture.shape[:2] for picture in pictures.values()})
    if len(pictures) not in (2, 3) or len(shapes) != 1:
        found = f"{len(pictures)} pictures of {', '.join(f'{h} x {w}' for h, w in shapes)} pixels"
        raise GridError("swipe", found=found, expected="two or three of one size", do="Bring them to one grid.")
    titles = list(pictures)
    layers = [
        f'<img alt="{html.escape((alt or {}).get(title, title))}" src="{_png(picture)}">'
        for title, picture in pictures.items()
    ]
    n, (height, width) = len(titles) - 1, shapes[0]
    starts = [round(100 * (k + 1) / (n + 1)) for k in range(n)]
    for k, start in enumerate(starts):
        layers[k] = layers[k].replace("<img", f'<img style="clip-path:inset(0 {100 - start}% 0 0)"')
    lines = "".join(f'<i style="left:{start}%"></i>' for start in starts)
    body = (
        f'<div class="lc-stage" style="aspect-ratio:{width}/{height}">{"".join(reversed(layers))}{lines}</div>'
        f'<div class="lc-titles">{"".join(f"<span>{html.escape(title)}</span>" for title in titles)}</div>'
    )
    # Layer k is cut at border k, which cannot pass the next one; dragging on the picture moves the nearest border.
    script = (
        "const s=f.querySelector('.lc-stage'),b=[...f.querySelectorAll('input')],v=b.map(i=>+i.value);"
        "v.forEach((_,k)=>{const p=Math.min(...v.slice(k));s.querySelectorAll('i')[k].style.left=p+'%';"
        "s.querySelectorAll('img')[v.length-k].style.clipPath=`inset(0 ${100-p}% 0 0)`});"
        "s.onpointerdown=s.onpointermove=e=>{if(!e.buttons)return;const q=s.getBoundingClientRect(),"
        "x=100*(e.clientX-q.left)/q.width;b.reduce((a,c)=>Math.abs(c.value-x)<Math.abs(a.value-x)||"
        "c.value==a.value&&x>c.value?c:a).value=x;go()}"
    )
    sliders = {f"Border between {titles[k]} and {titles[k + 1]}": (101, starts[k]) for k in range(n)}
    return _frame("swipe", body, sliders, "", [], script)


# Parts -------------------------------------------------------------------------------------------

_STYLE = """
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
.lc-figure .lc-stage{position:relative;overflow:hidden;background:#fff;cursor:ew-resize;touch-action:pan-y}
.lc-figure .lc-stage img{position:absolute;inset:0;width:100%;height:100%;max-width:none;margin:0;padding:0!important}
.lc-figure .lc-stage img{border-radius:0;image-rendering:pixelated;pointer-events:none}
.lc-figure .lc-stage i{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff}
.lc-figure .lc-stage i{box-shadow:0 0 2px #000;pointer-events:none}
.lc-figure .lc-titles{display:flex;justify-content:space-between;gap:1em}
@media print{.lc-figure .lc-handle{display:none}}
""".replace("\n", "")


def _frame(
    kind: str, body: str, sliders: Mapping[str, tuple[int, int]], text: str, data: object, script: str, below: str = ""
) -> str:
    """
    Return a whole figure: style, body, sliders by label (number of places, first one), sentence, and script.

    A browser keeps the position of a slider when a page is loaded again, so the script also runs once at the start.
    """
    content = json.dumps(data).replace("<", "\\u003c")  # a legend name must not close the script
    name = f"lc-{kind}-{hashlib.sha256((body + content).encode()).hexdigest()[:8]}"  # the same content, the same id
    line = f'<p style="text-align:right;font-size:.8rem;margin:0">{html.escape(origin())}</p>' if origin() else ""
    inputs = "".join(
        f'<div class="lc-handle"><label for="{name}-{k}">{html.escape(label)}</label>'
        f'<input type="range" id="{name}-{k}" min="0" max="{count - 1}" value="{value}"></div>'
        for k, (label, (count, value)) in enumerate(sliders.items())
    )
    return (
        f'<div class="lc-figure" id="{name}"><style>{_STYLE}</style>{body}{inputs}'
        f'<p id="{name}-text" aria-live="polite">{html.escape(text)}</p>{below}{line}'
        f"<script>(()=>{{const data={content};const f=document.getElementById('{name}'),r=f.querySelector('input'),"
        f"text=document.getElementById('{name}-text'),go=()=>{{{script}}};f.addEventListener('input',go);go()}})()"
        "</script></div>"
    )


def _png(picture: NDArray[Any]) -> str:
    """Return class codes (H, W) or an image (H, W, 3) as a data address: a PNG of 128 colours or fewer."""
    if picture.ndim == 2:
        image = Image.fromarray(picture.astype(np.uint8), mode="P")
        colours = np.full((256, 3), 255, np.uint8)
        for code in np.unique(picture[picture > 0]):
            colours[code] = DFC2020.rgba(int(code))[:3]
        image.putpalette(colours.tobytes())
    else:
        image = Image.fromarray(picture if picture.dtype == np.uint8 else np.round(255 * picture).astype(np.uint8))
        image = image.quantize(128, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _svg(picture: NDArray[Any], text: str, over: str) -> str:
    """Return a picture with SVG drawn *over* it; *text* describes it."""
    height, width = picture.shape[:2]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(text)}">'
        f'<image width="{width}" height="{height}" href="{_png(picture)}"/>{over}</svg>'
    )


def _borders(ids: NDArray[Any]) -> str:
    """Return the lines between pixels of different cells as an SVG path, straight runs joined."""
    lines = []
    for down, grid in enumerate((ids, ids.T)):
        for place, change in enumerate(grid[1:] != grid[:-1], start=1):
            ends = np.flatnonzero(np.diff(np.concatenate([[0], change.view(np.int8), [0]])))
            for begin, end in ends.reshape(-1, 2).tolist():
                lines.append(f"M{place} {begin}V{end}" if down else f"M{begin} {place}H{end}")
    return "".join(lines)


def _css_colour(code: int) -> str:
    return "rgb({},{},{})".format(*DFC2020.rgba(code)[:3])


def _class_name(code: int) -> str:
    """Return a class with its colour and code number before its name."""
    style = f"background:{_css_colour(code)};color:{ink_on(DFC2020.rgba(code))}"
    return f'<span class="lc-code" style="{style}">{code}</span>{html.escape(DFC2020.name_of(code))}'
