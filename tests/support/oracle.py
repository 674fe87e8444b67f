"""A second reading of the filtering rules, from the contract's words: slow, obvious, and without a line of `policy`'s code.

It looks at every line of every list for every question. Only the values (App, List, Entry, Selection) are shared.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from embargo.lists.policy import Action, App, Entry, EntryKind, Level, List, Selection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
BYPASS_PORTS = ("dot", "doq")


class Claim(NamedTuple):
    app: str
    function: str
    list: str
    line: int
    rule: str


class Match(NamedTuple):
    """A line that speaks of what is asked. The longer of two has the greater length."""

    length: tuple[int, bool]
    takes_out: bool
    claim: Claim


def labels(name: bytes) -> list[bytes]:
    found = []
    while name[0]:
        found.append(name[1 : 1 + name[0]])
        name = name[1 + name[0] :]
    return found


def length(entry: Entry, asked: list[bytes] | Address) -> tuple[int, bool] | None:
    """How long a line is that matches; None when it does not match. `=name` is longer than `name`."""
    if entry.network is not None:
        if isinstance(asked, list) or asked.version != entry.network.family:
            return None
        covered = entry.network.last - entry.network.first
        return (-covered, False) if entry.network.first <= int(asked) <= entry.network.last else None
    if not isinstance(asked, list):
        return None
    mine = labels(entry.name)
    if entry.kind is EntryKind.EXACT:
        return (len(mine), True) if mine == asked else None
    return (len(mine), False) if mine == asked[len(asked) - len(mine) :] and len(mine) <= len(asked) else None


def matches(lists: Iterable[List], asked: list[bytes] | Address, selection: Selection) -> Iterator[Match]:
    for list_ in lists:
        source = list_.source
        # a line of a shared list that is off acts as an exception for its app
        on = selection.shared if isinstance(selection.shared, bool) else source.app in selection.shared
        for entry in list_.entries:
            found = length(entry, asked)
            if found is not None:
                claim = Claim(source.app, source.function, source.path, entry.line, entry.text)
                yield Match(found, entry.exception or (source.shared and not on), claim)


def claims_of(lists: Iterable[List], asked: list[bytes] | Address, selection: Selection) -> list[tuple[Match, Claim]]:
    """What one app claims: the longest line wins; an exception takes out the lines that are not longer than itself."""
    found = list(matches(lists, asked, selection))
    taken_out = max((match.length for match in found if match.takes_out), default=None)
    left = [match for match in found if not match.takes_out and (taken_out is None or match.length > taken_out)]
    longest: dict[str, Match] = {}
    for match in left:  # a class stands in for its longest line; of equals, the first
        function = match.claim.function
        if function not in longest or match.length > longest[function].length:
            longest[function] = match
    return [(match, match.claim) for match in longest.values()]


def claims(apps: Sequence[App], local: Sequence[List], selection: Selection, asked: bytes | Address) -> list[Claim]:
    """All claims in deciding order. `asked` is a name in wire form or an address."""
    what = labels(asked) if isinstance(asked, bytes) else asked
    for level in (Level.ALLOW, Level.BLOCK):
        own = claims_of([each for each in local if each.source.level is level], what, selection)
        if own:
            return [claim for _, claim in own]
    found = [pair for app in apps for pair in claims_of(app.lists, what, selection)]
    found.sort(key=lambda pair: (pair[1].app, pair[1].function))
    found.sort(key=lambda pair: pair[0].length, reverse=True)
    return [claim for _, claim in found]


def switched_on(app: App, function: str, selection: Selection) -> bool:
    if app.id == "bypass":
        return function in selection.bypass
    chosen = bool(app.default) if selection.apps == "default" else selection.apps == "all" or app.id in selection.apps
    wanted = selection.functions == "all" or function in selection.functions
    return chosen and (wanted or (function == "httpdns" and "httpdns" in selection.bypass))


def verdict(
    apps: Sequence[App], local: Sequence[List], selection: Selection, asked: bytes | Address
) -> tuple[Action, Claim | None]:
    """What is done about a name or an address, and which line says so."""
    by_id = {app.id: app for app in apps}
    for claim in claims(apps, local, selection, asked):
        if (claim.app, claim.function) == ("local", "allow"):
            return Action.PASS, None
        if claim.app == "local" or switched_on(by_id[claim.app], claim.function, selection):
            return selection.mode, claim
    return Action.PASS, None
