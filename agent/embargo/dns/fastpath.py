"""The reply to a blocked or cached query from the raw packet, without an object per packet.

This is a shortcut of the engine's decision, not a second one: it answers a packet only where the engine would give the
same octets, and declines (None) whatever is unusual: another opcode, a second question, odd EDNS, a special name, an
audited or allow-listed name. A cached answer that this judgement has passed needs no look-up; otherwise the policy is
asked first. Replies are remembered by the octets of the query: a block for as long as the judgement holds, a cached answer
until its TTLs change.

`native.fastpath` is the compiled twin. It is used by that of `daemon.resolve.intake` alone, which takes a batch of packets.
"""

import math
from typing import Any, NamedTuple

from embargo.dns import message, special
from embargo.dns.cache import SCREEN_ALWAYS, Cache, CachedAnswer
from embargo.dns.judgement import Attempt, Rules, unclaimed
from embargo.lists.policy import Action, Decision
from embargo.names import Name

MAX_JUDGED = 64  # records in an answer that is judged here; larger ones are the engine's, which works in turns
MEMO_HALF = 8192  # packets; both halves together take some 16 MiB when full


class Known:
    """The reply to a packet seen before, but for its ID: the same for every client that sends it."""

    __slots__ = ("attempt", "cut", "entry", "rest", "turning", "until")

    def __init__(
        self, rest: bytes, until: float, attempt: Attempt | None, entry: CachedAnswer | None, cut: bool = False
    ) -> None:
        self.rest = rest
        self.turning: message.Turning | None = None  # addresses in `rest`
        self.cut = cut  # it has TC in place of the answer, for UDP alone
        self.until = until  # when the TTLs in it change
        self.attempt = attempt  # of a blocked packet
        self.entry = entry  # of a cached answer

    def reply(self, ident: bytes) -> bytes:
        """The reply to a query with this ID."""
        if self.turning is None:
            return ident + self.rest
        return ident + message.turned(self.rest, self.turning, int.from_bytes(ident))


class Memo:
    """The replies to packets seen before, whatever their ID. When the younger half is full, the older half is dropped."""

    def __init__(self) -> None:
        self._young: dict[bytes, Known] = {}
        self._old: dict[bytes, Known] = {}

    def get(self, key: bytes) -> Known | None:
        """`key`: a packet without its ID."""
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self._young[key] = found
        return found

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def put(self, key: bytes, known: Known) -> None:
        """Remember the reply to a packet without its ID."""
        if len(self._young) >= MEMO_HALF:
            self._old, self._young = self._young, {}
        self._young[key] = known


class Shortcut:
    """One judgement, the cache, and replies by them. Another judgement needs a new Shortcut, which begins without replies."""

    def __init__(self, rules: Rules, cache: Cache) -> None:
        self._rules = rules
        self._cache = cache
        self._memo = Memo()

    def answer(self, packet: bytes, client: str, now: float, *, udp: bool = True) -> Known | None:
        """The reply to a query, blocked or cached, or None to decline."""
        if not self._rules.acl.allows(client):
            return None
        key = packet[2:]
        known = self._memo.get(key)
        if known is not None and now < known.until and (udp or not known.cut):
            if known.entry is not None:
                known.entry.used = True  # asked for again: it stays in the cache, and is fetched anew before it expires
                self._cache.hits += 1
            return known
        query = _plain(packet)
        if query is None:
            return None
        limit = query.limit
        if not udp:  # the largest reply that is made here; the engine sends larger ones
            query = query._replace(limit=message.MAX_UDP)
        known = _cached(query, self._rules, self._cache, now, udp=udp) or _blocked(query, self._rules)
        # options may differ every time (RFC 7873), and a reply over TCP may be too large for UDP
        if known is not None and len(packet) == query.usual_size and 2 + len(known.rest) <= limit:
            self._memo.put(key, known)
        return known


class _Query(NamedTuple):
    """A query that the fast path understands."""

    qname: Name
    question: bytes  # name as it was sent, type and class
    variant: int  # 0 without EDNS, 3 with it, 6 with DO: which OPT the reply has
    limit: int  # octets of a reply over UDP
    rd: int
    cd: int
    ad: int  # 0x20 when the client wants the AD bit: it set AD or DO
    usual_size: int  # octets of this query without EDNS options


_COUNTS_PLAIN = b"\0\1\0\0\0\0\0\0"
_COUNTS_EDNS = b"\0\1\0\0\0\0\0\1"


def _plain(packet: bytes) -> _Query | None:
    """The query in a packet: one question of class IN, at most one OPT and no other record; None for anything else."""
    end = _question_end(packet)
    if not end:
        return None
    counts, limit, variant, usual_size = packet[4:12], 512, 0, end
    if counts == _COUNTS_EDNS:
        # one OPT: root owner, type 41, size, extended rcode 0, version 0, flags, whole options
        opt = packet[end:]
        if len(opt) < 11 or opt[:3] != b"\0\0\x29" or opt[5:7] != b"\0\0" or not _whole_options(opt):
            return None
        limit = min(max(opt[3] << 8 | opt[4], 512), message.MAX_UDP)
        variant = 6 if opt[7] & 0x80 else 3
        usual_size = end + 11
    elif counts != _COUNTS_PLAIN or end != len(packet):
        return None
    qname: Name = packet[12 : end - 4].lower()  # type: ignore[assignment] # NewType is a call, and this is the hot path
    flags = packet[3] | (0x20 if variant == 6 else 0)
    return _Query(qname, packet[12:end], variant, limit, packet[2] & 1, flags & 0x10, flags & 0x20, usual_size)


