"""Questions on their way upstream: which server is asked next and how, and when a question ends.

A question is opened for clients that wait for its answer, to renew a cached answer, or to learn what is behind a blocked
name. Equal questions are one: later clients join the first. A question asks one server after the other; one server asked
once is an exchange, with these states and transitions:

    state        event                          next
    EDNS         FORMERR or NOTIMP              the same server without EDNS (RFC 6891 section 7)
    UDP          truncated                      the same server over TCP (RFC 7766 section 5)
    UDP          malformed                      no change: it may be forged, and the true response can still come
                                                (CVE-2023-28452, CVE-2023-29483)
    TCP, TLS     malformed or truncated         the next server
    any          another rcode, a referral      the next server; this one is not asked again for this question
    any          silence                        the next server
    any          a useful answer                the end

A question fails when `Upstreams.choose` has no server left for it, or when its time is over.
"""

from collections.abc import Iterator
from typing import NamedTuple

from embargo.dns import message, response
from embargo.dns.message import Answer, Query
from embargo.dns.upstream import DEADLINE, PLAIN_FOR, Server, Upstreams
from embargo.dns.zones import Zones
from embargo.errors import MessageError

MAX_PENDING = 1000  # questions on their way, per worker: a flood of different names is bounded
MAX_BACKGROUND = MAX_PENDING // 4  # questions on their way above which none is begun for which no client waits
MAX_WAITING = 10_000  # clients behind all of them

#: YXDOMAIN: a DNAME made the name too long (RFC 6672 section 2.2), which is an answer
_USABLE = frozenset({message.NOERROR, message.NXDOMAIN, message.YXDOMAIN})
_RCODES = {message.FORMERR: "FORMERR", message.SERVFAIL: "SERVFAIL", message.NOTIMP: "NOTIMP", message.REFUSED: "REFUSED"}


class Forward(NamedTuple):
    """Ask `server` for `query` within `timeout` seconds, then call `complete` or `expire` with the token."""

    token: int
    server: Server
    query: Query
    edns: bool
    tcp: bool
    timeout: float


class KeepWaiting(NamedTuple):
    """The response is malformed and may be forged: wait for the true one until the Forward times out."""


class Waiter(NamedTuple):
    """A client that waits for an answer, and how the reply gets to it."""

    query: Query
    client: str  # its address
    peer: object  # what the shell sends the reply by
    udp: bool


class Trouble(NamedTuple):
    """Why the last exchange failed, for the EDE of a SERVFAIL."""

    code: int  # of RFC 8914
    text: str


class _Exchange:
    """One server asked once. The table at the top of the module says how its state changes."""

    __slots__ = ("asked_at", "edns", "malformed", "server", "tcp")

    def __init__(self, server: Server, edns: bool, now: float) -> None:
        self.server = server
        self.edns = edns
        self.tcp = server.tcp
        self.malformed = False  # a malformed response came
        self.asked_at = now


class Question:
    """A question on its way, and the clients that wait for its answer."""

    __slots__ = (
        "asked", "background", "exchange", "key", "octets", "query", "started", "trouble", "unhelpful", "upstreams", "waiters",
        "zones",
    )  # fmt: skip

    exchange: _Exchange  # with the server asked last

    def __init__(self, key: bytes, query: Query, zones: Zones, now: float) -> None:
        self.key = key
        self.query = query
        self.octets = message.own_question(query)
        self.started = now
        self.waiters: list[Waiter] = []
        self.background = False  # it was asked to learn what is behind a blocked name: not for the cache
        self.trouble = Trouble(message.EDE_NO_REACHABLE, "no upstream is configured")
        self.go_by(zones)

    def go_by(self, zones: Zones) -> None:
        """Ask the servers that these settings name, as if none had been asked so far."""
        self.zones = zones
        self.upstreams: Upstreams = zones.upstreams(self.query.qname)
        self.asked: tuple[Server, ...] = ()
        self.unhelpful: frozenset[Server] = frozenset()  # these answered and could not help


class Succeeded(NamedTuple):
    """A question ended with a useful answer."""

    question: Question
    answer: Answer


class Exhausted(NamedTuple):
    """A question ended without an answer; `question.trouble` says why."""

    question: Question


