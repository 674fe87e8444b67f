"""What is in force: who is answered, what is blocked, and what a blocked name is answered with.

`Rules` fixes these together as one judgement. The engine and its shortcut (`fastpath`) decide by the same one; a change of
policy replaces it whole, in between two packets. An `Attempt` is what one query amounts to by a judgement.
"""

import ipaddress
import struct
from collections.abc import Sequence
from typing import NamedTuple

from embargo import events, names
from embargo.dns import message
from embargo.dns.message import Answer
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Decision, Switchboard
from embargo.names import Name

ACL_MEMO = 4096  # client addresses remembered; forged ones must not fill memory

#: these names and all below them are answered without the policy (RFC 6761, 6762, 7686, 8375, 9462)
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


def unclaimed(image: Image, qname: Name, answer: Answer) -> bool:
    """Whether no entry of the image claims the name, nor an owner, target, address or hint of the answer."""
    return image.finder.unclaimed(qname, answer.leads + answer.extra_leads, image.lookup_address)
