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

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from lcfuse_core.cells import cell_ids
from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.figures import FIELD_COLOURS, rgb
from lcfuse_core.inline import frame, label_png, photo_png, range_input, svg, swatch, unique_id
from lcfuse_core.legends import DFC2020, SCORED, Legend, igbp_to_dfc, index_to_dfc
from lcfuse_core.recovery import recover
from lcfuse_core.scenes import Patch

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
