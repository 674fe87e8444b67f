"""The query pipeline, without a socket or a clock.

`handle` takes a packet and gives what is to be done about it: a Reply, a Forward (ask this server), Joined (somebody
asked the same just now), or a Drop. `complete` takes an upstream's response, `expire` the news that none came; both give
the Replies it settles, or the next Forward. The order of a query's way stands in `Engine.handle` and `_judge` and nowhere else:

    client ACL → malformed, opcode, class → special names → allow → block → local records → cache → upstream → answer
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from embargo import names
from embargo.dns import message, response
from embargo.dns.cache import NOBODY, RETRY, Cache, Entry
from embargo.dns.judgement import SPECIAL, Acl, Attempt, Rules, unclaimed
from embargo.dns.message import Answer, Lead, Query
from embargo.dns.upstream import DEADLINE, PLAIN_FOR, Server, Upstreams
from embargo.errors import MessageError
from embargo.lists import policy
from embargo.lists.policy import Action, Claims, Decision
from embargo.names import Name

MAX_PENDING = 1000  # questions on their way upstream, per worker; each holds a socket
MAX_WAITING = 10_000  # clients behind all of them
SPECIAL_TTL = 600  # seconds
STALE_AFTER = 1.8  # seconds a client waits for a fresh answer when there is an old one (RFC 8767 section 5)


class Reply(NamedTuple):
    wire: bytes
    peer: object
    client: str = ""
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


class Heard(NamedTuple):
    """An upstream's answer for a name, for whoever remembers addresses; `decision`: the entry that blocks or audits it."""

    qname: Name
    decision: Decision | None
    addresses: tuple[bytes, ...]
    seconds: int  # for how long a client may use them


class Joined(NamedTuple):
    """Somebody asked the same just now; the reply comes with theirs."""


class Drop(NamedTuple):
    reason: str


class _Waiter(NamedTuple):
    query: Query
    client: str
    peer: object
    udp: bool
    rules: Rules


class _Judged(NamedTuple):
    """What the policy says about an answer."""

    action: Action
    decision: Decision | None
    answer: Answer  # without what leads to something blocked and was not asked for
    passing: tuple[tuple[bytes, int], ...] = ()
    everyday: bool = False  # nothing is to be done about it: the fast path may give the answer out as it is
    by_name: bool = True  # the decision is about a name, not about an address


class _Pending:
    """A question on its way, and who waits for the answer."""

    __slots__ = (
        "asked", "attempts", "bad", "edns", "key", "malformed", "network", "query", "question", "shadow", "started", "tcp",
        "trouble", "upstreams", "waiters", "zones",
    )  # fmt: skip

    def __init__(self, key: bytes, zones: "Zones", started: float, query: Query, waiters: list[_Waiter]) -> None:
        self.key = key
        self.started = started
        self.waiters = waiters  # none while it is asked to be fresh in the cache, or
        self.shadow = False  # to learn what is behind a blocked name
        self.query = query
        self.question = message.asked(query)
        self.go_by(zones)
        self.asked = 0.0
        self.tcp = False
        self.edns = True
        self.malformed = False
        self.trouble = "no upstream is configured"
        self.network = False  # the last trouble was the network's, not silence

    def go_by(self, zones: "Zones") -> None:
        """Ask the servers that these zones name, none of which was asked so far."""
        self.zones = zones
        self.upstreams = zones.upstreams(self.query.qname)
        self.attempts: tuple[Server, ...] = ()
        self.bad: frozenset[Server] = frozenset()


