"""
Figures with a handle: what is inside a cell, how far a network sees, what a prior does. Self-contained HTML.

Each function returns a string for `IPython.display.HTML`: inline SVG and PNG, a few lines of style and script, no
address. What the string shows before anybody touches it is a whole figure: so it stands on paper, and where no script
runs. Handles are range inputs with labels, so all of it works by keyboard; each change is also said in words
(`aria-live`). Colours of the frame follow the page, those of classes stay as they are.

    HTML(cell_explorer(patch))
    HTML(field_viewer(patch, {"FCN": 11, "U-Net": 92}))
    HTML(prior_slider(posterior, prior, reference=patch.dfc))
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcfuse_core.book.images import FIELD_COLOURS, rgb
from lcfuse_core.book.style import ink_on
from lcfuse_core.data.cells import cell_ids, recover
from lcfuse_core.data.legends import DFC2020, SCORED, Legend, igbp_to_dfc, index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import GridError, ParameterError

OUTLINE = "#ff4f9a"
"""Of what is pointed at: a colour that no class has, drawn over a dark line."""


def cell_explorer(patch: Patch, legend: Legend = DFC2020) -> str:
    """
    What one coarse label hides: choose a whole cell of a patch, see its image, its label, and its classes by area.

    patch : with image, MODIS label, reference and georeference

    The cell that is shown first is the most mixed one; the others follow from mixed to pure. Raises GridError when
    the patch has no reference, cannot be placed on the Earth, or holds no whole cell.
    """
    if patch.dfc is None or patch.lc is None:
        found = "no reference" if patch.dfc is None else "no MODIS label"
        raise GridError(patch.name, found=found, expected="both", do="Take a patch that has both.")
    ids = _cells_of(patch, patch.dfc.shape)
    if ids is None:
        raise GridError(patch.name, found="no georeference", expected="one", do="Take a patch that has one.")
    coarse = igbp_to_dfc(patch.lc[0])
    cells = [_look_into(ids, patch.dfc, coarse, number, legend) for number in whole_cells(ids)]
    if not cells:
        raise GridError(patch.name, found="no whole cell", expected="at least one", do="Take a larger patch.")
    cells.sort(key=lambda cell: (cell.parts[0][1], cell.outline))
    data = json.dumps([asdict(cell) for cell in cells])
    name = unique_id("cells", data)
    height, width = patch.dfc.shape
    panels = (("Sentinel-2", photo_png(rgb(patch))), ("Reference, 10 m", label_png(patch.dfc, legend)))
    outline = _path(cells[0].outline)
    drawn = "".join(
        f"<div><p>{title}</p>{svg(image, (height, width), f'{title}, one coarse cell outlined', outline)}</div>"
        for title, image in panels
    )
    codes = sorted({code for cell in cells for code, _ in cell.parts})
    bars = "".join(_bar(code, dict(cells[0].parts).get(code, 0), legend) for code in codes)
    body = (
        f'<div class="lc-panels">{drawn}</div>{range_input(name, "Cell, from mixed to pure", len(cells))}'
        f'<p id="{name}-said" aria-live="polite">{html.escape(cells[0].said)}</p>{bars}'
    )
    script = (
        "const c=cells[+r.value];f.querySelectorAll('path').forEach(p=>p.setAttribute('d',c.outline));"
        "say.textContent=c.said;const m=Object.fromEntries(c.parts);f.querySelectorAll('.lc-bar').forEach(b=>{"
        "const v=m[b.dataset.code]||0;b.hidden=!v;b.querySelector('i').style.width=v+'%';"
        "b.lastElementChild.textContent=v.toFixed(1)+' %'})"
    )
    return frame(name, body, f"cells={data}", script)


def whole_cells(ids: NDArray[np.int32]) -> list[int]:
    """
    Numbers of the cells that lie whole in a raster: none of their pixels is on its rim, and they are not cut off.

    ids : cell of each pixel, as `cells.cell_ids` numbers them
    """
    rim = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
    return [int(number) for number in np.setdiff1d(np.unique(ids), rim)]


def field_viewer(patch: Patch, fields: Mapping[str, int]) -> str:
    """
    How far networks see: move a pixel over a patch, with the square around it that can change the answer there.

    fields : name -> side of the receptive field in pixels, for example {"FCN": 11}; at most four

    The coarse cells are drawn in white: from the georeference or, where there is none, as the MODIS label betrays them
    (`recovery.recover`). Raises ParameterError on no field, more than four, or a side below 1.
    """
    if not 1 <= len(fields) <= len(FIELD_COLOURS) or min(fields.values()) < 1:
        expected = f"1 to {len(FIELD_COLOURS)} sides of at least 1 pixel"
        raise ParameterError("fields", found=str(dict(fields)), expected=expected, do="Leave some out.")
    fields = {str(label): int(side) for label, side in fields.items()}
    image = rgb(patch)
    height, width = image.shape[:2]
    middle = (height // 2, width // 2)
    squares, rows = [], []
    name = unique_id("field", json.dumps(fields) + patch.name)
    for (label, side), colour in zip(fields.items(), FIELD_COLOURS, strict=False):
        half = int(side) // 2
        at = f'x="{middle[1] - half}" y="{middle[0] - half}" width="{side}" height="{side}" data-half="{half}"'
        squares.append(f'<rect {at} fill="none" stroke="#000" stroke-width="2.6"/>')
        squares.append(f'<rect {at} fill="none" stroke="{colour}" stroke-width="1.4"/>')
        mark = f'<span class="lc-code" style="background:{colour}">&nbsp;</span>'
        rows.append(f"<p>{mark}{html.escape(label)}: {side} pixels, {side * 10:,} m wide</p>")
    outlines = ""
    ids = _cells_of(patch, (height, width))
    if ids is None and patch.lc is not None:
        found = recover(patch.lc)
        ids = found.ids if found.n_row_lines and found.n_col_lines else None
    if ids is not None:
        lines = _borders(ids)
        outlines = f'<path d="{lines}" fill="none" stroke="#fff" stroke-width=".7" stroke-opacity=".9"/>'
    words = f"{len(fields)} squares around one pixel of a satellite image, one a network, over the coarse cells"
    drawn = svg(photo_png(image), (height, width), words, outlines + "".join(squares))
    handles = range_input(f"{name}-row", "Row", height, middle[0])
    handles += range_input(f"{name}-col", "Column", width, middle[1])
    body = (
        f'<div class="lc-panels"><div>{drawn}</div><div>{"".join(rows)}'
        f"<p>White: outlines of the coarse cells.</p>{handles}"
        f'<p id="{name}-said" aria-live="polite">Pixel {middle[0]}, {middle[1]}</p></div></div>'
    )
    script = (
        "const [y,x]=[...f.querySelectorAll('input')].map(i=>+i.value);f.querySelectorAll('rect').forEach(q=>{"
        "q.setAttribute('x',x-q.dataset.half);q.setAttribute('y',y-q.dataset.half)});say.textContent=`Pixel ${y}, ${x}`"
    )
    return frame(name, body, "", script)


def prior_slider(
    posterior: NDArray[np.floating],
    prior: NDArray[np.floating],
    powers: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
    *,
    reference: NDArray[np.integer] | None = None,
    start: int | None = None,
    legend: Legend = DFC2020,
) -> str:
    """
    What the weight of the prior does: one map for each power, chosen by a slider.

    posterior : probabilities of the eight scored classes at each pixel, (8, H, W)
    prior : the same from the coarse labels, (8, H, W)
    powers : of the prior; the map is the class with the largest posterior * prior ** power
    reference : DFC2020 codes, (H, W); with it each map says how many of the known pixels are right
    start : number of the power that is shown first; else the middle one

    Raises GridError when the shapes differ, ParameterError when no power is given.
    """
    if posterior.shape != prior.shape or len(posterior) != len(SCORED):
        found = f"{posterior.shape} and {prior.shape}"
        raise GridError("prior_slider", found=found, expected=f"twice ({len(SCORED)}, H, W)", do="Align the two.")
    if not powers:
        raise ParameterError("powers", found="none", expected="at least one", do="Give some, such as (0, 0.5, 1).")
    small = np.finfo(np.float64).tiny
    logs = [np.log(np.maximum(one.astype(np.float64), small)) for one in (posterior, prior)]
    maps = [index_to_dfc((logs[0] + power * logs[1]).argmax(axis=0)) for power in powers]
    first = len(powers) // 2 if start is None else start
    frames = [
        {"image": label_png(one, legend), "said": _say_map(one, power, reference)}
        for one, power in zip(maps, powers, strict=True)
    ]
    name = unique_id("prior", "".join(hashlib.sha256(one.tobytes()).hexdigest() for one in maps))
    drawn = svg(
        frames[first]["image"],
        maps[0].shape,
        "Land-cover map of one patch, drawn with the chosen weight of the prior",
        "",
    )
    present = sorted({int(code) for one in maps for code in np.unique(one)})
    keys = "".join(f"<p>{swatch(code, legend)}{html.escape(legend.name_of(code))}</p>" for code in present)
    body = (
        f'<div class="lc-panels"><div>{drawn}</div><div>{keys}</div></div>'
        f"{range_input(name, 'Weight of the prior', len(powers), first)}"
        f'<p id="{name}-said" aria-live="polite">{html.escape(frames[first]["said"])}</p>'
    )
    script = "const c=frames[+r.value];f.querySelector('image').setAttribute('href',c.image);say.textContent=c.said"
    return frame(name, body, f"frames={json.dumps(frames)}", script)


# What is drawn ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """One whole cell: its outline as an SVG path, (code, per cent of its area) from most to least, and a sentence."""

    outline: str
    parts: list[tuple[int, float]]
    said: str


def _look_into(
    ids: NDArray[np.int32], reference: NDArray[np.integer], coarse: NDArray[np.integer], number: int, legend: Legend
) -> _Cell:
    inside = ids == number
    codes, counts = np.unique(reference[inside], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    parts = [(int(codes[place]), round(100 * float(counts[place]) / int(counts.sum()), 1)) for place in order]
    label = int(np.bincount(coarse[inside]).argmax())
    share = dict(parts).get(label, 0.0)
    said = f"MODIS says {legend.name_of(label)}, which is {share:.1f} % of the {counts.sum()} pixels of this cell."
    return _Cell(_borders(inside.astype(np.int32)), parts, said)


def _cells_of(patch: Patch, shape: tuple[int, ...]) -> NDArray[np.int32] | None:
    """The cell of each pixel, or None where the patch cannot be placed on the Earth."""
    if patch.crs is None or patch.transform is None:
        return None
    return cell_ids(patch.transform, patch.crs, (shape[0], shape[1]))[0]


def _borders(ids: NDArray[np.int32]) -> str:
    """The lines between pixels of different cells as an SVG path, straight runs joined."""
    lines = []
    for down in (False, True):
        grid = ids.T if down else ids
        for place, change in enumerate(grid[1:] != grid[:-1], start=1):
            padded = np.flatnonzero(np.diff(np.concatenate([[0], change.view(np.int8), [0]])))
            for begin, end in padded.reshape(-1, 2).tolist():
                lines.append(f"M{place} {begin}V{end}" if down else f"M{begin} {place}H{end}")
    return "".join(lines)


def _path(outline: str) -> str:
    base = f'<path d="{outline}" fill="none" stroke-linecap="square"'
    return f'{base} stroke="#000" stroke-width="3"/>{base} stroke="{OUTLINE}" stroke-width="1.6"/>'


def _say_map(codes: NDArray[np.integer], power: float, reference: NDArray[np.integer] | None) -> str:
    said = f"Weight {power:g}"
    if reference is None:
        return f"{said}."
    known = np.isin(reference, SCORED)
    return f"{said}: {100 * float((codes == reference)[known].mean()):.1f} % of the pixels are right."


def _bar(code: int, share: float, legend: Legend) -> str:
    red, green, blue, _ = legend.rgba(code)
    hidden = "" if share else " hidden"
    name = f"{swatch(code, legend)}{html.escape(legend.name_of(code))}"
    return (
        f'<div class="lc-bar" data-code="{code}"{hidden}><span>{name}</span>'
        f'<i style="width:{share}%;background:rgb({red},{green},{blue})"></i><span>{share:.1f} %</span></div>'
    )


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
