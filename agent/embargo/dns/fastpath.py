"""Blocked or cached? The reply from the raw packet, without an object per packet.

This is a shortcut of the engine's decision, not a second one: it answers a packet only where the engine would give the
same octets, and declines (None) whatever is unusual: another opcode, a second question, odd EDNS, a special name, an
audited or allow-listed name. A cached answer that this judgement has passed needs no look-up; otherwise the policy is
asked first. Replies are remembered by the octets of the query: a block for as long as the judgement holds, a cached answer
until its TTLs change.

`_fastpath.pyx` is the compiled twin: the same, with the sockets, a batch of packets a call.
"""

import ipaddress
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

from embargo import events, names
from embargo.dns import message
from embargo.dns.cache import NOBODY, Cache, Entry
from embargo.dns.message import Answer
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Claims, Decision, Switchboard
from embargo.names import Name

ACL_MEMO = 4096  # client addresses remembered; forged ones must not fill memory

#: names below these, and these, never reach the policy here; the engine answers them (RFC 6761, 6762, 7686, 8375, 9462)
SPECIAL = tuple(map(bytes, map(names.from_text, ("localhost", "invalid", "local", "onion", "arpa"))))


class Acl:
    """Which clients are answered. Addresses as text, the way sockets give them."""

    def __init__(self, networks: Sequence[str], *, but: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._but = [ipaddress.ip_network(network) for network in but]
        self._memo: dict[str, bool] = {}

    def __len__(self) -> int:
        """Clients remembered."""
        return len(self._memo)

    def allows(self, client: str) -> bool:
        known = self._memo.get(client)
        if known is None:
            address = ipaddress.ip_address(client.partition("%")[0])
            mapped = getattr(address, "ipv4_mapped", None)
            address = mapped or address
            known = any(address in each for each in self._networks) and not any(address in each for each in self._but)
            if len(self._memo) >= ACL_MEMO:
                self._memo.clear()
            self._memo[client] = known
        return known


class BlockMode(NamedTuple):
    """What a blocked name is answered with."""

    kind: str  # nxdomain | nodata | null | refused | address
    ttl: int
    addresses4: tuple[bytes, ...] = ()
    addresses6: tuple[bytes, ...] = ()

    def answer(self, qtype: int) -> Answer:
        if self.kind == "nxdomain":
            return message.negative(message.NXDOMAIN, self.ttl)
        if self.kind == "refused":
            return Answer(message.REFUSED)
        found = {message.A: self.addresses4, message.AAAA: self.addresses6}.get(qtype, ())
        return message.addresses(found, self.ttl) if found else message.negative(message.NOERROR, self.ttl)


class Rules:
    """One judgement: access list, image, switchboard and block mode, fixed together. Replaced, never changed."""

    def __init__(
        self, generation: int, judged: int, acl: Acl, image: Image, board: Switchboard, mode: BlockMode, log_all: bool = False
    ) -> None:
        self.generation = generation
        self.judged = judged  # differs for every judgement of this process, so cached answers can name theirs
        self.acl = acl
        self.image = image
        self.board = board
        self.mode = mode
        self.log_all = log_all  # every query is an attempt, claimed or not
        self.memo = Memo()
        self._canary = frozenset(image.classes.index(c) for c in policy.CANARY if c in image.classes)
        self._prefix = [f"app={s.app} function={s.function} list={s.path}:" for s in image.sources]
        self._told = [f'"app":"{s.app}","function":"{s.function}","list":{events.quote(s.path)},"line":' for s in image.sources]
        self._nxdomain = _pieces(message.negative(message.NXDOMAIN, mode.ttl))
        self._other = _pieces(mode.answer(0))
        self._pieces = {qtype: _pieces(mode.answer(qtype)) for qtype in (message.A, message.AAAA)}

    def explain(self, decision: Decision) -> str:
        """The EDE text, and what `why` prints."""
        return f"{self._prefix[decision.source]}{decision.line} rule={decision.rule}"

    def told(self, decision: Decision) -> str:
        """What decided, as members of an event."""
        return f'{self._told[decision.source]}{decision.line},"rule":{events.quote(decision.rule)}'

    def ede(self, decision: Decision) -> bytes:
        return message.ede(message.EDE_BLOCKED, self.explain(decision))

    def canary(self, decision: Decision) -> bool:
        """Is it a name whose answer must be NXDOMAIN for the asking program to give way?"""
        return decision.class_ in self._canary

    def block_answer(self, decision: Decision, qtype: int) -> Answer:
        return message.negative(message.NXDOMAIN, self.mode.ttl) if self.canary(decision) else self.mode.answer(qtype)

    def pieces(self, decision: Decision, qtype: int) -> "Pieces":
        """The same, taken apart."""
        return self._nxdomain if decision.class_ in self._canary else self._pieces.get(qtype, self._other)

    def parts(self) -> "Parts":
        """The same for the compiled twin."""
        pieces = (self._nxdomain, self._pieces[message.A], self._pieces[message.AAAA], self._other)
        return Parts(
            self._prefix,
            self._told,
            self.image.class_of,
            self.board.actions,
            self._canary,
            pieces,
            self.mode.kind,
            self.generation,
        )

    def action_name(self, decision: Decision) -> str:
        return "nxdomain" if self.canary(decision) else self.mode.kind


class Parts(NamedTuple):
    """What a judgement is made of."""

    explained: list[str]  # by source: the EDE text up to the line
    told: list[str]  # by source: members of an event up to the line
    classes: list[int]  # by source
    actions: tuple[Action, ...]  # by class
    canary: frozenset[int]
    pieces: "tuple[Pieces, ...]"  # of canaries, of A, of AAAA, of other types
    action: str
    generation: int


#: second flags octet, counts without and with EDNS, body
Pieces = tuple[int, bytes, bytes, bytes]


def _pieces(answer: Answer) -> Pieces:
    """Cut from replies to a query for the root, so that `message.reply` alone shapes them."""
    plain, edns = (
        message.reply(message.Query(0, 0, b"\0\0\1\0\1", names.ROOT, message.A, e, False, 512), answer, udp=False)
        for e in (False, True)
    )
    return plain[3], plain[4:12], edns[4:12], plain[17:]


class Attempt:
    """Somebody asked for something that a class claims: what an event is made of, but for the client and the time."""

    __slots__ = ("action", "audit", "decision", "kind", "kinds", "members", "qname", "qtype", "rules")

    def __init__(
        self,
        rules: Rules,
        qname: Name,
        qtype: int,
        decision: Decision | None,
        action: str,
        audit: bool = False,
    ) -> None:
        self.rules = rules
        self.qname = qname
        self.qtype = qtype
        self.decision = decision  # None: nobody claims it, and everything is to be logged
        self.action = action
        self.audit = audit
        #: equal for equal attempts; the qname stands first, so that it can be left out
        self.kind = qname + _KIND.pack(qtype, -1 if decision is None else decision.class_, action == "pass", rules.judged)
        self.members = ""  # its event as JSON, written when first needed
        self.kinds: dict[str, events.Kind] = {}  # what it is folded into, by client; some of them may be closed by now


_KIND = struct.Struct("!Hh?I")


class Known:
    """The reply to a packet seen before, but for its ID: the same for everybody who sends it."""

    __slots__ = ("attempt", "entry", "rest", "until")

    def __init__(self, rest: bytes, until: float, attempt: Attempt | None, entry: Entry | None) -> None:
        self.rest = rest
        self.until = until  # when the TTLs in it change
        self.attempt = attempt  # of a blocked packet
        self.entry = entry  # of a cached answer


MEMO_HALF = 8192  # packets; both halves together take some 16 MiB when full


class Memo:
    """The replies to packets seen before, whatever their ID. What is not asked for any more is forgotten half by half."""

    def __init__(self) -> None:
        self._young: dict[bytes, Known] = {}
        self._old: dict[bytes, Known] = {}

    def get(self, key: bytes) -> Known | None:
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self._young[key] = found
        return found

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def put(self, key: bytes, known: Known) -> None:
        if len(self._young) >= MEMO_HALF:
            self._old, self._young = self._young, {}
        self._young[key] = known


_PLAIN = b"\0\1\0\0\0\0\0\0"
_EDNS = b"\0\1\0\0\0\0\0\1"


def answer(packet: bytes, client: str, rules: Rules, cache: Cache, now: float) -> Known | None:
    """The reply to a UDP query, blocked or cached, or None to decline."""
    if not rules.acl.allows(client):
        return None
    key = packet[2:]
    known = rules.memo.get(key)
    if known is not None and now < known.until:
        if known.entry is not None:
            known.entry.used = True  # asked for again: it stays in the cache, and is fetched anew before it expires
            cache.hits += 1
        return known
    size = len(packet)
    # response, opcode, AA and TC in the first flags octet, RA, Z and rcode in the second: all zero in a plain query
    if size < 17 or packet[2] & 0xFE or packet[3] & 0xCF:
        return None
    at = 12
    try:
        while length := packet[at]:
            if length > 63:
                return None
            at += length + 1
    except IndexError:
        return None
    end = at + 5
    if at > 266 or packet[at + 3 : end] != b"\0\1":
        return None
    counts = packet[4:12]
    limit = 512
    variant = 0
    if counts == _PLAIN:
        if end != size:
            return None
    elif counts == _EDNS:
        # one OPT: root owner, type 41, size, extended rcode 0, version 0, flags, whole options
        opt = packet[end:]
        if len(opt) < 11 or opt[:3] != b"\0\0\x29" or opt[5:7] != b"\0\0" or not _whole_options(opt):
            return None
        limit = min(max(opt[3] << 8 | opt[4], 512), message.MAX_UDP)
        variant = 6 if opt[7] & 0x80 else 3
    else:
        return None
    qname: Name = packet[12 : at + 1].lower()  # type: ignore[assignment] # NewType is a call, and this is the hot path
    head = packet[2] & 1, packet[3] & 0x10, packet[3] & 0x20 or (0x20 if variant == 6 else 0)  # RD, CD, AD or DO
    known = _cached(qname, packet[12:end], variant, limit, head, rules, cache, now) or _blocked(
        qname, packet[12:end], variant, limit, head, rules
    )
    if known is not None and (not variant or size == end + 11):  # options may differ every time (RFC 7873)
        rules.memo.put(key, known)
    return known


def _cached(
    qname: Name, question: bytes, variant: int, limit: int, head: tuple[int, int, int], rules: Rules, cache: Cache, now: float
) -> Known | None:
    rd, cd, ad = head
    entry = cache.get(qname + question[-4:-2] + _DOCD[variant | cd], now)
    if entry is None or (entry.judged != rules.judged and not passes(entry, qname, rules)):
        return None
    stored = entry.answer
    tail = entry.body(now)
    an, ns, ar = stored.counts
    if variant:
        tail += OPTS[variant]
        ar += 1
    if 12 + len(question) + len(tail) > limit:
        return None
    flags = (0x8080 | rd << 8 | stored.flags & ad | cd | stored.rcode).to_bytes(2)
    cache.hits += 1
    rest = flags + b"\0\1" + _PACK[an] + _PACK[ns] + _PACK[ar] + question + tail
    return Known(rest, entry.steady(now), None, entry)


def passes(entry: Entry, qname: Name, rules: Rules) -> bool:
    """Judge again what an earlier judgement has passed whole: True, and noted so, when nobody claims anything of it.

    After a change of policy every cached answer comes this way once, so it must cost little; all else is the engine's.
    """
    if entry.judged == NOBODY or rules.log_all or not unclaimed(rules.image, qname, entry.answer):
        return False
    entry.judged = rules.judged
    return True


def unclaimed(image: Image, qname: Name, answer: Answer) -> bool:
    """Does nobody claim the name, or an owner, target, address or hint of the answer?"""
    return image.finder.unclaimed(qname, answer, image.lookup_address)


def _blocked(qname: Name, question: bytes, variant: int, limit: int, head: tuple[int, int, int], rules: Rules) -> Known | None:
    claims: Claims = rules.image.lookup(qname)
    if not claims or qname.endswith(SPECIAL):
        return None
    action, decision = rules.board.choose(claims)
    if action is not Action.BLOCK or decision is None:
        return None
    qtype = question[-4] << 8 | question[-3]
    if qtype in _META or not qtype:
        return None
    octet, plain, edns, tail = rules.pieces(decision, qtype)
    if variant:
        plain = edns
        ede = rules.ede(decision)
        tail += OPTS[variant][:9] + _PACK[len(ede)] + ede
    if 12 + len(question) + len(tail) > limit:
        return None
    rd, cd, _ = head
    rest = bytes((0x80 | rd, octet | cd)) + plain + question + tail
    return Known(rest, math.inf, Attempt(rules, qname, qtype, decision, rules.action_name(decision)), None)


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


_META = message.META_QTYPES
_PACK = [n.to_bytes(2) for n in range(message.MAX_RECORDS + 2)]
_DOCD = {variant | cd: bytes([(variant == 6) << 1 | bool(cd)]) for variant in (0, 3, 6) for cd in (0, 0x10)}
OPTS = {3: b"\0\0\x29\x04\xd0\0\0\0\0\0\0", 6: b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"}
