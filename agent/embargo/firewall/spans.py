"""Ranges of addresses in two columns, first and last addresses, instead of one object for each range.

A million tuples take 150 MB, and freeing them holds the interpreter for a tenth of a second, in which no thread can answer.
IPv6 addresses are too wide for an array's items, so their columns are lists.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Column = MutableSequence[int]


class Spans(NamedTuple):
    """First and last addresses as numbers, sorted and disjoint. For single addresses both columns are the same object."""

    firsts: Column
    lasts: Column

    def rows(self) -> Iterator[tuple[int, int]]:
        """(first, last) of each range."""
        return zip(self.firsts, self.lasts, strict=True)


Labelled = Mapping[T, Spans]  # ranges by what they belong to: a class, or the name of a chain


def column(family: int) -> Column:
    """An empty column of addresses of this family, 4 or 6."""
    return array("I") if family == 4 else []


def empty(family: int) -> Spans:
    """Two empty columns of this family, 4 or 6."""
    return Spans(column(family), column(family))


def gather(rows: Iterable[tuple[int, int, int, T]]) -> dict[int, dict[T, Spans]]:
    """Columns by family and label of rows (family, first, last, label), which come sorted."""
    columns: dict[int, dict[T, Spans]] = {4: {}, 6: {}}
    for family, first, last, label in rows:
        spans = columns[family].get(label) or columns[family].setdefault(label, empty(family))
        spans.firsts.append(first)
        spans.lasts.append(last)
    return columns


def count(labelled: Labelled[T]) -> int:
    """How many ranges there are in all."""
    return sum(len(spans.firsts) for spans in labelled.values())


def networks(bits: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest networks that make up a range, as (first address, prefix length). `bits`: of an address, 32 or 128."""
    while first <= last:
        size = min((first & -first).bit_length() - 1 if first else bits, (last - first + 1).bit_length() - 1)
        yield first, bits - size
        first += 1 << size
