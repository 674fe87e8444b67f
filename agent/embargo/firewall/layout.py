"""Which kind of set each listed address of a family stands in.

A hash changes in microseconds and an interval set in time that grows with it, so single addresses and ranges never share one.
Of more than MAX_INTERVALS ranges, the most frequent prefix lengths go to hashes of their own, one for each length, in which
an address is looked up without its last bits; the rest stays in an interval set that is small enough.

Sets are verdict maps that lead to the chain of each class, while there are few elements. Very many stand in sets without
verdicts that lead to one common chain: at every switch the kernel looks through all verdict maps (a second for a million).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from embargo.firewall import spans
from embargo.firewall.spans import Column, Labelled, Spans

MAX_INTERVALS = 20_000  # ranges of a family in one interval map: each transaction on a map takes 0.1 µs an element of it

#: first addresses of networks, by prefix length and chain
_ByLength = dict[int, dict[str, Column]]


@dataclass(frozen=True, slots=True)
class Listed:
    """A family's listed addresses, by the kind of set they stand in; within a kind, by the chain that they lead to."""

    addresses: Labelled[str]
    networks: Labelled[str]
    prefixes: Mapping[int, Labelled[str]]  # by prefix length: first addresses of networks, where there are very many
    chain: str = ""  # that all of them lead to, when they stand in sets; empty: they stand in verdict maps


def sort(family: int, ranges: Sequence[tuple[str, Spans]], common: str) -> Listed:
    """Sort (chain, ranges that lead there) into the sets of a family. `common`: chain for very many, empty if there is none."""
    common = common if sum(len(each.firsts) for _, each in ranges) > MAX_INTERVALS else ""
    single: dict[str, Column] = defaultdict(partial(spans.column, family))
    wide: dict[str, Spans] = defaultdict(partial(spans.empty, family))
    for chain, each in ranges:
        alone, (firsts, lasts) = single["" if common else chain].append, wide["" if common else chain]
        for first, last in each.rows():
            if first == last:
                alone(first)
            else:
                firsts.append(first)
                lasts.append(last)
    if spans.count(wide) <= MAX_INTERVALS:
        return Listed(_alone(single), wide, {}, common)
    by_length = _by_length(family, wide)
    for chain, more in by_length.pop(_bits(family)).items():
        single[chain].extend(more)
    prefixes = _most_frequent(by_length)
    return Listed(_alone(single), _intervals(family, by_length), prefixes, common)


def _bits(family: int) -> int:
    return 32 if family == 4 else 128


def _by_length(family: int, wide: Mapping[str, Spans]) -> _ByLength:
    """The networks that make up these ranges."""
    bits = _bits(family)
    by_length: _ByLength = {length: defaultdict(partial(spans.column, family)) for length in range(bits, -1, -1)}
    for chain, each in wide.items():
        lengths = [by_length[length][chain].append for length in range(bits + 1)]
        for first, last in each.rows():
            size = last - first + 1
            if not size & (size - 1) and not first & (size - 1):  # nearly always a network
                lengths[bits + 1 - size.bit_length()](first)
                continue
            for start, length in spans.networks(bits, first, last):
                lengths[length](start)
    return by_length


def _most_frequent(by_length: _ByLength) -> dict[int, Labelled[str]]:
    """Take the most frequent lengths out, until no more than MAX_INTERVALS networks are left."""
    sizes = {length: sum(map(len, networks.values())) for length, networks in by_length.items() if length}
    left, prefixes = sum(sizes.values()), {}
    for length in sorted(sizes, key=lambda length: -sizes[length]):
        if left <= MAX_INTERVALS:
            break
        left -= sizes[length]
        prefixes[length] = _alone(by_length.pop(length))
    return prefixes


def _intervals(family: int, by_length: _ByLength) -> Labelled[str]:
    """These networks as ranges."""
    bits = _bits(family)
    rows = sorted(
        (family, first, first | (1 << bits - length) - 1, chain)
        for length, networks in by_length.items() for chain, firsts in networks.items() for first in firsts
    )  # fmt: skip
    return spans.gather(rows)[family]


def _alone(columns: Mapping[str, Column]) -> Labelled[str]:
    return {chain: Spans(firsts, firsts) for chain, firsts in columns.items() if firsts}
