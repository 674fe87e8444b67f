"""Timed exceptions (`embargo pause`): what they make of a switchboard, for everybody or for some clients.

A pause switches classes off and compiles nothing. For everybody it changes the switchboard itself; for clients it makes one
of their own, which is never stricter.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from embargo.lists.policy import Action, Class, Switchboard

EVERYTHING = ""  # for an app: all of them, and the block lists of the administrator
EVERYBODY = ""  # for a client
LONGEST = 30 * 86_400  # seconds; what lasts longer belongs in the configuration
MOST = 100  # at a time

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d{{1,7}}){unit})?" for unit in _UNITS), re.ASCII)


class Pause(NamedTuple):
    app: str
    client: str  # a network as text
    until: float  # seconds since the epoch
    seconds: float  # how long it was to last
    uid: int

    @property
    def what(self) -> tuple[str, str]:
        """There is one at a time of these."""
        return self.app, self.client

    def __str__(self) -> str:
        return (self.app or "everything") + (f" for {self.client}" if self.client else "")


def until(pause: Pause) -> str:
    """The end of a pause, for people: 2026-01-31 12:00:00 UTC."""
    return f"{datetime.fromtimestamp(pause.until, UTC):%Y-%m-%d %H:%M:%S} UTC"


class Exempt(NamedTuple):
    """Clients that are judged by a switchboard of their own."""

    network: str
    board: Switchboard


def duration(text: str) -> int:
    """Seconds of "90s", "10m", "1h30m" or "2d". ValueError says what would be right."""
    found = _DURATION.fullmatch(text)
    counts = [int(count or 0) for count in found.groups()] if found else []
    seconds = sum(count * unit for count, unit in zip(counts, _UNITS.values(), strict=False))
    if not 0 < seconds <= LONGEST:
        raise ValueError(f'"{text}" is not a duration; write 90s, 10m, 1h30m or 2d, at most {LONGEST // 86_400}d')
    return seconds


def client(text: str) -> str:
    """An address or network, as it is compared. ValueError says what would be right."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f'"{text}" is not a client; name an address or a network, as in 192.0.2.5 or 192.0.2.0/24') from None
    if "/" in text and str(network.network_address) != text.partition("/")[0]:
        raise ValueError(f'"{text}" is an address within a network; name {network} or the address alone')
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def apply(pauses: Iterable[Pause], classes: Sequence[Class], board: Switchboard) -> tuple[Switchboard, tuple[Exempt, ...]]:
    """(everybody's switchboard, those of clients; of two that hold a client the first one is the narrower)."""
    pauses = list(pauses)
    common = _without(board, classes, {pause.app for pause in pauses if pause.client == EVERYBODY})
    apps: dict[_Network, set[str]] = {ipaddress.ip_network(pause.client): set() for pause in pauses if pause.client}
    for pause in pauses:
        if pause.client:
            outer = ipaddress.ip_network(pause.client)
            for inner, paused in apps.items():
                if inner.version == outer.version and inner.subnet_of(outer):  # type: ignore[arg-type] # of one family
                    paused.add(pause.app)
    ordered = sorted(apps, key=lambda network: (-network.prefixlen, network.version, int(network.network_address)))
    exempt = (Exempt(str(network), _without(common, classes, apps[network])) for network in ordered)
    return common, tuple(each for each in exempt if each.board != common)


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _without(board: Switchboard, classes: Sequence[Class], apps: Collection[str]) -> Switchboard:
    off = [EVERYTHING in apps or class_.app in apps for class_ in classes]
    return Switchboard(tuple(Action.PASS if o else action for o, action in zip(off, board.actions, strict=True)))


def passed(exempt: Exempt, common: Switchboard, classes: Sequence[Class]) -> list[Class]:
    """The classes that act for everybody and not for these clients."""
    both = zip(classes, common.actions, exempt.board.actions, strict=True)
    return [class_ for class_, usual, theirs in both if theirs is not usual]
