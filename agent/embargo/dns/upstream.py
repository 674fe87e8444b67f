"""Which upstream next, and how long to wait for it.

Healthy servers are asked first, in the order of the configuration. A server that failed is set aside for a time that doubles
with each failure; then one question tries it again while the others still go elsewhere. When all are set aside, the one
whose time ends first is asked anyway, so the end of an outage is noticed.

Silence is the server's fault. An answer that does not help (SERVFAIL, REFUSED) may be due to the name: it sets a server
aside only when another server has answered the same question, or when it has given no other answer for long. Time comes in
as `now`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FIRST_PENALTY = 1.0  # seconds; doubled per failure in a row
LAST_PENALTY = 30.0  # a healed server is back within this
TIMEOUT = 1.0  # seconds to wait for one server while others are left
RETRIES = 2  # attempts beyond one for each server: a lost datagram is not an outage
DEADLINE = 4.5  # seconds for one query in all: the usual stub gives up after 5
FORGIVEN = 10  # unhelpful answers in a row that may be due to the names
SCHEMES = {"udp": 53, "tcp": 53, "tls": 853}  # with their ports; udp: truncated answers are asked for again over TCP
PLAIN_FOR = 900.0  # seconds for which a server that answers only without EDNS is asked without


class Server(NamedTuple):
    """A server that is asked: where, over what, and the name on its certificate."""

    address: str
    port: int
    scheme: str = "udp"  # one of SCHEMES
    name: str = ""  # the name its certificate must be for; empty: its address

    @property
    def tcp(self) -> bool:
        """Whether it is asked over connections only."""
        return self.scheme != "udp"

    @property
    def tls(self) -> bool:
        """Whether its certificate is checked, and what it sends cannot be changed on the way."""
        return self.scheme == "tls"

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.scheme}://{host}:{self.port}" + (f"#{self.name}" if self.name else "")


def server(text: str) -> Server:
    """A server from its text, `udp://192.0.2.53:53` or `tls://192.0.2.53:853#dns.example`: the inverse of `str`."""
    scheme, _, rest = text.partition("://")
    at, _, name = rest.partition("#")
    address, _, port = at.rpartition(":")
    return Server(address.strip("[]"), int(port), scheme, name)


@dataclass(slots=True)
class ServerHealth:
    """What the exchanges with one server say about it. Counts are since the start."""

    asked: int = 0
    failed: int = 0
    in_a_row: int = 0  # times it was set aside since its last useful answer
    useless: int = 0  # unhelpful answers since the last useful one
    blamed: float = -math.inf  # when it was set aside
    until: float = 0.0  # the moment until which it is set aside; 0 after a useful answer
    srtt: float = 0.0  # seconds, smoothed as in RFC 6298
    plain_until: float = 0.0  # asked without EDNS until then
    last_error: str = ""

    @property
    def healthy(self) -> bool:
        """Whether its last answer was useful, or it was not asked yet."""
        return not self.until


class Strip(NamedTuple):
    """What is taken out of answers (see `response`)."""

    ech: bool = False  # keys of Encrypted Client Hello in SVCB and HTTPS records (RFC 9848)
    private: bool = False  # records with an address that cannot exist on the Internet, against DNS rebinding


KEEP_ALL = Strip()


@dataclass(slots=True)
class Upstreams:
    """Servers that are asked for the same names, and what is taken out of their answers."""

    servers: tuple[Server, ...]
    strip: Strip = KEEP_ALL
    health: dict[Server, ServerHealth] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for known in self.servers:
            self.health.setdefault(known, ServerHealth())

    def choose(self, asked: Sequence[Server], unhelpful: Collection[Server], now: float) -> Server | None:
        """The server for the next attempt of a question: one not asked yet, then the one asked longest ago; None to give up.

        `asked`: the servers asked so far. `unhelpful`: those that answered and could not help; they are not asked again.
        """
        if not asked and self.servers and self.health[self.servers[0]].until <= now:  # nearly always
            return self.servers[0]
        left = [server for server in self.servers if server not in unhelpful]
        fresh = [server for server in left if server not in asked]
        if fresh:
            healthy = [server for server in fresh if self.health[server].until <= now]
            return healthy[0] if healthy else min(fresh, key=lambda server: self.health[server].until)
        if left and len(asked) < len(self.servers) + RETRIES:
            return min(left, key=lambda server: len(asked) - asked[::-1].index(server))
        return None

    def timeout(self, attempts: int, started: float, now: float) -> float:
        """Seconds to wait for attempt number `attempts` (from 0); the last one gets what is left."""
        if not attempts:
            return TIMEOUT
        left = max(started + DEADLINE - now, 0.05)
        return left if attempts >= len(self.servers) + RETRIES - 1 else min(TIMEOUT, left)

    def asked(self, chosen: Server, now: float) -> None:
        """Note that a question goes there. If the server failed last, other questions go elsewhere until this one has ended."""
        health = self.health[chosen]
        health.asked += 1
        if health.until:
            health.until = max(health.until, now + TIMEOUT)

    def succeeded(self, chosen: Server, seconds: float) -> None:
        """Note a useful answer, which took so many seconds."""
        health = self.health[chosen]
        health.in_a_row, health.useless, health.until = 0, 0, 0.0
        health.srtt = seconds if not health.srtt else health.srtt * 0.875 + seconds * 0.125

    def failed(self, chosen: Server, reason: str, asked: float, now: float) -> None:
        """Note that no answer came to a question sent at the moment `asked`."""
        health = self.health[chosen]
        health.failed += 1
        health.last_error = reason
        self.set_aside(chosen, asked, now)

    def unhelpful(self, chosen: Server, reason: str, asked: float, now: float) -> None:
        """Note an answer that did not help, to a question sent at the moment `asked`."""
        health = self.health[chosen]
        health.failed += 1
        health.useless += 1
        health.last_error = reason
        if health.useless >= FORGIVEN:
            self.set_aside(chosen, asked, now)

    def set_aside(self, chosen: Server, asked: float, now: float) -> None:
        """Ask other servers first for a while, because of a question sent at the moment `asked`."""
        health = self.health[chosen]
        if asked >= health.blamed:  # a question already on its way at the last failure does not count again
            health.in_a_row += 1
            health.blamed = now
        health.until = now + min(FIRST_PENALTY * 2.0 ** min(health.in_a_row - 1, 10), LAST_PENALTY)
