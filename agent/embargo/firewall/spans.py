"""Ranges of addresses in columns: no object a range, neither in memory nor to be freed.

A million tuples are 150 MB, and freeing them holds the interpreter for a tenth of a second, in which nobody else gets an
answer. IPv6 addresses are too wide for an array's items and stand in lists.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Column = MutableSequence[int]


class Spans(NamedTuple):
    """First and last addresses as numbers, sorted and disjoint. Of single addresses both columns are one."""

    firsts: Column
    lasts: Column

    def rows(self) -> Iterator[tuple[int, int]]:
        return zip(self.firsts, self.lasts, strict=True)


Labelled = Mapping[T, Spans]  # by what the ranges stand for: a class, or a chain


def column(family: int) -> Column:
    return array("I") if family == 4 else []


def empty(family: int) -> Spans:
    return Spans(column(family), column(family))


def gather(rows: Iterable[tuple[int, int, int, T]]) -> dict[int, dict[T, Spans]]:
    """Rows of (family, first, last, label), sorted, in columns by family and label."""
    found: dict[int, dict[T, Spans]] = {4: {}, 6: {}}
    for family, first, last, label in rows:
        spans = found[family].get(label) or found[family].setdefault(label, empty(family))
        spans.firsts.append(first)
        spans.lasts.append(last)
    return found


def count(labelled: Labelled[T]) -> int:
    return sum(len(spans.firsts) for spans in labelled.values())


def networks(bits: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """A range as networks: (first address, prefix length)."""
    while first <= last:
        size = min((first & -first).bit_length() - 1 if first else bits, (last - first + 1).bit_length() - 1)
        yield first, bits - size
        first += 1 << size
