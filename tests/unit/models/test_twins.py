"""Groups of pictures that differ in one attribute only."""

from __future__ import annotations

import numpy as np
import pytest

from models.dataset import COLUMNS, VALUES
from models.stages.clip import DIFFERING, Twins


@pytest.mark.parametrize("column", DIFFERING)
def test_a_group_shares_every_other_attribute(column: str) -> None:
    rng = np.random.default_rng(0)
    few = {name: min(3, len(values)) for name, values in VALUES.items()}
    labels = np.stack([rng.integers(few[name], size=400) for name in COLUMNS], axis=1)
    twins = Twins(labels.astype(np.uint8), column)
    own = COLUMNS.index(column)
    for _ in range(20):
        chosen = labels[twins.draw(4, rng)]
        assert len(chosen) == 4
        assert len(np.unique(np.delete(chosen, own, axis=1), axis=0)) == 1


def test_a_group_smaller_than_asked_repeats_its_rows() -> None:
    labels = np.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=np.uint8)
    rows = Twins(labels, "position").draw(4, np.random.default_rng(0))
    assert len(rows) == 4
    assert len(set(rows)) == 1
