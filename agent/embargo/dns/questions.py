"""Questions on their way upstream: which server is asked next and how, and when a question ends.

A question is opened for clients that wait for its answer, to renew a cached answer, or to learn what is behind a blocked
name. Equal questions are one: later clients join the first. A question asks one server after the other; one server asked
once is a try, with these states and transitions:

    state        event                          next
    EDNS         FORMERR or NOTIMP              the same server without EDNS (RFC 6891 section 7)
    UDP          truncated                      the same server over TCP (RFC 7766 section 5)
    any          malformed                      the next server at once: ID, port and question were right, so it is no more
                                                likely to be forged than a useful answer
    TCP, TLS     truncated                      the next server
    any          another rcode, a referral      the next server; this one is not asked again for this question
    any          overdue                        the next server as well; the answer to this try is still used
    any          an error of the network        the next server; one that was asked already, after a moment
    any          a useful answer                the end

A question fails when `Upstreams.choose` has no server left for it and no try is awaited, or when its time is over; `failures`
remembers that for a moment. Tries of a question that has failed are still awaited: their answer is for the cache, and for
clients that have asked again meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from embargo.dns import message, response, shares
from embargo.dns.failures import Failures, Trouble
from embargo.dns.message import Answer, Explanation, Query
from embargo.dns.shares import Places
from embargo.dns.upstream import DEADLINE, Server, Upstreams
from embargo.dns.zones import Zones
from embargo.errors import MessageError
from embargo.names import Name

MAX_PENDING = 1000  # questions on their way for clients, per worker: a flood of different names is bounded
MAX_OF_ZONE = MAX_PENDING // 2  # of them about names of one zone, whose servers may be dead
MAX_BACKGROUND = 250  # questions on their way that were opened for no client
PAUSE = 0.25  # seconds until a server is asked again after an error of the network, which an address that changes causes too
MAX_WAITING = 10_000  # clients behind all of them
MAX_PASSED_ON = 4  # questions that go on for others, when room is made for one client; more would take long

_RCODES = {message.FORMERR: "FORMERR", message.SERVFAIL: "SERVFAIL", message.NOTIMP: "NOTIMP", message.REFUSED: "REFUSED"}


class Forward(NamedTuple):
    """Ask `server` for `query`. Call `overdue` if no answer comes within `wait` seconds; `complete` or `expire` in the end."""

    token: int
    server: Server
    query: Query
    edns: bool
    tcp: bool
    wait: float
    delay: float = 0.0  # seconds until it is asked


class Noted(NamedTuple):
    """There is nothing to do: the question goes on by itself, or has ended before."""


class Waiter(NamedTuple):
    """A client that waits for an answer, and how the reply gets to it."""

    query: Query
    client: str  # its address
    peer: object  # what the shell sends the reply by
    udp: bool


_GAVE_WAY = Trouble(message.EDE_NO_REACHABLE, "gave way to a question of a client with fewer on their way")
_NOT_ASKED = Trouble(message.EDE_NO_REACHABLE, "no upstream is configured")


class _Try:
    """One server asked once. The table at the top of the module says what follows from its end."""

    __slots__ = ("asked_at", "edns", "edns_refused", "overdue", "question", "server", "tcp", "upstreams", "zones")

    def __init__(self, question: "Question", server: Server, now: float) -> None:
        self.question = question
        self.zones, self.upstreams = question.zones, question.upstreams  # those of the question may be replaced
        self.server = server
        # DO cannot be said without EDNS, so such a question is always tried with it
        self.edns = question.query.do or self.upstreams.health[server].plain_until <= now
        self.tcp = server.tcp
        self.edns_refused = False  # the same server gave FORMERR or NOTIMP with EDNS
        self.overdue = False
        self.asked_at = now


class Question:
    """A question on its way, and the clients that wait for its answer."""

    __slots__ = (
        "answered", "asked", "awaited", "background", "explained", "key", "octets", "query", "started", "trouble", "unhelpful",
        "upstreams", "waiters", "zones",
    )  # fmt: skip

    def __init__(self, key: bytes, query: Query, zones: Zones, now: float) -> None:
        self.key = key
        self.query = query
        self.octets = message.own_question(query)
        self.started = now
        self.waiters: list[Waiter] = []
        self.background = False  # it was asked to learn what is behind a blocked name: not for the cache
        self.trouble: Trouble | Explanation = _NOT_ASKED
        self.awaited = 0  # tries that may still be answered
        self.answered = False
        self.explained: Explanation | Trouble | None = (
            None  # by the last server that said why it failed: better than our own word
        )
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
        self._questions: dict[Question, None] = {}  # an ordered set, in the order of their start
        self._by_key: dict[bytes, Question] = {}  # those that clients may join
        self._tries: dict[int, _Try] = {}  # by token, those of questions that have ended too
        self.failures = Failures()
        self._places: Places[Question] = Places(MAX_PENDING, MAX_OF_ZONE)
        self._gave_way: list[tuple[Question, list[Waiter]]] = []
        self._waiting = 0  # clients
        self._waiting_of: Counter[str] = Counter()  # the same by address
        self._last_token = 0

    def __len__(self) -> int:
        return len(self._questions)

    def follow(self, zones: Zones) -> None:
        """Ask by other settings. Clients that ask from now on do not wait for answers by the old ones."""
        self.zones = zones
        self._by_key.clear()
        self.failures.clear()

    # ── clients ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def admit(self, key: bytes, waiter: Waiter) -> bool:
        """Make room for one more client to wait. False: this client waits for as much as there is room left for."""
        if self._waiting_of[waiter.client] >= MAX_WAITING - self._waiting:
            return False
        if key not in self._by_key and len(self._places) >= MAX_OF_ZONE:
            zone = self._zone(waiter.query)
            passed_on = 0
            while (question := self._places.giving_way(zone)) is not None:
                self._give_way(question, whole=passed_on == MAX_PASSED_ON)
                passed_on += bool(question.waiters)
        return True

    def _give_way(self, question: Question, *, whole: bool) -> None:
        """End a question for the group of clients whose place it has. If others wait for it too, and it is not to end as a
        `whole`, it goes on for them."""
        group = shares.group(self._places.client(question))
        self._places.remove(question)
        waiters = self.release(question)
        leaving: list[Waiter] = []
        for waiter in waiters:
            if whole or shares.group(waiter.client) == group:
                leaving.append(waiter)
            else:
                self._wait(question, waiter)
        self._gave_way.append((question, leaving))
        if not question.waiters:
            self._close(question)

    def gave_way(self) -> Iterator[tuple[Question, list[Waiter]]]:
        """The questions that gave way to others since the last call, and the clients that no longer wait for them."""
        ended, self._gave_way = self._gave_way, []
        for question, waiters in ended:
            question.trouble = _GAVE_WAY
            yield question, waiters

    def _zone(self, query: Query) -> tuple[int, Name]:
        """What tells the zone of a question from others."""
        upstreams = self.zones.upstreams(query.qname)
        return id(upstreams), upstreams.zone(query.qname)

    def busy(self, key: bytes) -> bool:
        """Whether a question that no client waits for is not to be asked: it is on its way, or many such questions are."""
        return key in self._by_key or len(self._questions) - len(self._places) >= MAX_BACKGROUND

    def join(self, key: bytes, waiter: Waiter) -> bool:
        """Let a client wait for an equal question; False when none is on its way."""
        question = self._by_key.get(key)
        if question is None:
            return False
        self._wait(question, waiter)
        return True

    def _wait(self, question: Question, waiter: Waiter) -> None:
        if not self._places.client(question):
            self._places.add(question, waiter.client, self._zone(question.query))
        self._waiting += 1
        self._waiting_of[waiter.client] += 1
        question.waiters.append(waiter)

    def release(self, question: Question) -> list[Waiter]:
        """The clients that have waited for a question, and no longer do."""
        waiters, question.waiters = question.waiters, []
        self._waiting -= len(waiters)
        for waiter in waiters:
            self._waiting_of[waiter.client] -= 1
            if not self._waiting_of[waiter.client]:
                del self._waiting_of[waiter.client]
        return waiters

    def waited_for(self, seconds: float, now: float) -> Iterator[Question]:
        """The questions asked at least so many seconds ago, for which clients wait."""
        for question in self._questions:
            if now < question.started + seconds:
                break
            if question.waiters:
                yield question

    # ── what is asked ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(
        self, key: bytes, query: Query, now: float, waiter: Waiter | None = None, *, background: bool = False
    ) -> Forward | Exhausted:
        """Ask a question, for a client or for none."""
        question = Question(key, query, self.zones, now)
        question.background = background
        self._questions[question] = None
        self._by_key[key] = question
        if waiter is not None:
            self._wait(question, waiter)
        if (failure := self.failures.current(key, now)) is not None:
            question.unhelpful, question.trouble = failure.servers, failure.why
        outcome = self._next(question, now)
        assert not isinstance(outcome, Noted), "no try is awaited yet"
        return outcome

    def complete(
        self, token: int, packet: bytes, now: float, allowed: Callable[[Name], bool]
    ) -> Forward | Noted | Succeeded | Exhausted:
        """A response came that `response.matches` the question. `allowed`: whether an allow list has a name, so that it may
        have private addresses."""
        tried = self._tries[token]
        question, upstreams = tried.question, tried.upstreams
        strip, qname = upstreams.strip, question.query.qname
        if strip.private and (tried.zones.may_be_private(qname) or allowed(qname)):
            strip = strip._replace(private_meant=True)
        try:
            answer = response.parse(packet, question.octets, strip)
        except MessageError:
            return self._unhelpful(token, "sent a malformed response", now)
        if answer.ede is not None:  # its reader would take it for ours (RFC 8914 section 3)
            answer = answer._replace(ede=answer.ede._replace(text=f"{tried.server}: {answer.ede.text}"))
            question.explained = answer.ede
        if answer.truncated:
            if tried.tcp:
                return self._unhelpful(token, "sent a truncated response over a connection", now)
            return self._again(token, now, tcp=True)
        if answer.rcode in (message.FORMERR, message.NOTIMP) and tried.edns:
            return self._again(token, now, edns=False)
        if reason := _unusable(answer):
            return self._unhelpful(token, reason, now)
        self._ended(token)
        if tried.edns_refused:
            upstreams.answered_plain(tried.server, upstreams.zone(question.query.qname), now)
        elif tried.edns and not upstreams.health[tried.server].knows_edns and message.has_edns(packet):
            upstreams.answered_edns(tried.server)
        upstreams.succeeded(tried.server, now - tried.asked_at, now)
        if answer.flags & message.AD and not tried.server.tls:  # it could have been set on the way
            answer = answer._replace(flags=answer.flags & message.AA)
        return self._answered(tried, answer, now)

    def _answered(self, tried: _Try, answer: Answer, now: float) -> Noted | Succeeded:
        """A useful answer: it ends the question, or an equal one that was opened after this one had failed."""
        question = tried.question
        if tried.zones is not question.zones:  # other settings would have asked elsewhere
            return Noted()
        self.failures.answered(question.key, tried.server)
        if question.answered:
            return Noted()
        if len(question.asked) > 1:
            self._note_outdone(question, tried.server, now)
        if question not in self._questions:
            later = self._by_key.get(question.key)
            question = later if later is not None and later.zones is tried.zones else question
        question.answered = True
        if question in self._questions:
            self._close(question)
        return Succeeded(question, answer)

    def _note_outdone(self, question: Question, server: Server, now: float) -> None:
        """The others that were asked could not help where this one could: the name was probably not at fault."""
        others = frozenset(question.asked) - {server}
        zone = question.upstreams.zone(question.query.qname)
        for other in others & question.unhelpful:
            question.upstreams.outdone(other, zone, question.started, now)
        if others:
            self.failures.note(question.key, others, question.explained or question.trouble, now)

    def overdue(self, token: int, reason: str, now: float) -> Forward | Noted | Exhausted:
        """No response has come within the usual time: another server is asked as well."""
        tried = self._tries[token]
        question = tried.question
        tried.overdue = True
        question.trouble = Trouble(message.EDE_NO_REACHABLE, f"{tried.server} {reason}")
        zone = tried.upstreams.zone(question.query.qname)
        tried.upstreams.overdue(tried.server, question.trouble.text, zone, tried.asked_at, now)
        return self._next(question, now) if question in self._questions else Noted()

    def expire(self, token: int, reason: str, now: float, *, network: bool = False) -> Forward | Noted | Exhausted:
        """No response comes any more. `network`: because of an error of the network, not of silence."""
        tried = self._tries[token]
        question = tried.question
        self._ended(token)
        text = f"{tried.server} {reason}"
        if network:
            tried.upstreams.failed(tried.server, text, tried.upstreams.zone(question.query.qname), tried.asked_at, now)
        else:
            tried.upstreams.silent(tried.server)
        if question not in self._questions or (tried.overdue and question.awaited):
            return Noted()
        question.trouble = Trouble(message.EDE_NETWORK if network else message.EDE_NO_REACHABLE, text)
        return self._next(question, now, pause=network)

    def overtime(self, now: float) -> Iterator[Exhausted]:
        """Questions end whose time is over."""
        while self._questions and now >= (question := next(iter(self._questions))).started + DEADLINE:
            if question.trouble is _NOT_ASKED and question.asked:
                question.trouble = Trouble(message.EDE_NO_REACHABLE, f"{question.asked[-1]} did not answer in {DEADLINE:.1f} s")
            yield self._fail(question, now)

    def _unhelpful(self, token: int, reason: str, now: float) -> Forward | Noted | Exhausted:
        """The server answered and could not help: it is not asked again for this question, but another one."""
        tried = self._tries[token]
        self._ended(token)
        self._note_unhelpful(tried, reason, now)
        question = tried.question
        if question not in self._questions or (tried.overdue and question.awaited):  # another one was asked already
            return Noted()
        return self._next(question, now)

    def _note_unhelpful(self, tried: _Try, reason: str, now: float) -> None:
        question, upstreams = tried.question, tried.upstreams
        text = f"{tried.server} {reason}"
        upstreams.unhelpful(tried.server, text, upstreams.zone(question.query.qname), tried.asked_at, now)
        question.unhelpful |= {tried.server}
        question.trouble = Trouble(message.EDE_NETWORK, text)

    # ── tries ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _next(self, question: Question, now: float, *, pause: bool = False) -> Forward | Noted | Exhausted:
        """Ask the next server, wait for those that were asked, or end the question. `pause`: before one is asked again."""
        if question.zones is not self.zones:
            question.go_by(self.zones)
        upstreams = question.upstreams
        server = upstreams.choose(question.asked, question.unhelpful, now)
        if now >= question.started + DEADLINE or (server is None and not question.awaited):
            return self._fail(question, now)
        if server is None:
            return Noted()
        wait = upstreams.wait(server, question.asked, question.started, now)
        delay = PAUSE * question.asked.count(server) if pause else 0.0
        question.asked = (*question.asked, server)
        upstreams.asked(server, now)
        return self._forward(_Try(question, server, now + delay), wait, delay)

    def _again(self, token: int, now: float, *, tcp: bool = False, edns: bool = True) -> Forward | Noted:
        """Ask the same server in another way."""
        tried = self._tries[token]
        question = tried.question
        self._ended(token)
        if question.answered or tried.zones is not question.zones:
            return Noted()
        again = _Try(question, tried.server, now)
        again.tcp, again.edns = tried.tcp or tcp, tried.edns and edns
        again.edns_refused = tried.edns_refused or not edns
        return self._forward(again, tried.upstreams.wait(tried.server, (), question.started, now))

    def _forward(self, tried: _Try, wait: float, delay: float = 0.0) -> Forward:
        self._last_token = token = self._last_token + 1
        self._tries[token] = tried
        tried.question.awaited += 1
        return Forward(token, tried.server, tried.question.query, tried.edns, tried.tcp, wait, delay)

    def _ended(self, token: int) -> None:
        """This try is no longer awaited."""
        self._tries.pop(token).question.awaited -= 1

    def _fail(self, question: Question, now: float) -> Exhausted:
        """End a question without an answer, and remember that unless it is what was remembered."""
        self._close(question)
        if question.asked:
            self.failures.note(
                question.key, question.unhelpful.union(question.asked), question.explained or question.trouble, now
            )
        return Exhausted(question)

    def _close(self, question: Question) -> None:
        del self._questions[question]
        self._places.remove(question)
        if self._by_key.get(question.key) is question:
            del self._by_key[question.key]


def _unusable(answer: Answer) -> str:
    """Why another server has to be asked, as the predicate of a sentence about this one; empty when the answer is of use."""
    if answer.rcode not in response.USABLE:
        return f"answered {_RCODES.get(answer.rcode, answer.rcode)}"
    if answer.referral:
        return "answered with a referral: it does not resolve for us"
    return ""
