"""Parameters of tests in full, of which `make test` takes a part; `make test-all` takes the rest too (marker `all`)."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet

#: values of EMBARGO_ACCELERATOR for whole agents and workers; property tests hold the Python functions and their twins together
ACCELERATORS = ["native", pytest.param("none", marks=pytest.mark.all)]


def pairs(*axes: Sequence[Any]) -> list[ParameterSet]:
    """Every combination of one value of each axis; those that are not needed to show every pair of values are marked `all`."""
    rows = list(itertools.product(*axes))
    chosen, unseen = set[int](), {pair for row in rows for pair in _pairs(row)}
    while unseen:
        best = max(range(len(rows)), key=lambda number: len(_pairs(rows[number]) & unseen))
        chosen.add(best)
        unseen -= _pairs(rows[best])
    return [pytest.param(*row, marks=[] if number in chosen else pytest.mark.all) for number, row in enumerate(rows)]


def _pairs(row: tuple[Any, ...]) -> set[tuple[tuple[int, Any], ...]]:
    return set(itertools.combinations(enumerate(row), 2))