@dataclass(frozen=True, slots=True)
class Zones:
    """Where questions go: the default upstreams, conditional ones by zone, and local records."""

    default: Upstreams
    forward: Mapping[Name, Upstreams] = field(default_factory=dict)
    hosts: Mapping[Name, tuple[bytes, ...]] = field(default_factory=dict)  # name → addresses
    reverse: Mapping[Name, Name] = field(default_factory=dict)  # reverse name → name
    without_ech: bool = False
    without_private: bool = False  # of the default upstreams: who names a zone's own server wants what that says

    def upstreams(self, qname: Name) -> Upstreams:
        if not self.forward:
            return self.default
        return next((self.forward[n] for n in names.suffixes(qname) if n in self.forward), self.default)

    def local(self, qname: Name, qtype: int, ttl: int) -> Answer | None:
        """The answer of a hosts file; None for names it does not know."""
        if not self.hosts:
            return None
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
        self.exempt: tuple[tuple[Acl, Rules], ...] = ()  # clients that are judged by rules of their own
        self.acl = rules.acl  # who gets an answer, by whatever rules
        self.zones = zones
        self.cache = cache
        self._pending: dict[int, _Pending] = {}
        self._by_key: dict[bytes, int] = {}
        self._waiting = 0
        self._token = 0
        self.stale = 0  # replies with an answer that had expired
        self.refreshed = 0  # names fetched anew before they expired
        self.heard: list[Heard] | None = None  # what upstreams answered, when somebody listens and takes it

    @property
    def pending(self) -> int:
        return len(self._pending)

    def adopt(
        self, rules: Rules, zones: Zones | None = None, exempt: Iterable[tuple[Acl, Rules]] = (), acl: Acl | None = None
    ) -> None:
        """Judge by other rules from the next packet on. Cached answers stay and are judged again when asked for.

        `exempt`: clients with rules of their own, the first that holds one decides; `acl`: all who are answered, when
        `rules.acl` leaves these out (so that the fast path declines them).
        """
        self.rules, self.exempt = rules, tuple(exempt)
        self.acl = rules.acl if acl is None else acl
        if zones is not None and zones != self.zones:
            self.zones = zones
            self.cache.clear()
            self._by_key.clear()  # who asks from now on does not wait for an answer by the old settings

    def handle(
        self, packet: bytes, client: str, peer: object, now: float, *, udp: bool = True
    ) -> Reply | Forward | Joined | Drop:
        """One query from a client; `peer` comes back in the Reply."""
        if not self.acl.allows(client):
            return Drop("acl")
        if len(packet) < 12:
            return Drop("short")
        if packet[2] & 0x80:
            return Drop("response")
        try:
            query = message.parse_query(packet)
        except message.Refused as refused:
            return Reply(message.reply(refused.query, Answer(refused.rcode), udp=udp), peer, client)
        rules = self._rules_for(client)
        waiter = _Waiter(query, client, peer, udp, rules)
        answer = special(query, self.zones)
        if answer is not None:
            return Reply(message.reply(query, answer, udp=udp), peer, client)
        claims = rules.image.lookup(query.qname)
        if claims:
            action, decision = rules.board.choose(claims)
            if action is Action.BLOCK and decision is not None:
                return self._block(waiter, decision)
        answer = self.zones.local(query.qname, query.qtype, SPECIAL_TTL)
        if answer is not None:
            return self._reply(waiter, _judge(rules, query.qname, answer))
        key = query.key
        entry = self.cache.get(key, now)
        if entry is not None:
            self.cache.hits += 1
            judged = _judge(rules, query.qname, entry.answer._replace(body=entry.body(now)))
            if rules is self.rules:
                entry.judged = rules.judged if judged.everyday else NOBODY
            return self._reply(waiter, judged)
        self.cache.misses += 1
        old = self.cache.stale(key, now)
        if old is not None and now < old.retry_at:  # nobody knew better a moment ago
            return self._reply_stale(waiter, old)
        return self._ask(waiter, key, now)

    def _rules_for(self, client: str) -> Rules:
        if not self.exempt:  # nearly always
            return self.rules
        return next((rules for acl, rules in self.exempt if acl.allows(client)), self.rules)

    def _block(self, waiter: _Waiter, decision: Decision) -> Reply:
        query, rules = waiter.query, waiter.rules
        wire = message.reply(query, rules.block_answer(decision, query.qtype), ede=rules.ede(decision), udp=waiter.udp)
        attempt = Attempt(rules, query.qname, query.qtype, decision, rules.action_name(decision))
        return Reply(wire, waiter.peer, waiter.client, attempt)

    def _reply_stale(self, waiter: _Waiter, old: Entry) -> Reply:
        """An answer after its time, judged as it would be today (RFC 8767)."""
        self.stale += 1
        answer = old.stale()
        code = message.EDE_STALE_NXDOMAIN if answer.rcode == message.NXDOMAIN else message.EDE_STALE
        rules = self._rules_for(waiter.client)  # it may have waited for long
        judged = _judge(rules, waiter.query.qname, answer)
        return self._reply(waiter._replace(rules=rules), judged, message.ede(code, "no upstream answers"))

    def _reply(self, waiter: _Waiter, judged: _Judged, ede: bytes = b"") -> Reply:
        """The answer of a hosts file, the cache or an upstream, or the block that it deserves."""
        query, decision = waiter.query, judged.decision
        if judged.action is Action.BLOCK and decision is not None:
            return self._block(waiter, decision)
        wire = message.reply(query, judged.answer, ede=ede, udp=waiter.udp)
        if decision is None and not waiter.rules.log_all:
            return Reply(wire, waiter.peer, waiter.client, None, judged.passing)
        attempt = Attempt(waiter.rules, query.qname, query.qtype, decision, "pass", audit=decision is not None)
        return Reply(wire, waiter.peer, waiter.client, attempt, judged.passing)

    def _ask(self, waiter: _Waiter, key: bytes, now: float) -> Reply | Forward | Joined:
        token = self._by_key.get(key)
        if self._waiting >= MAX_WAITING or (token is None and len(self._pending) >= MAX_PENDING):
            return self._trouble(waiter, "too many questions are on their way", network=False)
        self._waiting += 1
        if token is not None:
            self._pending[token].waiters.append(waiter)
            return Joined()
        outcome = self._open(key, waiter.query, [waiter], now)
        return outcome if isinstance(outcome, Forward) else outcome[0]

    def _open(self, key: bytes, query: Query, waiters: list[_Waiter], now: float) -> Forward | list[Reply]:
        self._token = token = self._token + 1
        self._pending[token] = _Pending(key, self.zones, now, query, waiters)
        self._by_key[key] = token
        return self._next(token, now)

    def refresh(self, now: float) -> list[Forward]:
        """What the cache wants to have fetched anew, as far as there is room beside what clients wait for."""
        wanted, self.cache.wanted = self.cache.wanted, []
        found = []
        for key in wanted:
            qname, rest = names.Name(key[:-3]), key[-3:]
            if key in self._by_key or len(self._pending) >= MAX_PENDING // 4:
                continue
            if self.rules.board.choose(self.rules.image.lookup(qname))[0] is Action.BLOCK:
                continue
            flags = message.RD | (message.CD if rest[2] & 1 else 0)
            question = qname + rest[:2] + message.IN.to_bytes(2)
            query = Query(0, flags, question, qname, int.from_bytes(rest[:2]), True, bool(rest[2] & 2), message.MAX_UDP)
            outcome = self._open(key, query, [], now)
            if isinstance(outcome, Forward):
                self.refreshed += 1
                found.append(outcome)
        return found

    def shadow(self, qname: Name, qtype: int, now: float) -> Forward | None:
        """Ask what is behind a name that is blocked: nobody gets the answer, it is `heard`. None: not now."""
        query = Query(0, message.RD, qname + qtype.to_bytes(2) + b"\0\1", qname, qtype, True, False, message.MAX_UDP)
        if query.key in self._by_key or len(self._pending) >= MAX_PENDING // 4:
            return None
        outcome = self._open(query.key, query, [], now)
        if not isinstance(outcome, Forward):  # there is no upstream to ask
            return None
        self._pending[outcome.token].shadow = True
        return outcome

    def impatient(self, now: float) -> list[Reply]:
        """Replies for clients that have waited long enough for a fresh answer when there is an old one (RFC 8767 section 5)."""
        found = []
        for pending in self._pending.values():
            if now < pending.started + STALE_AFTER:  # they stand in the order of their start
                break
            old = self.cache.stale(pending.key, now) if pending.waiters else None
            if old is not None:
                found += [self._reply_stale(waiter, old) for waiter in pending.waiters]
                self._waiting -= len(pending.waiters)
                pending.waiters = []
        return found

    def _next(self, token: int, now: float) -> Forward | list[Reply]:
        """The next attempt of a question, or the end of it."""
        pending = self._pending[token]
        if pending.zones is not self.zones:
            pending.go_by(self.zones)
        server = pending.upstreams.choose(pending.attempts, pending.bad, now)
        if server is None or now >= pending.started + DEADLINE:
            self._close(token)
            old = self.cache.stale(pending.key, now)
            if old is not None:
                old.retry_at = now + RETRY
                return [self._reply_stale(waiter, old) for waiter in pending.waiters]
            return [self._trouble(waiter, pending.trouble, network=pending.network) for waiter in pending.waiters]
        pending.attempts = (*pending.attempts, server)
        pending.asked = now
        pending.tcp = server.tcp
        pending.edns = pending.upstreams.health[server].plain_until <= now
        pending.malformed = False
        pending.upstreams.asked(server, now)
        return self._forward(token, now)

    def _forward(self, token: int, now: float) -> Forward:
        pending = self._pending[token]
        timeout = pending.upstreams.timeout(len(pending.attempts) - 1, pending.started, now)
        return Forward(token, pending.attempts[-1], pending.query, pending.edns, pending.tcp, timeout)

    def _close(self, token: int) -> None:
        pending = self._pending.pop(token)
        if self._by_key.get(pending.key) == token:
            del self._by_key[pending.key]
        self._waiting -= len(pending.waiters)

    def _trouble(self, waiter: _Waiter, text: str, *, network: bool) -> Reply:
        option = message.ede(message.EDE_NETWORK if network else message.EDE_NO_REACHABLE, text)
        wire = message.reply(waiter.query, Answer(message.SERVFAIL), ede=option, udp=waiter.udp)
        return Reply(wire, waiter.peer, waiter.client)

    def complete(self, token: int, packet: bytes, now: float) -> list[Reply] | Forward | None:
        """A response that `response.matches` what was asked: the replies it settles, the next attempt, or None: wait on.

        What is malformed over UDP may be forged; the true answer can still come (CVE-2023-28452, CVE-2023-29483).
        """
        pending = self._pending[token]
        server = pending.attempts[-1]
        try:
            answer = response.parse(
                packet,
                pending.question,
                without_ech=pending.zones.without_ech,
                without_private=pending.zones.without_private and pending.upstreams is pending.zones.default,
            )
        except MessageError:
            pending.malformed = True
            return self._unhelpful(token, "sent a malformed response", now) if pending.tcp else None
        if answer.flags & message.AD and not server.tls:  # anybody on the way could have said that
            answer = answer._replace(flags=answer.flags & message.AA)
        if answer.truncated:
            if pending.tcp:
                return self._unhelpful(token, "sent a truncated response over a connection", now)
            pending.tcp = True
            return self._forward(token, now)
        if answer.rcode in (message.FORMERR, message.NOTIMP) and pending.edns:
            pending.edns = False  # RFC 6891 section 7: perhaps a server that does not know EDNS
            return self._forward(token, now)
        if answer.rcode not in _USABLE:
            return self._unhelpful(token, f"answered {_RCODES.get(answer.rcode, answer.rcode)}", now)
        if answer.referral:
            return self._unhelpful(token, "answered with a referral: it does not resolve for us", now)
        if not pending.edns and pending.upstreams.health[server].plain_until <= now:
            pending.upstreams.health[server].plain_until = now + PLAIN_FOR
        pending.upstreams.succeeded(server, now - pending.asked)
        for each in pending.bad:
            pending.upstreams.set_aside(each, pending.started, now)
        return self._answered(token, answer, now)

    def _answered(self, token: int, answer: Answer, now: float) -> list[Reply]:
        pending = self._pending[token]
        self._close(token)
        judged = _judge(self.rules, pending.query.qname, answer)
        self._hear(pending.query.qname, judged, answer)
        if pending.zones is self.zones and (pending.waiters or not pending.shadow):
            self.cache.put(pending.key, answer, now, self.rules.judged if judged.everyday else NOBODY)
        return [self._answer(waiter, judged, answer) for waiter in pending.waiters]

    def _answer(self, waiter: _Waiter, judged: _Judged, answer: Answer) -> Reply:
        """What an upstream said, judged for whoever asked: the rules may have changed while it was asked."""
        rules = self._rules_for(waiter.client)
        if rules is not self.rules:
            judged = _judge(rules, waiter.query.qname, answer)
        return self._reply(waiter._replace(rules=rules), judged)

    def _hear(self, qname: Name, judged: _Judged, answer: Answer) -> None:
        """What an answer says about addresses. One that is blocked for an address alone says nothing about the others in it."""
        if self.heard is None or not (judged.by_name or judged.action is Action.PASS):
            return
        addresses = tuple([address for lead in answer.leads for address in lead.addresses])
        if addresses:
            seconds = max((seconds for _, seconds in answer.ttls), default=0)
            self.heard.append(Heard(qname, judged.decision, addresses, seconds))

    def hear_again(self, entries: Iterable[Entry]) -> None:
        """Whoever listens now has not heard of these cached answers."""
        for entry in entries:
            qname = Name(entry.key[:-3])
            self._hear(qname, _judge(self.rules, qname, entry.answer), entry.answer)

    def expire(self, token: int, reason: str, now: float, *, network: bool = False) -> list[Reply] | Forward:
        """No usable response came. `network`: because of an error of the network, not of silence."""
        pending = self._pending[token]
        server = pending.attempts[-1]
        if pending.malformed:
            return self._unhelpful(token, "sent a malformed response", now)
        pending.trouble, pending.network = f"{server} {reason}", network
        pending.upstreams.failed(server, pending.trouble, pending.asked, now)
        return self._next(token, now)

    def _unhelpful(self, token: int, reason: str, now: float) -> list[Reply] | Forward:
        """The server answered and could not help: it is not asked again for this question."""
        pending = self._pending[token]
        server = pending.attempts[-1]
        pending.bad |= {server}
        pending.trouble, pending.network = f"{server} {reason}", True
        pending.upstreams.unhelpful(server, pending.trouble, pending.asked, now)
        return self._next(token, now)


