"""
How the MODIS label of the sample confuses classes: as reported for MCD12Q1, or calibrated on DFC2020.

Stands in for: p(MODIS class | class that dominates the cell). Each region draws its own matrix around one of these.
Limits: a mean over the world; real confusions depend on the continent and on the neighbourhood of a cell.
"""

from __future__ import annotations

from typing import Final

import numpy as np

REPORTED: Final = "reported"
CALIBRATED: Final = "dfc2020"

# p(MODIS class | class that dominates the cell), rows and columns in the order of SCORED, then Savanna: round
# figures after the confusions reported for MCD12Q1 Collection 6 (Sulla-Menashe et al. 2019): cropland, grassland,
# shrubland and savanna are taken for one another, wetlands are mostly missed, water and towns mostly found.
_REPORTED = np.array(
    [
        # forest shrub grass wetl  crop  urban barren water savanna
        [0.51, 0.01, 0.03, 0.02, 0.03, 0.01, 0.00, 0.00, 0.39],
        [0.04, 0.29, 0.18, 0.01, 0.05, 0.01, 0.05, 0.00, 0.37],
        [0.02, 0.05, 0.45, 0.01, 0.14, 0.01, 0.03, 0.00, 0.29],
        [0.10, 0.04, 0.19, 0.22, 0.10, 0.01, 0.01, 0.06, 0.27],
        [0.02, 0.02, 0.15, 0.01, 0.60, 0.02, 0.00, 0.00, 0.18],
        [0.02, 0.01, 0.06, 0.01, 0.09, 0.70, 0.03, 0.01, 0.07],
        [0.00, 0.23, 0.25, 0.00, 0.04, 0.02, 0.40, 0.02, 0.04],
        [0.01, 0.00, 0.01, 0.04, 0.01, 0.01, 0.02, 0.90, 0.00],
    ]
)
# The same, calibrated so that p(DFC2020 class | MODIS label) in the test regions of the sample is about that of the
# real test set (GDAOSU; `shipped/published.yaml`), by `benchmarks/label_confusion.py`. It is no estimate of the
# confusions of the real label: the sample has other class proportions, so the same p(class | label) needs others.
_CALIBRATED = np.array(
    [
        # forest shrub grass wetl  crop  urban barren water savanna
        [0.52, 0.01, 0.02, 0.09, 0.01, 0.00, 0.01, 0.00, 0.34],
        [0.01, 0.58, 0.27, 0.03, 0.01, 0.00, 0.04, 0.00, 0.06],
        [0.01, 0.31, 0.44, 0.05, 0.04, 0.02, 0.04, 0.00, 0.09],
        [0.07, 0.06, 0.48, 0.10, 0.06, 0.02, 0.02, 0.01, 0.18],
        [0.00, 0.01, 0.60, 0.04, 0.30, 0.01, 0.01, 0.00, 0.03],
        [0.01, 0.01, 0.10, 0.05, 0.02, 0.71, 0.09, 0.00, 0.01],
        [0.01, 0.35, 0.33, 0.01, 0.03, 0.03, 0.19, 0.01, 0.04],
        [0.01, 0.05, 0.22, 0.09, 0.01, 0.03, 0.15, 0.43, 0.01],
    ]
)

MEAN_CONFUSION: Final = {REPORTED: _REPORTED, CALIBRATED: _CALIBRATED}
MOSAIC_WEIGHT: Final = {REPORTED: 1.6, CALIBRATED: 0.0}
"""Weight of Savanna in cells where woody and open land mix; the calibration left next to none (0.01 if free)."""
