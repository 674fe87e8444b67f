"""Lists in columns: the usual lines of a large list without an object for each.

Nearly all lines of a large list are a lower-case name with or without a sign. They are kept as `Usual`: the names end to end in
wire form, and arrays of their offsets, line numbers and signs. `sort_out` finds the names that need no precedence, because one
class alone claims them, and keeps these in columns too (`Plain`). Its compiled twin is `native.columns`.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from embargo import accelerator, names
from embargo.names import Name

#: the sign before a name in a list, by its number in `Usual.signs`
SIGNS = ("", "=", "!")
EXACT, EXCEPTION = 1, 2


class Usual(NamedTuple):
    """The lines of a list that are a lower-case name with or without a sign."""

    names: bytes = b""  # wire form, end to end
    starts: "array[int]" = array("I")
    lines: "array[int]" = array("I")
    signs: bytes = b""

    def name(self, row: int) -> Name:
        """The name in a row, in wire form."""
        start = self.starts[row]
        return Name(self.names[start : self.starts[row + 1] if row + 1 < len(self.starts) else len(self.names)])

    def text(self, row: int) -> str:
        """The entry as it is written in the list."""
        return SIGNS[self.signs[row]] + names.to_text(self.name(row))

    def rows(self, wanted: Iterable[Name]) -> Iterator[int]:
        """The rows of these names."""
        for name in wanted:
            at = -1
            while (at := self.names.find(name, at + 1)) >= 0:
                row = bisect_left(self.starts, at)
                if row < len(self.starts) and self.starts[row] == at:  # otherwise it is the end of a longer name
                    yield row


class Plain(NamedTuple):
    """Names that a usual line of one class claims, and nothing else: nearly all names of a large list."""

    names: bytes = b""  # wire form, end to end
    starts: "array[int]" = array("I")
    lines: "array[int]" = array("I")
    sources: "array[int]" = array("H")
    exact: bytes = b""  # 1: the name only, 0: all names below it too


class Part(NamedTuple):
    """The names of one list as `sort_out` takes them: either its usual lines or its other ones."""

    names: bytes
    starts: "array[int]"
    lines: "array[int]"
    signs: bytes
    uniform: int  # a number for level and class; 0: all lines count as exceptions
    source: int
    odd: bool  # the text of a line cannot be derived from its name


_native = accelerator.load("columns")

Place = tuple[int, int]  # (number of a part, row in it)


def sort_out(parts: Sequence[Part]) -> tuple[Plain, list[Name], dict[Name, list[Place]]]:
    """(the plain names, all other names, the lines at those other names and above them).

    A name is plain if all lines at it and above it have the same level and class and none is an exception: then the first of
    its own lines claims it, and the lines above add nothing.
    """
    if _native:
        columns, mixed, relevant = _native.sort_out(list(parts))
        return Plain(*columns), mixed, relevant
    at_name: defaultdict[Name, list[Place]] = defaultdict(list)
    for number, part in enumerate(parts):
        for row, start in enumerate(part.starts):
            at_name[Name(part.names[start : names.end(part.names, start)])].append((number, row))
    kinds = {name: _kind(places, parts) for name, places in at_name.items()}
    plain = Plain(b"", array("I"), array("I"), array("H"))
    blob, exact, mixed, relevant = bytearray(), bytearray(), [], set()
    for name, (uniform, sign) in kinds.items():
        above = [each for each in names.suffixes(name) if each != name and each in kinds]
        if uniform and (sign == 0 or (sign == EXACT and not above)) and all(kinds[each][0] == uniform for each in above):
            best = min((parts[part].source, parts[part].lines[row]) for part, row in at_name[name])
            plain.starts.append(len(blob))
            plain.sources.append(best[0])
            plain.lines.append(best[1])
            exact.append(sign)
            blob += name
        else:
            mixed.append(name)
            relevant.update((name, *above))
    found = {name: places for name, places in at_name.items() if name in relevant}
    return plain._replace(names=bytes(blob), exact=bytes(exact)), mixed, found


def _kind(places: Iterable[Place], parts: Sequence[Part]) -> tuple[int, int]:
    """(the common `uniform` of the lines at a name or 0, their common sign or -1 if some are exact and some are not)."""
    common = {0 if parts[p].odd or parts[p].signs[row] == EXCEPTION else parts[p].uniform for p, row in places}
    signs = {int(parts[p].signs[row] == EXACT) for p, row in places}
    return (common.pop() if len(common) == 1 else 0), (signs.pop() if len(signs) == 1 else -1)