def _judge(rules: Rules, qname: Name, answer: Answer) -> _Judged:
    """What the question and every owner, target, address and hint of its answer lead to. The first block decides.

    The question is judged again: the rules may have changed while the upstream was asked. The other sections hold
    what nobody asked for: where they lead to something blocked, they are left out.
    """
    if unclaimed(rules.image, qname, answer):
        return _Judged(Action.PASS, None, answer, everyday=not rules.log_all)
    claims = rules.image.lookup(qname)
    action, decision = rules.board.choose(claims)
    if action is Action.BLOCK:
        return _Judged(action, decision, answer)
    if policy.allows(rules.image.classes, claims):
        addresses = [address for lead in answer.leads for address in lead.addresses]
        return _Judged(Action.PASS, None, answer, _passing(rules, answer, addresses))
    known = {qname: claims}
    led, found, addresses, by_name = _judge_leads(rules, answer.leads, known)
    if led is Action.BLOCK:
        return _Judged(led, found, answer, by_name=by_name)
    whole = not answer.extra_leads or _judge_leads(rules, answer.extra_leads, known)[0] is not Action.BLOCK
    return _Judged(
        max(action, led),
        decision or found,
        answer if whole else message.answer_only(answer),
        _passing(rules, answer, addresses),
        everyday=whole and not addresses and not (decision or found) and not rules.log_all,
        by_name=by_name or decision is not None,
    )


