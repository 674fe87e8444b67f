"""Conversations with an Engine, written as plays: what is asked, what is sent on, what comes back. dnspython is the judge.

play("alipay.example").query("www.alipay.example").is_blocked().forwards_nothing()
play().query("free.test").is_forwarded().upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")
"""

from typing import Any, Self

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from embargo.dns.acl import Acl
from embargo.dns.cache import Cache
from embargo.dns.engine import Drop, Engine, Joined, Reply, Settled
from embargo.dns.judgement import BlockMode, Rules
from embargo.dns.questions import Forward
from embargo.dns.upstream import DEADLINE, Server, Upstreams
from embargo.dns.zones import Zones
from embargo.lists import image, lists, policy
from embargo.lists.lists import Guard
from embargo.lists.policy import Action, App, Level, List, Selection, Source, Switchboard
from support import shortcut

CLIENT = "192.0.2.10"
SERVERS = (Server("192.0.2.53", 53), Server("192.0.2.54", 53))
WAYS_ROUND = (("use-application-dns.net", "canary"), ("mask.icloud.com", "relay"))
NULL = BlockMode("null", 10, (bytes(4),), (bytes(16),))
NXDOMAIN = BlockMode("nxdomain", 10)


def listed(text: str, function: str = "payment", app: str = "alipay", level: Level = Level.APPS) -> List:
    """A list of a test: one entry a line."""
    source = Source(f"{app}/{function}.list", level, app, function, False)
    found = lists.parse(text.encode(), file=source.path, source=source, guard=Guard())
    assert not found.problems, found.problems
    return found


def compiled(*entries: str, allow: str = "", audit: bool = False) -> tuple[bytes, Switchboard]:
    """An image and its switchboard: these entries belong to alipay/payment; canary and relay names are there too."""
    apps = [
        App("alipay", "Alipay", default=True, lists=(listed("\n".join(entries)),)),
        App("bypass", "", lists=tuple(listed(name, function, "bypass") for name, function in WAYS_ROUND)),
    ]
    local = [listed(allow, "allow", "local", Level.ALLOW)] if allow else []
    chosen = Selection(mode=Action.AUDIT if audit else Action.BLOCK)
    combined = policy.combine(apps, local, chosen)
    return image.encode(combined), policy.select(apps, combined.classes, chosen)


def rules(
    *entries: str, allow: str = "", mode: BlockMode = NXDOMAIN, audit: bool = False, acl: str = "192.0.2.0/24", number: int = 1
) -> Rules:
    """A judgement by `compiled` entries."""
    octets, board = compiled(*entries, allow=allow, audit=audit)
    return Rules(number, number, Acl([acl, "2001:db8::/32"]), image.Image(octets), board, mode)


def query(
    name: str, qtype: str | int = "A", *, edns: bool = True, do: bool = False, ident: int = 4711, **options: Any
) -> bytes:
    """A client's packet."""
    rdtype = dns.rdatatype.RdataType.make(qtype)
    made = dns.message.make_query(name, rdtype, use_edns=0 if edns else False, want_dnssec=do, id=ident, **options)
    return made.to_wire()


def answer(name: str, qtype: str = "A", *records: str, rcode: int = 0, ttl: int = 300, flags: int = 0) -> dns.message.Message:
    """An upstream's response. A record is `text` of the asked name and type, or `owner TYPE text`."""
    made = dns.message.make_response(dns.message.make_query(name, qtype, use_edns=0))
    made.flags |= dns.flags.RA | flags
    made.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        words = record.split(None, 2)
        owner, rtype, text = words if len(words) == 3 and words[1].isupper() else (name, qtype, record)
        made.answer.append(dns.rrset.from_text(owner + ".", ttl, "IN", rtype, text))
    return made


