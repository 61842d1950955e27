"""
Counts that grow patch by patch: of every patch, scene and region, and of all, whatever the number of patches.

A tally holds one confusion matrix for each group, never a map: a thousand patches of a scene cost as much memory as
one. Groups of several tallies can be scored, compared, and resampled (`intervals`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lcfuse_core.data.legends import SCORED
from lcfuse_core.errors import ParameterError
from lcfuse_core.scoring.scores import N_CODES, Scores, confusion, score_table, summarise

LEVELS = ("region", "scene", "patch")


@dataclass
class Tally:
    """
    Confusion counts, int64 (11, 11), of groups by level and name.

    levels : those that are kept, of LEVELS. A group takes 968 bytes: 5 MB for the 5,128 patches of the DFC2020
        test set. Leave "patch" out and memory does not grow with their number at all.
    """

    levels: tuple[str, ...] = LEVELS
    groups: dict[str, dict[str, NDArray[np.int64]]] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        strange = sorted(set(self.levels) - set(LEVELS))
        if strange:
            expected = f"some of {', '.join(LEVELS)}"
            raise ParameterError("levels", found=", ".join(strange), expected=expected, do="Correct the name.")
        self.groups = {level: {} for level in self.levels}
        self.counts = np.zeros((N_CODES, N_CODES), np.int64)

    def add(self, reference: NDArray[np.integer], predicted: NDArray[np.integer], **names: str) -> NDArray[np.int64]:
        """
        Count one patch (see `confusion`) into all and into the groups named, such as `scene="spring 15"`.

        Raises ParameterError unless each level has its name. Returns the counts of this patch.
        """
        if set(names) != set(self.levels):
            expected = f"a name for each of {', '.join(self.levels)}"
            found = f"names for {', '.join(names) or 'none'}"
            raise ParameterError("Tally.add", found=found, expected=expected, do="Give them all, by keyword.")
        counts = confusion(reference, predicted)
        self.counts += counts
        for level, name in names.items():
            group = self.groups[level].setdefault(name, np.zeros_like(self.counts))
            group += counts
        return counts

    def by(self, level: str) -> dict[str, NDArray[np.int64]]:
        """Counts of each group of a level that has a judged pixel, in the order in which they came."""
        if level not in self.groups:
            expected = f"one of {', '.join(self.levels)}"
            raise ParameterError("level", found=repr(level), expected=expected, do="Keep this level from the start.")
        scored = list(SCORED)
        return {name: counts for name, counts in self.groups[level].items() if counts[scored].any()}

    def scores(self, level: str) -> dict[str, Scores]:
        """Scores of each group of a level that has a judged pixel."""
        return {name: summarise(counts) for name, counts in self.by(level).items()}

    def table(self, level: str) -> pd.DataFrame:
        """`score_table` of a level, and the pixels that were judged."""
        found = self.scores(level)
        return score_table(found).assign(pixels=[one.n_pixels for one in found.values()])
