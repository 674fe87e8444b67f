"""The query pipeline, without a socket or a clock.

`handle` takes a packet and gives what is to be done about it: a Reply, a Forward (ask this server), Joined (an equal question
is on its way), or a Drop. `complete` takes an upstream's response, `overdue` the news that none has come yet, and `expire`
that none will come; all give the replies that this settles (Settled), or the next Forward. The order of a query's gates
stands in `Engine.handle` and nowhere else; what an answer leads to is judged in `screening`, and which server is asked next
is decided in `questions`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from embargo.dns import message, response
from embargo.dns.acl import Acl
from embargo.dns.cache import RETRY, SCREEN_ALWAYS, Cache, CachedAnswer
from embargo.dns.denials import Denials
from embargo.dns.failures import Trouble
from embargo.dns.judgement import Attempt, Rules
from embargo.dns.message import Answer, Explanation, Query
from embargo.dns.questions import Exhausted, Forward, Noted, Question, Questions, Succeeded, Waiter
from embargo.dns.screening import Passing, Screened, behind, screen
from embargo.dns.zones import Zones
from embargo.lists import policy
from embargo.lists.policy import Action, Decision
from embargo.names import Name

STALE_AFTER = 1.8  # seconds a client waits for a fresh answer when there is an expired one (RFC 8767 section 5)
MAX_VERDICTS = 4  # kept about one cached answer: by the judgement of most clients, and by some of others
_UNEVENTFUL = Screened(Action.PASS, None, Answer(message.NOERROR), uneventful=True)
_FULL = Trouble(message.EDE_NO_REACHABLE, "too many questions of this client are on their way")


class Reply(NamedTuple):
    """Send `wire` to `peer`, which is what `handle` was given."""

    wire: bytes
    peer: object
    client: str = ""
    attempt: Attempt | None = None  # to be counted and logged
    passing: Passing | None = None  # what the firewall is to let pass before this is sent


class Settled(NamedTuple):
    """A question ended: replies for all clients that waited for it; none where it was asked in the background."""

    replies: list[Reply]


class Joined(NamedTuple):
    """An equal question is on its way; the reply comes with its answer."""


class Drop(NamedTuple):
    """No reply. `reason` names the gate: acl, short, response."""

    reason: str


class Resolved(NamedTuple):
    """The addresses that an upstream's answer has for a name: what the firewall learns."""

    name: Name  # that was asked for; of a blocked answer, the blocked name that it leads to
    decision: Decision | None  # the entry that blocks or audits it
    addresses: tuple[bytes, ...]  # 4 or 16 octets each
    seconds: int  # for how long a client may use them