def _question_end(packet: bytes) -> int:
    """Where the question of a plain query ends; 0 for another packet."""
    # response, opcode, AA and TC in the first flags octet, RA, Z and rcode in the second: all zero in a plain query
    if len(packet) < 17 or packet[2] & 0xFE or packet[3] & 0xCF:
        return 0
    at = 12
    try:
        while length := packet[at]:
            if length > 63:
                return 0
            at += length + 1
    except IndexError:
        return 0
    return at + 5 if at <= 266 and packet[at + 3 : at + 5] == b"\0\1" else 0


def _whole_options(opt: bytes) -> bool:
    left = opt[9] << 8 | opt[10]
    if left + 11 != len(opt):
        return False
    at = 11
    while left >= 4:
        length = 4 + (opt[at + 2] << 8 | opt[at + 3])
        at += length
        left -= length
    return not left


def _cached(query: _Query, rules: Rules, cache: Cache, now: float, *, udp: bool) -> Known | None:
    entry = cache.get(query.qname + query.question[-4:-2] + _DOCD[query.variant | query.cd], now)
    if entry is None:
        return None
    if entry.judged != rules.judged and not passes(entry, query.qname, rules):
        verdict = blocking(entry, rules)
        known = _block(query, rules, verdict.decision, verdict.lead) if verdict else None
        if known is not None:
            known.entry, known.until = entry, entry.known_until(now)
            cache.hits += 1
        return known
    stored = entry.answer
    tail = entry.body(now)
    an, ns, ar = stored.counts
    if query.variant:
        tail += OPTS[query.variant]
        ar += 1
    cut = 0
    if 12 + len(query.question) + len(tail) > query.limit:
        if not udp:
            return None
        # half an answer is worse than a retry over TCP
        cut, an, ns, ar, tail = message.TC, 0, 0, int(query.variant > 0), OPTS.get(query.variant, b"")
    flags = (0x8080 | cut | query.rd << 8 | stored.flags & query.ad | query.cd | stored.rcode).to_bytes(2)
    cache.hits += 1
    rest = flags + b"\0\1" + an.to_bytes(2) + ns.to_bytes(2) + ar.to_bytes(2) + query.question + tail
    known = Known(rest, entry.steady(now), None, entry, cut > 0)
    if entry.turning is not None and not cut:
        known.turning = entry.turning._replace(start=entry.turning.start + 10 + len(query.question))
    return known


def passes(entry: CachedAnswer, qname: Name, rules: Rules) -> bool:
    """Judge again what an earlier judgement has passed whole: True, and noted so, when no entry claims anything of it.

    After a change of policy every cached answer comes this way once, so it must cost little; all else is the engine's.
    """
    many = len(entry.answer.ttls) > MAX_JUDGED
    if entry.judged == SCREEN_ALWAYS or many or rules.log_all or not unclaimed(rules.image, qname, entry.answer):
        return False
    entry.judged = rules.judged
    return True


def blocking(entry: CachedAnswer, rules: Rules) -> Any:
    """The verdict (`screening.Screened`) that blocks a cached answer because of where it leads, if the engine has found it by
    this judgement; else None."""
    screened = entry.verdicts.get(rules.judged) if entry.verdicts else None
    return screened if screened is not None and screened.action is Action.BLOCK else None


def _blocked(query: _Query, rules: Rules) -> Known | None:
    claims = rules.image.lookup(query.qname)
    if not claims or query.qname.endswith(special.ENDINGS):
        return None
    action, decision = rules.board.choose(claims)
    if action is not Action.BLOCK or decision is None:
        return None
    qtype = query.question[-4] << 8 | query.question[-3]
    if qtype in _META or not qtype:
        return None
    return _block(query, rules, decision)


def _block(query: _Query, rules: Rules, decision: Decision, lead: str = "") -> Known | None:
    qtype = query.question[-4] << 8 | query.question[-3]
    octet, counts, counts_edns, tail = rules.pieces(decision, qtype)
    if query.variant:
        counts = counts_edns
        ede = rules.ede(decision)
        tail += OPTS[query.variant][:9] + len(ede).to_bytes(2) + ede
    if 12 + len(query.question) + len(tail) > query.limit:
        return None
    rest = bytes((0x80 | query.rd, octet | query.cd)) + counts + query.question + tail
    attempt = Attempt(rules, query.qname, qtype, decision, rules.action_name(decision), answer=lead)
    return Known(rest, math.inf, attempt, None)


_META = message.META_QTYPES | message.CUT_QTYPES
_DOCD = {variant | cd: bytes([(variant == 6) << 1 | bool(cd)]) for variant in (0, 3, 6) for cd in (0, 0x10)}
OPTS = {3: b"\0\0\x29\x04\xd0\0\0\0\0\0\0", 6: b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"}