class Questions:
    """All questions on their way. `zones`: the settings by which questions are asked from now on."""

    def __init__(self, zones: Zones) -> None:
        self.zones = zones
        self._questions: dict[int, Question] = {}  # by token, in the order of their start
        self._tokens: dict[bytes, int] = {}  # by key
        self._waiting = 0  # clients
        self._last_token = 0

    def __len__(self) -> int:
        return len(self._questions)

    def follow(self, zones: Zones) -> None:
        """Ask by other settings. Clients that ask from now on do not wait for answers by the old ones."""
        self.zones = zones
        self._tokens.clear()

    # ── clients ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def full(self, key: bytes) -> bool:
        """Whether no client may wait for this question, because too many do or too many questions are on their way."""
        return self._waiting >= MAX_WAITING or (len(self._questions) >= MAX_PENDING and key not in self._tokens)

    def busy(self, key: bytes) -> bool:
        """Whether a question that no client waits for is not to be asked: it is on its way, or clients need the room."""
        return key in self._tokens or len(self._questions) >= MAX_BACKGROUND

    def join(self, key: bytes, waiter: Waiter) -> bool:
        """Let a client wait for an equal question; False when none is on its way."""
        token = self._tokens.get(key)
        if token is None:
            return False
        self._waiting += 1
        self._questions[token].waiters.append(waiter)
        return True

    def release(self, question: Question) -> list[Waiter]:
        """The clients that waited for a question, which no longer do."""
        waiters, question.waiters = question.waiters, []
        self._waiting -= len(waiters)
        return waiters

    def waited_for(self, seconds: float, now: float) -> Iterator[Question]:
        """The questions asked at least so many seconds ago, for which clients wait."""
        for question in self._questions.values():
            if now < question.started + seconds:
                break
            if question.waiters:
                yield question

    # ── what is asked ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(
        self, key: bytes, query: Query, now: float, waiter: Waiter | None = None, *, background: bool = False
    ) -> Forward | Exhausted:
        """Ask a question, for a client or for none."""
        self._last_token = token = self._last_token + 1
        question = self._questions[token] = Question(key, query, self.zones, now)
        question.background = background
        self._tokens[key] = token
        if waiter is not None:
            question.waiters.append(waiter)
            self._waiting += 1
        return self._next(token, now)

    def complete(self, token: int, packet: bytes, now: float) -> Forward | KeepWaiting | Succeeded | Exhausted:
        """A response came that `response.matches` the question."""
        question = self._questions[token]
        exchange, upstreams = question.exchange, question.upstreams
        server = exchange.server
        try:
            answer = response.parse(packet, question.octets, upstreams.strip)
        except MessageError:
            exchange.malformed = True
            return self._unhelpful(token, "sent a malformed response", now) if exchange.tcp else KeepWaiting()
        if answer.truncated:
            if exchange.tcp:
                return self._unhelpful(token, "sent a truncated response over a connection", now)
            exchange.tcp = True
            return self._forward(token, now)
        if answer.rcode in (message.FORMERR, message.NOTIMP) and exchange.edns:
            exchange.edns = False
            return self._forward(token, now)
        if reason := _unusable(answer):
            return self._unhelpful(token, reason, now)
        if not exchange.edns and upstreams.health[server].plain_until <= now:
            upstreams.health[server].plain_until = now + PLAIN_FOR
        upstreams.succeeded(server, now - exchange.asked_at)
        for other in question.unhelpful:  # the name was not at fault
            upstreams.set_aside(other, question.started, now)
        if answer.flags & message.AD and not server.tls:  # it could have been set on the way
            answer = answer._replace(flags=answer.flags & message.AA)
        self._close(token)
        return Succeeded(question, answer)

    def expire(self, token: int, reason: str, now: float, *, network: bool = False) -> Forward | Exhausted:
        """No usable response came in time. `network`: because of an error of the network, not of silence."""
        question = self._questions[token]
        exchange = question.exchange
        if exchange.malformed:
            return self._unhelpful(token, "sent a malformed response", now)
        code = message.EDE_NETWORK if network else message.EDE_NO_REACHABLE
        question.trouble = Trouble(code, f"{exchange.server} {reason}")
        question.upstreams.failed(exchange.server, question.trouble.text, exchange.asked_at, now)
        return self._next(token, now)

    def _unhelpful(self, token: int, reason: str, now: float) -> Forward | Exhausted:
        """The server answered and could not help: it is not asked again for this question."""
        question = self._questions[token]
        exchange = question.exchange
        question.unhelpful |= {exchange.server}
        question.trouble = Trouble(message.EDE_NETWORK, f"{exchange.server} {reason}")
        question.upstreams.unhelpful(exchange.server, question.trouble.text, exchange.asked_at, now)
        return self._next(token, now)

    def _next(self, token: int, now: float) -> Forward | Exhausted:
        """Ask the next server, or end the question."""
        question = self._questions[token]
        if question.zones is not self.zones:
            question.go_by(self.zones)
        upstreams = question.upstreams
        server = upstreams.choose(question.asked, question.unhelpful, now)
        if server is None or now >= question.started + DEADLINE:
            self._close(token)
            return Exhausted(question)
        question.asked = (*question.asked, server)
        question.exchange = _Exchange(server, upstreams.health[server].plain_until <= now, now)
        upstreams.asked(server, now)
        return self._forward(token, now)

    def _forward(self, token: int, now: float) -> Forward:
        question = self._questions[token]
        exchange = question.exchange
        timeout = question.upstreams.timeout(len(question.asked) - 1, question.started, now)
        return Forward(token, exchange.server, question.query, exchange.edns, exchange.tcp, timeout)

    def _close(self, token: int) -> None:
        question = self._questions.pop(token)
        if self._tokens.get(question.key) == token:
            del self._tokens[question.key]
        self._waiting -= len(question.waiters)


def _unusable(answer: Answer) -> str:
    """Why another server has to be asked, as the predicate of a sentence about this one; empty when the answer is of use."""
    if answer.rcode not in _USABLE:
        return f"answered {_RCODES.get(answer.rcode, answer.rcode)}"
    if answer.referral:
        return "answered with a referral: it does not resolve for us"
    return ""
