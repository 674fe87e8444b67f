"""Which upstream next, and how long to wait for it.

Servers are asked in the order of health, then of configuration. A server that failed is set aside for a time that doubles
with each failure; then one question tries it again while the others still go elsewhere. When all are set aside the one
whose time ends first is asked anyway, so an outage ends by itself.

Silence is the server's fault. An answer that does not help (SERVFAIL, REFUSED) may be the name's: it sets a server aside
only when another one could answer the same question, or when it has said nothing else for long. Time comes in as `now`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FIRST_PENALTY = 1.0  # seconds; doubled per failure in a row
LAST_PENALTY = 30.0  # a healed server is back within this
TIMEOUT = 1.0  # seconds for one server while others are left
RETRIES = 2  # attempts beyond one for each server: a lost datagram is not an outage
DEADLINE = 4.5  # seconds for one query in all: the usual stub gives up after 5
FORGIVEN = 10  # unhelpful answers in a row that may be the names' fault
SCHEMES = {"udp": 53, "tcp": 53, "tls": 853}  # with their ports; udp: over TCP too, what is truncated
PLAIN_FOR = 900.0  # seconds a server that answers only without EDNS is spared it


class Server(NamedTuple):
    address: str
    port: int
    scheme: str = "udp"  # one of SCHEMES
    name: str = ""  # that its certificate must be for; empty: its address

    @property
    def tcp(self) -> bool:
        """Is it asked over connections only?"""
        return self.scheme != "udp"

    @property
    def tls(self) -> bool:
        return self.scheme == "tls"

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{host}:{self.port}" + (f"#{self.name}" if self.name else "")


def server(text: str) -> Server:
    """`udp://192.0.2.53:53`, as the configuration module writes it down."""
    scheme, _, rest = text.partition("://")
    at, _, name = rest.partition("#")
    address, _, port = at.rpartition(":")
    return Server(address.strip("[]"), int(port), scheme, name)


@dataclass(slots=True)
class Health:
    asked: int = 0
    failed: int = 0
    in_a_row: int = 0  # times it was set aside without an answer of use between them
    useless: int = 0  # answers of no use in a row
    blamed: float = -math.inf  # when it was set aside
    until: float = 0.0  # and for how long; 0 when it answered last
    srtt: float = 0.0  # seconds, smoothed as in RFC 6298
    plain_until: float = 0.0  # asked without EDNS until then
    last_error: str = ""

    @property
    def healthy(self) -> bool:
        """What it did last was of use, or it was not asked yet."""
        return not self.until


class Strip(NamedTuple):
    """What is taken out of answers (see `response`)."""

    ech: bool = False  # keys of Encrypted Client Hello in SVCB and HTTPS records (RFC 9848)
    private: bool = False  # records with an address that nobody has on the Internet, against DNS rebinding


KEEP_ALL = Strip()


@dataclass(slots=True)
class Upstreams:
    """Servers that are asked for the same names, and what is taken out of their answers."""

    servers: tuple[Server, ...]
    strip: Strip = KEEP_ALL
    health: dict[Server, Health] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for each in self.servers:
            self.health.setdefault(each, Health())

    def choose(self, attempts: Sequence[Server], bad: Collection[Server], now: float) -> Server | None:
        """The server for the next attempt of a query: one not asked yet, then the one asked longest ago; None to give up.

        `attempts` are the servers asked so far, `bad` those that answered and could not help: they are not asked again.
        """
        if not attempts and self.servers and self.health[self.servers[0]].until <= now:  # nearly always
            return self.servers[0]
        left = [each for each in self.servers if each not in bad]
        fresh = [each for each in left if each not in attempts]
        if fresh:
            healthy = [each for each in fresh if self.health[each].until <= now]
            return healthy[0] if healthy else min(fresh, key=lambda each: self.health[each].until)
        if left and len(attempts) < len(self.servers) + RETRIES:
            return min(left, key=lambda each: len(attempts) - attempts[::-1].index(each))
        return None

    def timeout(self, attempts: int, started: float, now: float) -> float:
        """Seconds to wait for attempt number `attempts` (from 0); the last one gets what is left."""
        if not attempts:
            return TIMEOUT
        left = max(started + DEADLINE - now, 0.05)
        return left if attempts >= len(self.servers) + RETRIES - 1 else min(TIMEOUT, left)

    def asked(self, chosen: Server, now: float) -> None:
        """A question goes there. If the server failed last, this one tries it and others wait for what comes of it."""
        health = self.health[chosen]
        health.asked += 1
        if health.until:
            health.until = max(health.until, now + TIMEOUT)

    def succeeded(self, chosen: Server, seconds: float) -> None:
        health = self.health[chosen]
        health.in_a_row, health.useless, health.until = 0, 0, 0.0
        health.srtt = seconds if not health.srtt else health.srtt * 0.875 + seconds * 0.125

    def failed(self, chosen: Server, reason: str, asked: float, now: float) -> None:
        """No answer came to what was asked then."""
        health = self.health[chosen]
        health.failed += 1
        health.last_error = reason
        self.set_aside(chosen, asked, now)

    def unhelpful(self, chosen: Server, reason: str, asked: float, now: float) -> None:
        """An answer came and is of no use."""
        health = self.health[chosen]
        health.failed += 1
        health.useless += 1
        health.last_error = reason
        if health.useless >= FORGIVEN:
            self.set_aside(chosen, asked, now)

    def set_aside(self, chosen: Server, asked: float, now: float) -> None:
        health = self.health[chosen]
        if asked >= health.blamed:  # what was on its way when it failed does not count again
            health.in_a_row += 1
            health.blamed = now
        health.until = now + min(FIRST_PENALTY * 2.0 ** min(health.in_a_row - 1, 10), LAST_PENALTY)
