"""What a writer produces, and the helpers that the writers share.

A writer goes through the names from the top of the tree, remembers what its own lines say about the names below each, and
writes a line where the policy differs from that. No line may block what the policy lets pass. What a format cannot express is
left out and recorded in the draft. One exception, recorded too: a plain list of domains cannot except a name below one that it
blocks.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from embargo import names
from embargo.export.effective import BITS, EffectivePolicy, ListedName, ListedRange, Treatment
from embargo.firewall import spans
from embargo.names import Name

T = TypeVar("T")

#: IPv6 forms of IPv4 addresses (`ruleset.EMBEDDED`): (prefix, number of bits behind the IPv4 address)
MAPPED, NAT64, SIX_TO_FOUR = (0xFFFF << 32, 0), (0x64_FF9B << 96, 0), (0x2002 << 112, 80)

#: names that every program reads as a name and nothing else
_USUAL = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+")


class ExportedEntry(NamedTuple):
    """An entry of the policy with its lines. `match`: suffix, exact, below or network; empty for auxiliary lines."""

    match: str
    subject: str
    treatment: Treatment
    lines: tuple[str, ...]


@dataclass(slots=True)
class Draft:
    """What a writer has produced so far."""

    entries: list[ExportedEntry] = field(default_factory=list)
    omitted: dict[str, list[str]] = field(default_factory=dict)  # what cannot be expressed → its entries
    notes: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)  # lines before the entries
    tail: list[str] = field(default_factory=list)  # lines after the entries

    def add(self, match: str, subject: str, treatment: Treatment, lines: Iterable[str]) -> None:
        """Add an entry and its lines in the format. `match`: how the format matches the subject."""
        self.entries.append(ExportedEntry(match, subject, treatment, tuple(lines)))

    def omit(self, what: str, entry: object) -> None:
        """Record an entry that cannot be expressed."""
        entries = self.omitted.setdefault(what, [])
        if str(entry) not in entries[-1:]:
            entries.append(str(entry))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def usual_names(policy: EffectivePolicy, draft: Draft) -> Iterator[tuple[ListedName, str]]:
    """The listed names with their text, except those that the other software would misread."""
    for listed in policy.names:
        text = names.to_text(listed.name)
        if _USUAL.fullmatch(text):
            yield listed, text
        elif listed.itself.decision or listed.below.decision:
            draft.omit("names with characters other than letters, digits, - and _", listed.rule)


def parents(name: Name) -> Iterator[Name]:
    """The names above a name, the nearest first."""
    found = names.suffixes(name)
    next(found)
    return found


def inherited(states: Mapping[Name, T], name: Name, default: T) -> T:
    """The state of the nearest name above that has one."""
    return next((states[each] for each in parents(name) if each in states), default)


def escaped(name: Name) -> str:
    """A name without its final dot, every unusual octet as \\DDD: read alike by zone files and Unbound, quoted or not."""
    return ".".join("".join(map(_octet, label)) for label in names.labels(name))


def _octet(octet: int) -> str:
    return chr(octet) if _USUAL.fullmatch(chr(octet)) else f"\\{octet:03d}"


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def networks(listed: ListedRange, *forms: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """(family, first address, prefix length) of the networks that make up a range, and of its `forms` in IPv6."""
    for first, length in spans.networks(BITS[listed.family], listed.first, listed.last):
        yield listed.family, first, length
        if listed.family == 4:
            yield from ((6, base + (first << shift), 96 - shift + length) for base, shift in forms)


def record_type(address: str) -> str:
    """The type of the DNS record that holds an address: A or AAAA."""
    return "AAAA" if ":" in address else "A"


def omit_addresses(policy: EffectivePolicy, draft: Draft) -> None:
    """For formats that contain names only."""
    for each in policy.blocked_ranges:
        draft.omit("addresses and networks", each)