class Engine:
    """The state of one worker's pipeline: rules, zones, cache, and the questions on their way.

    Every method takes `now`, seconds of a monotonic clock. The caller carries out what is returned.
    """

    def __init__(self, rules: Rules, zones: Zones, cache: Cache) -> None:
        self.rules = rules
        self.exempt: tuple[tuple[Acl, Rules], ...] = ()  # clients that are judged by rules of their own
        self.acl = rules.acl  # the clients that are answered, by whichever rules
        self.zones = zones
        self.cache = cache
        self._denials = Denials(cache)
        self._questions = Questions(zones)
        self.stale = 0  # replies with an expired answer
        self.refreshed = 0  # names asked again before their answer expired
        self.resolved: list[Resolved] | None = None  # gathered for the caller to take; None: the firewall does not need them

    @property
    def pending(self) -> int:
        """How many questions are on their way."""
        return len(self._questions)

    def adopt(
        self, rules: Rules, zones: Zones | None = None, exempt: Iterable[tuple[Acl, Rules]] = (), acl: Acl | None = None
    ) -> None:
        """Judge by other rules from the next packet on. Cached answers stay and are judged again when asked for.

        `exempt`: clients with rules of their own, the first that holds one decides; `acl`: all clients that are answered, when
        `rules.acl` leaves these out (so that the fast path declines them). Other zones empty the cache.
        """
        self.rules, self.exempt = rules, tuple(exempt)
        self.acl = rules.acl if acl is None else acl
        if self.zones.default.strip.private:  # whose private addresses may stay is a matter of the allow list too
            self.cache.drop_private()
        if zones is not None and zones != self.zones:
            self.zones = zones
            self.cache.clear()
            self._questions.follow(zones)

    def flush(self, name: Name) -> int:
        """Forget what upstreams said about a name and all names below it, failures too. How many answers that were.

        The caller forgets replies that it remembers (`fastpath`).
        """
        self._questions.failures.flush(name)
        self._denials.flush(name)
        return self.cache.flush(name)

    # ── a query ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(
        self, packet: bytes, client: str, peer: object, now: float, *, udp: bool = True
    ) -> Reply | Forward | Joined | Drop:
        """What to do about a packet from a client; `peer` comes back in the Reply. Gates in order: what, fate, why here."""
        # Outside the access list: no reply. First, so that nothing is sent to a forged address, and no work is done for it.
        if not self.acl.allows(client):
            return Drop("acl")
        # Shorter than a header: no reply, since it has no ID to reply with (RFC 1035 section 4.1.1).
        if len(packet) < 12:
            return Drop("short")
        # A response (QR is 1): no reply, or two servers could answer each other without end.
        if packet[2] & 0x80:
            return Drop("response")
        # Malformed, or no question of class IN: its rcode, see `message.parse_query`. No gate below could read it.
        try:
            query = message.parse_query(packet)
        except message.RejectedQuery as rejected:
            return Reply(message.reply(rejected.query, Answer(rejected.rcode), udp=udp), peer, client)
        rules = self._rules_for(client)
        waiter = Waiter(query, client, peer, udp)
        # A special-use name: answered here. Before every list, or an allow entry would send it to an upstream.
        answer = self.zones.special(query.qname, query.qtype)
        if answer is not None:
            return Reply(message.reply(query, answer, udp=udp), peer, client)
        # A blocked name, and no allow entry has it: the block. Before local records, so that an administrator can block a name
        # of a hosts file, and before the cache, so that a change of policy holds from the next query on.
        claims = rules.claims(query.qname, query.qtype)
        if claims:
            action, decision = rules.board.choose(claims)
            if action is Action.BLOCK and decision is not None:
                return self._block(rules, waiter, decision)
        # A local record: answered here, unless it leads to a blocked address. Before cache and upstream: local records precede
        # what the Internet says of the same name.
        answer = self.zones.local(query.qname, query.qtype)
        if answer is not None:
            return self._reply(rules, waiter, screen(rules, query, answer))
        # All else: from the cache, or from an upstream. Both are screened before they are given out.
        key = query.key
        return self._from_cache(rules, waiter, key, now) or self._ask(waiter, key, now)

    def _rules_for(self, client: str) -> Rules:
        if not self.exempt:  # nearly always
            return self.rules
        return next((rules for acl, rules in self.exempt if acl.allows(client)), self.rules)

    def _from_cache(self, rules: Rules, waiter: Waiter, key: bytes, now: float) -> Reply | None:
        """A live answer, judged by today's policy, or for a moment an expired one when no upstream answered just now."""
        entry = self.cache.get(key, now) or self._from_denial(key, now)
        if entry is not None:
            self.cache.hits += 1
            body = entry.body(now)
            if entry.turning is not None:
                body = message.turned(body, entry.turning, waiter.query.id)
            answer = entry.answer._replace(body=body)
            screened = self._verdict(rules, waiter.query, entry)
            if not screened.whole:
                answer = message.answer_only(answer)
            return self._reply(rules, waiter, screened._replace(answer=answer))
        self.cache.misses += 1
        expired = self.cache.stale(key, now)
        if expired is not None and now < expired.retry_at:
            return self._reply_stale(waiter, expired)
        return None

    def _from_denial(self, key: bytes, now: float) -> CachedAnswer | None:
        """An NXDOMAIN for another type of this name or for a name above it (RFC 8020), put into the cache for this key."""
        found = self._denials.of(key, now)
        if found is None:
            return None
        above, entry = found
        query = message.query_of(key)
        if self.zones.upstreams(above) is not self.zones.upstreams(query.qname):  # [dns] forward: they may have the name
            return None
        denied = message.own_question(message.query_of(entry.key))
        answer = response.below(entry.answer._replace(body=entry.body(now)), denied, message.own_question(query))
        if answer is not None:
            self.cache.put(key, answer._replace(lifetime=int(entry.expires - now)), now, SCREEN_ALWAYS)
        return self.cache.get(key, now)

    def _verdict(self, rules: Rules, query: Query, entry: CachedAnswer) -> Screened:
        """What a judgement says about a cached answer, without the answer: found once, since it costs much for a large one."""
        if rules is self.rules and entry.judged == rules.judged:
            return _UNEVENTFUL
        found: Screened | None = entry.verdicts.get(rules.judged) if entry.verdicts else None
        if found is None:
            found = screen(rules, query, entry.answer)
            found = _UNEVENTFUL if found.uneventful else found._replace(answer=_UNEVENTFUL.answer)
            if rules is self.rules:
                entry.judged = rules.judged if found.uneventful else SCREEN_ALWAYS
            if rules is not self.rules or not found.uneventful:
                self._keep_verdict(entry, rules.judged, found)
        return found

    def _keep_verdict(self, entry: CachedAnswer, judged: int, verdict: Screened) -> None:
        """Keep a verdict beside those by other judgements that are in force."""
        in_force = {self.rules.judged, *(rules.judged for _, rules in self.exempt)}
        kept = {number: old for number, old in (entry.verdicts or {}).items() if number in in_force}
        entry.verdicts = kept if len(kept) < MAX_VERDICTS else {}
        entry.verdicts[judged] = verdict

    def _ask(self, waiter: Waiter, key: bytes, now: float) -> Reply | Forward | Joined:
        if not self._questions.admit(key, waiter):
            return self._unanswered(key, waiter, _FULL, now)
        if self._questions.join(key, waiter):
            return Joined()
        outcome = self._questions.open(key, waiter.query, now, waiter)
        return outcome if isinstance(outcome, Forward) else self._failed(outcome.question, now)[0]

    # ── replies ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _block(self, rules: Rules, waiter: Waiter, decision: Decision, answer: str = "") -> Reply:
        query = waiter.query
        wire = message.reply(query, rules.block_answer(decision, query.qtype), ede=rules.ede(decision), udp=waiter.udp)
        attempt = Attempt(rules, query.qname, query.qtype, decision, rules.action_name(decision), answer=answer)
        return Reply(wire, waiter.peer, waiter.client, attempt)

    def _reply(self, rules: Rules, waiter: Waiter, screened: Screened, ede: bytes = b"") -> Reply:
        """The answer of a hosts file, the cache or an upstream, or the block that it deserves."""
        query, decision = waiter.query, screened.decision
        if screened.action is Action.BLOCK and decision is not None:
            return self._block(rules, waiter, decision, screened.lead)
        if screened.answer.ede is not None:
            ede = ede or message.ede(*screened.answer.ede)
        wire = message.reply(query, screened.answer, ede=ede, udp=waiter.udp)
        if decision is None and not rules.log_all:
            return Reply(wire, waiter.peer, waiter.client, None, screened.passing)
        attempt = Attempt(rules, query.qname, query.qtype, decision, "pass", audit=decision is not None, answer=screened.lead)
        return Reply(wire, waiter.peer, waiter.client, attempt, screened.passing)

    def _reply_stale(self, waiter: Waiter, expired: CachedAnswer) -> Reply:
        """An expired answer, judged as it would be today (RFC 8767)."""
        self.stale += 1
        answer = expired.stale()
        code = message.EDE_STALE_NXDOMAIN if answer.rcode == message.NXDOMAIN else message.EDE_STALE
        rules = self._rules_for(waiter.client)  # those of now: the client may have waited for seconds
        screened = screen(rules, waiter.query, answer)
        return self._reply(rules, waiter, screened, message.ede(code, "no upstream answers"))

    def _servfail(self, waiter: Waiter, trouble: Trouble | Explanation) -> Reply:
        wire = message.reply(waiter.query, Answer(message.SERVFAIL), ede=message.ede(*trouble), udp=waiter.udp)
        return Reply(wire, waiter.peer, waiter.client)

    # ── the end of a question ──────────────────────────────────────────────────────────────────────────────────────────

    def complete(self, token: int, packet: bytes, now: float) -> Settled | Forward:
        """A response that `response.matches` what was asked."""
        outcome = self._questions.complete(token, packet, now, self._allowed)
        return outcome if isinstance(outcome, Forward) else self._settled(outcome, now)

    def _allowed(self, qname: Name) -> bool:
        return policy.allows(self.rules.image.classes, self.rules.image.lookup(qname))

    def overdue(self, token: int, reason: str, now: float) -> Settled | Forward:
        """No response has come within the time that the server usually needs. It is still awaited."""
        outcome = self._questions.overdue(token, reason, now)
        return outcome if isinstance(outcome, Forward) else self._settled(outcome, now)

    def expire(self, token: int, reason: str, now: float, *, network: bool = False) -> Settled | Forward:
        """No usable response comes any more. `network`: because of an error of the network, not of silence."""
        outcome = self._questions.expire(token, reason, now, network=network)
        return outcome if isinstance(outcome, Forward) else self._settled(outcome, now)

    def _settled(self, outcome: Succeeded | Exhausted | Noted, now: float) -> Settled:
        match outcome:
            case Succeeded(question, answer):
                return Settled(self._answered(question, answer, now))
            case Exhausted(question):
                return Settled(self._failed(question, now))
            case Noted():
                return Settled([])

    def give_up(self, now: float) -> list[Reply]:
        """Replies for clients whose time is over, or whose questions gave way to those of others."""
        replies = [reply for failed in self._questions.overtime(now) for reply in self._failed(failed.question, now)]
        for question, waiters in self._questions.gave_way():
            replies += [self._unanswered(question.key, waiter, question.trouble, now) for waiter in waiters]
        return replies

    def reply_stale(self, now: float) -> list[Reply]:
        """Replies with expired answers, for clients that have waited long enough for fresh ones (RFC 8767 section 5)."""
        replies = []
        for question in self._questions.waited_for(STALE_AFTER, now):
            expired = self.cache.stale(question.key, now)
            if expired is not None:
                replies += [self._reply_stale(waiter, expired) for waiter in self._questions.release(question)]
        return replies

    def _answered(self, question: Question, answer: Answer, now: float) -> list[Reply]:
        screened = screen(self.rules, question.query, answer)
        self._note_resolved(question.query, screened, answer)
        if question.zones is self.zones and (question.waiters or not question.background):
            self.cache.put(question.key, answer, now, self.rules.judged if screened.uneventful else SCREEN_ALWAYS)
            if answer.rcode == message.NXDOMAIN:
                self._denials.note(question.key)
        return [self._answer(waiter, screened, answer) for waiter in self._questions.release(question)]

    def _answer(self, waiter: Waiter, screened: Screened, answer: Answer) -> Reply:
        """The reply with an upstream's answer. `screened`: by the rules of most clients."""
        rules = self._rules_for(waiter.client)
        if rules is not self.rules:
            screened = screen(rules, waiter.query, answer)
        return self._reply(rules, waiter, screened)

    def _failed(self, question: Question, now: float) -> list[Reply]:
        """Expired answers where there are some, and no upstream is asked again for a moment; else SERVFAIL with the reason."""
        if (expired := self.cache.stale(question.key, now)) is not None:
            expired.retry_at = now + RETRY
        trouble = question.explained or question.trouble
        return [self._unanswered(question.key, waiter, trouble, now) for waiter in self._questions.release(question)]

    def _unanswered(self, key: bytes, waiter: Waiter, trouble: Trouble | Explanation, now: float) -> Reply:
        """An expired answer if there is one, else SERVFAIL with the reason."""
        expired = self.cache.stale(key, now)
        return self._servfail(waiter, trouble) if expired is None else self._reply_stale(waiter, expired)

    # ── questions that no client waits for ─────────────────────────────────────────────────────────────────────────────

    def refresh(self, now: float) -> list[Forward]:
        """Ask for what the cache wants to have renewed, as far as there is room beside what clients wait for."""
        keys, self.cache.wanted = self.cache.wanted, []
        forwards = []
        for key in keys:
            query = message.query_of(key)
            blocked = self.rules.board.choose(self.rules.claims(query.qname, query.qtype))[0] is Action.BLOCK
            if blocked or self._questions.busy(key):
                continue
            outcome = self._questions.open(key, query, now)
            if isinstance(outcome, Forward):
                self.refreshed += 1
                forwards.append(outcome)
        return forwards

    def look_behind(self, qname: Name, qtype: int, now: float) -> Forward | None:
        """Ask which addresses are behind a blocked name: no client gets the answer, it is `resolved`. None: not now."""
        query = message.own_query(qname, qtype)
        if self._questions.busy(query.key):
            return None
        outcome = self._questions.open(query.key, query, now, background=True)
        return outcome if isinstance(outcome, Forward) else None  # Exhausted: there is no upstream to ask

    # ── addresses for the firewall ─────────────────────────────────────────────────────────────────────────────────────

    def note_cached(self, entries: Iterable[CachedAnswer]) -> None:
        """Add what these cached answers say about addresses to `resolved`, as if they came now."""
        for entry in entries:
            query = message.query_of(entry.key)
            self._note_resolved(query, self._verdict(self.rules, query, entry), entry.answer)

    def _note_resolved(self, query: Query, screened: Screened, answer: Answer) -> None:
        """What an answer says about addresses. One that is blocked for one address alone says nothing about the others."""
        if self.resolved is None or not (screened.by_name or screened.action is Action.PASS):
            return
        addresses = tuple([address for lead in answer.leads for address in lead.addresses])
        name, decision = query.qname, screened.decision
        if decision is not None:
            found = behind(self.rules, name, answer) if query.qtype in (message.A, message.AAAA) else None
            if found is None:
                return
            name, decision = found
        if addresses:
            seconds = max((seconds for _, seconds in answer.ttls), default=0)
            self.resolved.append(Resolved(name, decision, addresses, seconds))