class Play:
    def __init__(self, judgement: Rules, zones: Zones | None = None, cache: Cache | None = None) -> None:
        self.engine = Engine(judgement, zones or Zones(Upstreams(SERVERS)), cache or Cache())
        self.now = 1000.0
        self.outcome: Reply | Forward | Joined | Drop = Drop("nothing happened")
        self.settled: list[Reply] = []
        self.forward: Forward | None = None
        self.begun = self.now  # when the last query came
        self.overdue: list[Forward] = []  # still awaited
        self.asked = b""
        self.was_fast = False  # the fast path answered too

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────

    def query(self, name: str, qtype: str | int = "A", *, client: str = CLIENT, udp: bool = True, **options: Any) -> Self:
        return self.packet(query(name, qtype, **options), client=client, udp=udp)

    def packet(self, packet: bytes, *, client: str = CLIENT, udp: bool = True) -> Self:
        """A query, to the engine and to its shortcut: where that one answers, both say the same."""
        self.asked, self.begun = packet, self.now
        fast = shortcut.answer(packet, client, self.engine.rules, self.engine.cache, self.now) if udp else None
        self._take(self.engine.handle(packet, client, "peer", self.now, udp=udp))
        self.was_fast = fast is not None
        if fast is not None:
            (reply,) = self.settled
            assert fast.reply(packet[:2]) == reply.wire
            assert (fast.attempt.kind if fast.attempt else None) == (reply.attempt.kind if reply.attempt else None)
        return self

    def upstream(self, message: dns.message.Message | bytes) -> Self:
        """The asked server answers: the ID is made to match, since whoever calls `complete` has looked at it."""
        assert self.forward is not None, "nothing was sent on"
        wire = message if isinstance(message, bytes) else message.to_wire(max_size=65535)
        self._settle(self.engine.complete(self.forward.token, wire, self.now))
        return self

    def silence(self, reason: str = "did not answer in 1.0 s") -> Self:
        """The server asked last is overdue; if no other is asked then, the client's time ends."""
        assert self.forward is not None, "nothing was sent on"
        self.now += self.forward.wait
        self.overdue.append(self.forward)
        outcome = self.engine.overdue(self.forward.token, reason, self.now)
        if outcome == Settled([]) and self.engine.pending:
            self.now = max(self.now, self.begun + DEADLINE)
            outcome = Settled(self.engine.give_up(self.now))
        self._settle(outcome)
        return self

    def unreachable(self) -> Self:
        """An error of the network keeps the server from being asked."""
        assert self.forward is not None, "nothing was sent on"
        self._settle(self.engine.expire(self.forward.token, "connection refused", self.now, network=True))
        self.now += self.forward.delay if self.forward is not None else 0.0
        return self

    def late(self, message: dns.message.Message | bytes, which: int = 0) -> Self:
        """A server that was overdue answers after all; `which`: its place among those."""
        wire = message if isinstance(message, bytes) else message.to_wire(max_size=65535)
        self._settle(self.engine.complete(self.overdue.pop(which).token, wire, self.now))
        return self

    def later(self, seconds: float) -> Self:
        self.now += seconds
        return self

    def adopt(self, judgement: Rules, zones: Zones | None = None) -> Self:
        self.engine.adopt(judgement, zones)
        return self

    def _take(self, outcome: Reply | Forward | Joined | Drop) -> None:
        self.outcome = outcome
        self.forward = outcome if isinstance(outcome, Forward) else self.forward
        self.settled = [outcome] if isinstance(outcome, Reply) else []

    def _settle(self, outcome: Settled | Forward) -> None:
        if isinstance(outcome, Forward):
            self._take(outcome)
        else:
            self.settled, self.forward = outcome.replies, None

    # ── what must be so ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def reply(self) -> dns.message.Message:
        assert self.settled, f"no reply, but {self.outcome}"
        return dns.message.from_wire(self.settled[0].wire)

    def replies(self, *texts: str, rcode: int = 0) -> Self:
        found = self.reply
        assert (found.rcode(), sorted(str(rdata) for rrset in found.answer for rdata in rrset)) == (rcode, sorted(texts))
        return self

    def is_blocked(self, rule: str = "alipay.example", rcode: int = 3) -> Self:
        found = self.reply
        assert found.rcode() == rcode, found
        assert found.flags & dns.flags.RA
        assert not found.flags & (dns.flags.AA | dns.flags.AD)
        attempt = self.settled[0].attempt
        assert attempt is not None
        assert attempt.decision is not None
        assert (attempt.decision.rule, attempt.audit) == (rule, False)
        if found.edns >= 0:
            (ede,) = [option for option in found.options if option.otype == dns.edns.OptionType.EDE]
            assert isinstance(ede, dns.edns.EDEOption)
            assert ede.code == 15
            assert ede.text == f"app=alipay function=payment list=alipay/payment.list:{attempt.decision.line} rule={rule}"
        return self

    def is_forwarded(self, server: Server | None = None, *, tcp: bool = False) -> Self:
        assert isinstance(self.outcome, Forward), self.outcome
        assert server in (None, self.outcome.server)
        assert self.outcome.tcp == tcp
        return self

    def forwards_nothing(self) -> Self:
        assert self.engine.pending == 0
        return self

    def is_dropped(self, reason: str) -> Self:
        assert self.outcome == Drop(reason)
        return self

    def ede(self) -> int:
        return next((o.code for o in self.reply.options if isinstance(o, dns.edns.EDEOption)), -1)


def play(*entries: str, zones: Zones | None = None, **options: Any) -> Play:
    return Play(rules(*entries, **options), zones)