def _judge_leads(
    rules: Rules, leads: Iterable[Lead], known: dict[Name, Claims]
) -> tuple[Action, Decision | None, list[bytes], bool]:
    """(action, decision, the addresses that allowed names lead to, whether the decision is about a name).

    An allowed name passes with all that it leads to.
    """
    image, choose = rules.image, rules.board.choose
    audited: Decision | None = None
    by_name = True
    passed: set[Name] = set()
    addresses: list[bytes] = []
    for owner, targets, packed in leads:
        for name in (owner, *targets):
            if name not in known:
                known[name] = image.lookup(name)
        if owner in passed or policy.allows(image.classes, known[owner]):
            passed.update(targets)
            addresses += packed
            continue
        led = [known[owner], *(known[target] for target in targets), *map(image.lookup_address, packed)]
        for number, (action, decision) in enumerate(map(choose, led)):
            if action is Action.BLOCK:
                return action, decision, [], number <= len(targets)
            if decision is not None and audited is None:
                audited, by_name = decision, number <= len(targets)
    return Action.AUDIT if audited else Action.PASS, audited, addresses, by_name


def _passing(rules: Rules, answer: Answer, addresses: Iterable[bytes]) -> tuple[tuple[bytes, int], ...]:
    image, choose = rules.image, rules.board.choose
    seconds = max((seconds for _, seconds in answer.ttls), default=0)
    return tuple((a, seconds) for a in addresses if choose(image.lookup_address(a))[0] is Action.BLOCK)


#: YXDOMAIN: a DNAME made the name too long (RFC 6672 section 2.2), which is an answer
_USABLE = frozenset({message.NOERROR, message.NXDOMAIN, message.YXDOMAIN})
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
    if not query.qname.endswith(SPECIAL) and not zones.forward:  # nearly always
        return None
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
