"""The query pipeline, without a socket or a clock.

`handle` takes a packet and gives what is to be done about it: a Reply, a Forward (ask this server), Joined (somebody
asked the same just now), or a Drop. `complete` takes an upstream's response, `expire` the news that none came; both give
the Replies it settles, or the next Forward. The order of a query's way stands in `handle` and `_settle` and nowhere else:

    client ACL → malformed, opcode, class → special names → allow → block → local records → cache → upstream → answer
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from embargo import message, names, policy
from embargo.cache import Cache
from embargo.errors import MessageError
from embargo.fastpath import Attempt, Rules
from embargo.message import Answer, Query
from embargo.names import Name
from embargo.policy import Action, Decision
from embargo.upstream import DEADLINE, Server, Upstreams

MAX_PENDING = 1000  # questions on their way upstream, per worker; each holds a socket
MAX_WAITERS = 64  # clients behind one of them
SPECIAL_TTL = 600  # seconds


class Reply(NamedTuple):
    wire: bytes
    peer: object
    attempt: Attempt | None = None
    #: addresses an allow-listed name led to although a class claims them, and seconds they are to pass
    passing: tuple[tuple[bytes, int], ...] = ()


class Forward(NamedTuple):
    """Ask `server` for `query` within `timeout` seconds, then call `complete` or `expire` with the token."""

    token: int
    server: Server
    query: Query
    edns: bool
    tcp: bool
    timeout: float


class Joined(NamedTuple):
    pass


class Drop(NamedTuple):
    reason: str


class _Waiter(NamedTuple):
    query: Query
    client: str
    peer: object
    udp: bool


@dataclass(slots=True)
class _Pending:
    key: bytes
    upstreams: Upstreams
    started: float
    waiters: list[_Waiter]
    attempts: list[Server] = field(default_factory=list)
    bad: set[Server] = field(default_factory=set)
    asked: float = 0.0
    tcp: bool = False
    trouble: str = "no upstream is configured"
    network: bool = False  # the last trouble was the network's, not silence


@dataclass(frozen=True, slots=True)
class Zones:
    """Where questions go: the default upstreams, conditional ones by zone, and local records."""

    default: Upstreams
    forward: Mapping[Name, Upstreams] = field(default_factory=dict)
    hosts: Mapping[Name, tuple[bytes, ...]] = field(default_factory=dict)  # name → addresses
    reverse: Mapping[Name, Name] = field(default_factory=dict)  # reverse name → name

    def upstreams(self, qname: Name) -> Upstreams:
        return next((self.forward[n] for n in names.suffixes(qname) if n in self.forward), self.default)

    def local(self, qname: Name, qtype: int, ttl: int) -> Answer | None:
        """The answer of a hosts file; None for names it does not know."""
        if qname in self.hosts:
            width = {message.A: 4, message.AAAA: 16}.get(qtype)
            found = tuple(a for a in self.hosts[qname] if len(a) == width)
            return message.addresses(found, ttl) if found else message.negative(message.NOERROR, ttl)
        if qname in self.reverse:
            target = self.reverse[qname]
            if qtype != message.PTR:
                return message.negative(message.NOERROR, ttl)
            body = b"\xc0\x0c" + struct.pack("!HHIH", message.PTR, message.IN, ttl, len(target)) + target
            return Answer(message.NOERROR, (1, 0, 0), body)
        return None


class Engine:
    def __init__(self, rules: Rules, zones: Zones, cache: Cache) -> None:
        self.rules = rules
        self.zones = zones
        self.cache = cache
        self._pending: dict[int, _Pending] = {}
        self._by_key: dict[bytes, int] = {}
        self._token = 0
        self.log_all = False  # every query is an attempt, claimed or not

    def adopt(self, rules: Rules, zones: Zones | None = None) -> None:
        """Judge by other rules from the next packet on. Cached answers stay and are judged again when asked for."""
        self.rules = rules
        if zones is not None and zones != self.zones:
            self.zones = zones
            self.cache.clear()

    def handle(
        self, packet: bytes, client: str, peer: object, now: float, *, udp: bool = True
    ) -> Reply | Forward | Joined | Drop:
        """One query from a client; `peer` comes back in the Reply."""
        if not self.rules.acl.allows(client):
            return Drop("acl")
        if len(packet) < 12:
            return Drop("short")
        if packet[2] & 0x80:
            return Drop("response")
        try:
            query = message.parse_query(packet)
        except message.Refused as refused:
            return Reply(message.reply(refused.query, Answer(refused.rcode, (0, 0, 0), b""), udp=udp), peer)
        waiter = _Waiter(query, client, peer, udp)
        answer = special(query, self.zones)
        if answer is not None:
            return Reply(message.reply(query, answer, udp=udp), peer)
        action, decision = self._verdict(query.qname)
        if action is Action.BLOCK and decision is not None:
            return self._block(waiter, decision)
        answer = self.zones.local(query.qname, query.qtype, SPECIAL_TTL)
        if answer is not None:
            return self._settle(waiter, answer, now)
        entry = self.cache.get(query.key, now)
        if entry is not None:
            reply = self._settle(waiter, entry.answer._replace(body=entry.body(now)), now)
            if reply.attempt is None and not self._watched(query.qname):
                entry.judged = self.rules.judged
            return reply
        return self._ask(waiter, now)

    def _verdict(self, name: Name) -> tuple[Action, Decision | None]:
        return self.rules.board.choose(self.rules.image.lookup(name))

    def _watched(self, qname: Name) -> bool:
        """Allow-listed and audited names go the whole way every time: each has something to be done about it."""
        claims = self.rules.image.lookup(qname)
        return policy.allows(self.rules.image.classes, claims) or self.rules.board.choose(claims)[0] is not Action.PASS

    def _block(self, waiter: _Waiter, decision: Decision) -> Reply:
        query, rules = waiter.query, self.rules
        wire = message.reply(query, rules.block_answer(decision, query.qtype), ede=rules.ede(decision), udp=waiter.udp)
        attempt = Attempt(waiter.client, query.qname, query.qtype, decision, rules.action_name(decision), audit=False)
        return Reply(wire, waiter.peer, attempt)

    def _settle(self, waiter: _Waiter, answer: Answer, now: float) -> Reply:
        """The last judgement: question and answer, whether it comes from a hosts file, the cache or the upstream."""
        query = waiter.query
        claims = self.rules.image.lookup(query.qname)
        action, decision = self.rules.board.choose(claims)
        if action is Action.BLOCK and decision is not None:  # the rules changed while the upstream was asked
            return self._block(waiter, decision)
        passing: tuple[tuple[bytes, int], ...] = ()
        if policy.allows(self.rules.image.classes, claims):
            passing = self._passing(answer)
        else:
            found, led, answer = self._judge(answer)
            if found is Action.BLOCK and led is not None:
                return self._block(waiter, led)
            decision = decision or led
        wire = message.reply(query, answer, udp=waiter.udp)
        if decision is None and not self.log_all:
            return Reply(wire, waiter.peer, None, passing)
        attempt = Attempt(waiter.client, query.qname, query.qtype, decision, "pass", audit=decision is not None)
        return Reply(wire, waiter.peer, attempt, passing)

    def _judge(self, answer: Answer) -> tuple[Action, Decision | None, Answer]:
        """What an upstream's answer leads to: every owner, target, address and hint. The first block decides.

        The other sections hold what nobody asked for: where they lead to something blocked, they are left out.
        """
        action, decision = self._judge_leads(answer.leads)
        if answer.extra_leads and self._judge_leads(answer.extra_leads)[0] is Action.BLOCK:
            answer = message.answer_only(answer)
        return action, decision, answer

    def _judge_leads(self, leads: tuple[message.Lead, ...]) -> tuple[Action, Decision | None]:
        image, choose = self.rules.image, self.rules.board.choose
        audited: Decision | None = None
        for owners, addresses in leads:
            if policy.allows(image.classes, image.lookup(owners[0])):
                continue
            claims = [image.lookup(name) for name in owners] + [image.lookup_address(a) for a in addresses]
            for action, decision in map(choose, claims):
                if action is Action.BLOCK:
                    return action, decision
                audited = audited or decision
        return (Action.AUDIT if audited else Action.PASS), audited

    def _passing(self, answer: Answer) -> tuple[tuple[bytes, int], ...]:
        image, choose = self.rules.image, self.rules.board.choose
        found = [a for _, addresses in answer.leads for a in addresses]
        seconds = max((seconds for _, seconds in answer.ttls), default=0)
        return tuple((a, seconds) for a in found if choose(image.lookup_address(a))[0] is Action.BLOCK)

    def _ask(self, waiter: _Waiter, now: float) -> Reply | Forward | Joined | Drop:
        key = waiter.query.key
        if (token := self._by_key.get(key)) is not None:
            waiters = self._pending[token].waiters
            if len(waiters) >= MAX_WAITERS:
                return Drop("waiters")
            waiters.append(waiter)
            return Joined()
        if len(self._pending) >= MAX_PENDING:
            return self._trouble(waiter, "too many questions are on their way", network=False)
        self._token = token = self._token + 1
        self._pending[token] = _Pending(key, self.zones.upstreams(waiter.query.qname), now, [waiter])
        self._by_key[key] = token
        outcome = self._next(token, now)
        return outcome if isinstance(outcome, Forward) else outcome[0]

    def _next(self, token: int, now: float) -> Forward | list[Reply]:
        """The next attempt of a question, or the end of it."""
        pending = self._pending[token]
        upstreams = pending.upstreams
        server = upstreams.choose(pending.attempts, pending.bad, now)
        if server is None or now >= pending.started + DEADLINE:
            return [self._trouble(w, pending.trouble, network=pending.network) for w in self._close(token).waiters]
        timeout = upstreams.timeout(len(pending.attempts), pending.started, now)
        pending.attempts.append(server)
        pending.asked = now
        pending.tcp = server.tcp
        return self._forward(token, server, timeout)

    def _forward(self, token: int, server: Server, timeout: float) -> Forward:
        pending = self._pending[token]
        edns = not pending.upstreams.health[server].no_edns
        return Forward(token, server, pending.waiters[0].query, edns, pending.tcp, timeout)

    def _close(self, token: int) -> _Pending:
        pending = self._pending.pop(token)
        del self._by_key[pending.key]
        return pending

    def _trouble(self, waiter: _Waiter, text: str, *, network: bool) -> Reply:
        option = message.ede(message.EDE_NETWORK if network else message.EDE_NO_REACHABLE, text)
        servfail = Answer(message.SERVFAIL, (0, 0, 0), b"")
        return Reply(message.reply(waiter.query, servfail, ede=option, udp=waiter.udp), waiter.peer)

    def complete(self, token: int, packet: bytes, now: float) -> list[Reply] | Forward:
        """A response that `message.matches` what was asked. Closes the question, or goes on to the next attempt."""
        pending = self._pending[token]
        server = pending.attempts[-1]
        health = pending.upstreams.health[server]
        query = pending.waiters[0].query
        try:
            answer = message.parse_response(packet, message.asked(query))
        except MessageError:
            return self._bad(token, f"{server} sent a malformed response", now)
        if answer.truncated:
            if pending.tcp:
                return self._bad(token, f"{server} sent a truncated response over TCP", now)
            pending.tcp = True
            return self._forward(token, server, pending.upstreams.timeout(len(pending.attempts), pending.started, now))
        if answer.rcode in (message.FORMERR, message.NOTIMP) and not health.no_edns:
            health.no_edns = True  # RFC 6891 section 7: a server that does not know EDNS
            return self._forward(token, server, pending.upstreams.timeout(len(pending.attempts), pending.started, now))
        if answer.rcode not in (message.NOERROR, message.NXDOMAIN):
            return self._bad(token, f"{server} answered {_RCODES.get(answer.rcode, answer.rcode)}", now)
        pending.upstreams.succeeded(server, now - pending.asked)
        self._close(token)
        replies = [self._settle(waiter, answer, now) for waiter in pending.waiters]
        plain = not any(reply.attempt for reply in replies) and not self._watched(query.qname)
        self.cache.put(pending.key, answer, now, self.rules.judged if plain else -1)
        return replies

    def _bad(self, token: int, reason: str, now: float) -> list[Reply] | Forward:
        """The server answered and could not help: it is not asked again for this question."""
        self._pending[token].bad.add(self._pending[token].attempts[-1])
        return self._failed(token, reason, now, network=True)

    def expire(self, token: int, reason: str, now: float, *, network: bool = False) -> list[Reply] | Forward:
        """No usable response came. `network`: because of an error of the network, not of silence."""
        server = self._pending[token].attempts[-1]
        return self._failed(token, f"{server} {reason}", now, network=network)

    def _failed(self, token: int, reason: str, now: float, *, network: bool) -> list[Reply] | Forward:
        pending = self._pending[token]
        pending.upstreams.failed(pending.attempts[-1], reason, now)
        pending.trouble, pending.network = reason, network
        return self._next(token, now)

    @property
    def pending(self) -> int:
        return len(self._pending)


_RCODES = {message.FORMERR: "FORMERR", message.SERVFAIL: "SERVFAIL", message.NOTIMP: "NOTIMP", message.REFUSED: "REFUSED"}


def _zones(*texts: str) -> frozenset[Name]:
    return frozenset(map(names.from_text, texts))


_LOCALHOST = _zones("localhost")
_RESOLVER = _zones("resolver.arpa")  # RFC 9462 section 6.4: a resolver without designated ones answers NODATA itself
#: answered NXDOMAIN unless a local record or [dns] forward knows better
_NEVER = _zones(
    "invalid", "onion", "local", "home.arpa",  # RFC 6761, 7686, 6762, 8375
    "10.in-addr.arpa", "168.192.in-addr.arpa", *(f"{n}.172.in-addr.arpa" for n in range(16, 32)),  # RFC 6761 section 6.1
    "127.in-addr.arpa", "254.169.in-addr.arpa", "d.f.ip6.arpa", *(f"{n}.e.f.ip6.arpa" for n in "89ab"),  # RFC 6303
)  # fmt: skip


def special(query: Query, zones: Zones) -> Answer | None:
    """The names that come before everything else (RFC 6761, 6762, 7686, 8375, 9462); None for all others.

    `test.` is not among them: we ask a configured server, not the root, and test networks use it.
    """
    for suffix in names.suffixes(query.qname):
        if suffix in _RESOLVER:
            return message.negative(message.NOERROR, SPECIAL_TTL)
        if suffix in zones.forward:
            return None
        if suffix in _LOCALHOST:
            packed = {message.A: b"\x7f\0\0\1", message.AAAA: bytes(15) + b"\1"}.get(query.qtype)
            return message.addresses((packed,), SPECIAL_TTL) if packed else message.negative(message.NOERROR, SPECIAL_TTL)
        if suffix in _NEVER:
            return zones.local(query.qname, query.qtype, SPECIAL_TTL) or message.negative(message.NXDOMAIN, SPECIAL_TTL)
    return None
