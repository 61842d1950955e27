"""
Draw the picture on the first page and in the README, and the card that chat windows show of the book:

    python scripts/cover.py
    python scripts/cover.py --card       (the card alone, from the picture that is there)

The example patch (`Chapter.example_patch`): image, MODIS label, the map of the FCN that was fine-tuned on the target
regions, reference.
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from lcfuse_core.book import images
from lcfuse_core.book.chapter import Chapter
from lcfuse_core.methods import registry

OUT = "book/_assets/result.png"
CARD = "book/_assets/social-card.png"
CARD_PX = (1200, 630)
PAPER, INK, LEAF = "#f6f8f5", "#20302b", "#1f6b4f"


def draw_card() -> None:
    """The title beside the cover picture, in the size that Open Graph asks for."""
    with plt.rc_context({"font.family": "serif"}):
        figure = plt.figure(figsize=(CARD_PX[0] / 100, CARD_PX[1] / 100), dpi=100, facecolor=PAPER)
    axes = figure.add_axes((0.53, 0.04, 0.45, 0.92))
    axes.imshow(plt.imread(OUT), interpolation="lanczos")
    axes.axis("off")
    words: dict[str, Any] = {"family": "serif", "color": INK, "va": "top"}
    figure.text(
        0.05, 0.80, "Land cover\nat 10 metres\nfrom labels\nat 500 metres", fontsize=40, linespacing=1.25, **words
    )
    figure.text(0.05, 0.22, "A book that runs: Sentinel-1 and -2,\nMODIS, SEN12MS, DFC2020", fontsize=17, **words)
    figure.add_artist(Rectangle((0, 0), 0.014, 1, color=LEAF, transform=figure.transFigure))
    figure.savefig(CARD, dpi=100, facecolor=PAPER, metadata={"Software": None})
    plt.close(figure)
    print(CARD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", action="store_true", help="draw the card alone")
    given = parser.parse_args()
    if given.card:
        draw_card()
        return
    images.use_book_style("synthetic sample")
    here = Chapter.from_profile("cover")
    patch = here.example_patch()
    predict, _ = here.adapted_network(here.network())
    figure = images.show_maps_side_by_side({"Network, transductive": registry.mapped(predict)(patch)}, patch)
    figure.savefig(OUT, dpi=150, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})
    plt.close(figure)
    print(OUT)
    draw_card()


if __name__ == "__main__":
    main()
