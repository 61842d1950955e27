"""
Draw the picture on the first page and in the README: `python scripts/cover.py [--place N]`.

One test patch of the sample world: image, MODIS label, the map of the weighted FCN of chapter *evaluation*, reference.
"""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt

from lcfuse_core import chapter, figures, protocol, scenes, settings

OUT = "book/_assets/result.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=int, default=0, help="number of the test patch")
    place = parser.parse_args().place
    smoke = settings.read_profile("smoke")
    here = chapter.begin("evaluation", {name: smoke[name] for name in settings.names_of("evaluation")})
    classify, _ = here.learned("fcn", protocol.WEIGHTED)
    patch = scenes.read_patch(protocol.evaluation_patches(here.data_root).iloc[place])
    figure = figures.show_maps_side_by_side({"Network": classify(patch)}, patch)
    figure.savefig(OUT, dpi=150, metadata={"Software": None})
    plt.close(figure)
    print(OUT)


if __name__ == "__main__":
    main()
