"""Which upstream next, and how long until another one is asked as well.

Healthy servers are asked first, in the order of the configuration. A server that failed is set aside for a time that doubles
with each failure; then one question tries it again while the others still go elsewhere. When all are set aside, the one
whose time ends first is asked anyway, so the end of an outage is noticed.

What is concluded about a server needs evidence for the server. Each failure may be due to the name: SERVFAIL, REFUSED,
silence, also a connection that is closed. So failures count over several zones, and a useful answer clears the evidence. Only
if nothing at all has come from a server since the question was sent is it set aside at once, for a second. Time comes in as
`now`.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from embargo.names import Name

FIRST_PENALTY = 1.0  # seconds; doubled per failure in a row
LAST_PENALTY = 30.0  # a healed server is back within this
FIRST_WAIT = 1.0  # seconds to wait for a server that has not answered yet (RFC 6298 section 2.1)
LEAST_WAIT = 0.5  # a server needs some time for names that it does not have; with less, many of these were asked twice
MARGIN = 0.2  # seconds beyond the usual time of a server, at least
RETRIES = 2  # attempts beyond one for each server: a lost datagram is not an outage
DEADLINE = 4.5  # seconds for one query in all: the usual stub gives up after 5
PATIENCE = 10.0  # seconds after that wait for which an answer is still used: for clients that wait, and for the cache
SEVERAL = 3  # zones in a row in which another server could answer: no longer one name's fault
FORGIVEN = 10  # zones in a row in which no server could
ZONE_LABELS = 2  # of a name tell its zone from others, beside those that all names of these servers have
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
    useless: set[Name] = field(default_factory=set)  # zones of its unhelpful answers since the last useful one
    outdone: set[Name] = field(default_factory=set)  # zones in which it was silent, or another server could help, since then
    heard: float = -math.inf  # when its last response came
    blamed: float = -math.inf  # when it was set aside
    until: float = 0.0  # the moment until which it is set aside; 0 after a useful answer
    srtt: float = 0.0  # seconds, smoothed as in RFC 6298; 0 before the first answer
    rttvar: float = 0.0  # seconds, the smoothed deviation of single answers from `srtt`
    knows_edns: bool = False  # it has answered with EDNS
    plain_in: set[Name] = field(default_factory=set)  # zones in which it answered only without EDNS
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
    private_meant: bool = False  # but not from this answer


KEEP_ALL = Strip()


@dataclass(slots=True)
class Upstreams:
    """Servers that are asked for the same names, and what is taken out of their answers."""

    servers: tuple[Server, ...]
    strip: Strip = KEEP_ALL
    common_labels: int = 0  # labels that all names have for which they are asked: those of the zone in [dns] forward
    health: dict[Server, ServerHealth] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for known in self.servers:
            self.health.setdefault(known, ServerHealth())

    def choose(self, asked: Sequence[Server], unhelpful: Collection[Server], now: float) -> Server | None:
        """The server for the next attempt of a question: one not asked yet, then the one asked longest ago; None to give up.

        `asked`: the servers asked so far. `unhelpful`: those that answered and could not help; they are not asked again.
        """
        if not asked and not unhelpful and self.servers and self.health[self.servers[0]].until <= now:  # nearly always
            return self.servers[0]
        left = [server for server in self.servers if server not in unhelpful]
        fresh = [server for server in left if server not in asked]
        if fresh:
            healthy = [server for server in fresh if self.health[server].until <= now]
            return healthy[0] if healthy else min(fresh, key=lambda server: self.health[server].until)
        if left and len(asked) < len(self.servers) + RETRIES:
            return min(left, key=lambda server: len(asked) - asked[::-1].index(server))
        return None

    def wait(self, chosen: Server, asked: Sequence[Server], started: float, now: float) -> float:
        """Seconds until another server is asked as well: what this one usually needs (RFC 6298 section 2), doubled for each
        time that it was asked already, and at most its share of the time left. `asked`: the servers asked so far."""
        health = self.health[chosen]
        usual = health.srtt + max(4 * health.rttvar, MARGIN) if health.srtt else FIRST_WAIT
        share = max(started + DEADLINE - now, 0.05) / max(len(self.servers) - len(asked), 1)
        return min(max(usual, LEAST_WAIT) * 2.0 ** asked.count(chosen), share)

    def zone(self, qname: Name) -> Name:
        """The part of a name that tells its zone from others: `example.net` of `www.example.net`."""
        starts = []  # of the labels; `names.suffixes` would take twice as long, and this is done for every question
        at = 0
        while length := qname[at]:
            starts.append(at)
            at += 1 + length
        labels = self.common_labels + ZONE_LABELS
        return Name(qname[starts[-labels] :]) if len(starts) > labels else qname

    def asked(self, chosen: Server, now: float) -> None:
        """Note that a question goes there. If the server failed last, other questions go elsewhere until this one has ended."""
        health = self.health[chosen]
        health.asked += 1
        if health.until:
            health.until = max(health.until, now + FIRST_WAIT)

    def succeeded(self, chosen: Server, seconds: float, now: float) -> None:
        """Note a useful answer, which took so many seconds."""
        health = self.health[chosen]
        health.in_a_row, health.until, health.heard = 0, 0.0, now
        if health.useless or health.outdone:
            health.useless, health.outdone = set(), set()
        if not health.srtt:
            health.srtt, health.rttvar = seconds, seconds / 2
        else:
            health.rttvar = health.rttvar * 0.75 + abs(health.srtt - seconds) * 0.25
            health.srtt = health.srtt * 0.875 + seconds * 0.125

    def answered_edns(self, chosen: Server) -> None:
        """Note an answer with EDNS. A server that has given one knows EDNS, whatever it does for a name later."""
        health = self.health[chosen]
        health.knows_edns, health.plain_until = True, 0.0

    def answered_plain(self, chosen: Server, zone: Name, now: float) -> None:
        """Note that it refused EDNS for a name of `zone`, and answered without. A forwarder may do so for single zones."""
        health = self.health[chosen]
        if not health.knows_edns and _several(health.plain_in, zone, SEVERAL):
            health.plain_in, health.plain_until = set(), now + PLAIN_FOR

    def failed(self, chosen: Server, reason: str, zone: Name, asked: float, now: float) -> None:
        """Note an error of the network with a question about a name of `zone`, sent at the moment `asked`."""
        self.health[chosen].failed += 1
        self._doubt(chosen, reason, zone, asked, now)

    def overdue(self, chosen: Server, reason: str, zone: Name, asked: float, now: float) -> None:
        """Note that a question about a name of `zone`, sent at the moment `asked`, has waited longer than usual."""
        if now - asked >= LEAST_WAIT / 2:  # the last try of a question may have less time
            self._doubt(chosen, reason, zone, asked, now)

    def _doubt(self, chosen: Server, reason: str, zone: Name, asked: float, now: float) -> None:
        health = self.health[chosen]
        health.last_error = reason
        if health.heard < asked:  # nothing has come since
            health.until = max(health.until, now + FIRST_PENALTY)
        self.outdone(chosen, zone, asked, now)

    def silent(self, chosen: Server) -> None:
        """Note that no answer came at all."""
        self.health[chosen].failed += 1

    def unhelpful(self, chosen: Server, reason: str, zone: Name, asked: float, now: float) -> None:
        """Note an answer that did not help, to a question about a name of `zone` sent at the moment `asked`."""
        health = self.health[chosen]
        health.failed += 1
        health.last_error = reason
        health.heard = now
        if _several(health.useless, zone, FORGIVEN):
            self.set_aside(chosen, asked, now)

    def outdone(self, chosen: Server, zone: Name, asked: float, now: float) -> None:
        """Note that it was of no use for a name of `zone`, and the name is probably not at fault."""
        if _several(self.health[chosen].outdone, zone, SEVERAL):
            self.set_aside(chosen, asked, now)

    def set_aside(self, chosen: Server, asked: float, now: float) -> None:
        """Ask other servers first for a while, because of a question sent at the moment `asked`."""
        health = self.health[chosen]
        if asked >= health.blamed:  # a question already on its way at the last failure does not count again
            health.in_a_row += 1
            health.blamed = now
        health.until = now + min(FIRST_PENALTY * 2.0 ** min(health.in_a_row - 1, 10), LAST_PENALTY)


def _several(zones: set[Name], zone: Name, enough: int) -> bool:
    """Whether these zones are enough, with one more added; the set is not made larger than that."""
    if len(zones) < enough:
        zones.add(zone)
    return len(zones) >= enough
