"""What is in force: which clients are answered, what is blocked, and what a blocked name is answered with.

`Rules` fixes these together as one judgement. The engine and its shortcut (`fastpath`) decide by the same one; a change of
policy replaces it as a whole, between two packets. An `Attempt` is a query that the policy claims, for the event log.
"""

import struct
from typing import NamedTuple

from embargo import events, names
from embargo.dns import compose, message
from embargo.dns.acl import Acl
from embargo.dns.message import Answer
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Claims, Decision, Source, Switchboard
from embargo.names import Name, to_text

#: values of a block's event that are the query's and the entry's, not the same for all blocks by a list
_BY_QUERY = frozenset({"qname", "qtype", "line", "rule"})


class BlockMode(NamedTuple):
    """What a blocked name is answered with."""

    kind: str  # nxdomain | nodata | null | refused | address
    ttl: int
    addresses4: tuple[bytes, ...] = ()  # 4 octets each
    addresses6: tuple[bytes, ...] = ()  # 16 octets each

    def answer(self, qtype: int) -> Answer:
        """The answer to a question of this type for a blocked name, composed anew: `Rules` keeps it."""
        if self.kind == "nxdomain":
            return compose.negative(message.NXDOMAIN, self.ttl)
        if self.kind == "refused":
            return Answer(message.REFUSED)
        addresses = {message.A: self.addresses4, message.AAAA: self.addresses6}.get(qtype, ())
        return compose.addresses(addresses, self.ttl) if addresses else compose.negative(message.NOERROR, self.ttl)


#: second flags octet, counts without and with EDNS, body
Pieces = tuple[int, bytes, bytes, bytes]


class _Template(NamedTuple):
    """The answer for blocked names, prepared for all questions of a type."""

    answer: Answer
    pieces: Pieces


def _template(answer: Answer) -> _Template:
    """The pieces are cut from replies to a query for the root, so that `message.reply` alone shapes them."""
    plain, edns = (
        message.reply(message.Query(0, 0, b"\0\0\1\0\1", names.ROOT, message.A, e, False, 512), answer, udp=False)
        for e in (False, True)
    )
    return _Template(answer, (plain[3], plain[4:12], edns[4:12], plain[17:]))


class Rules:
    """One judgement: access list, image, switchboard and block mode, fixed together. Replaced, never changed."""

    def __init__(
        self, generation: int, judged: int, acl: Acl, image: Image, board: Switchboard, mode: BlockMode, log_all: bool = False
    ) -> None:
        self.generation = generation
        self.judged = judged  # the number of this judgement, by which cached answers name theirs; never used twice in a process
        self.acl = acl
        self.image = image
        self.board = board
        self.mode = mode
        self.log_all = log_all  # every query is an attempt, claimed or not
        self._canary = frozenset(image.classes.index(c) for c in policy.CANARY if c in image.classes)
        self._prefix = [f"app={s.app} function={s.function} list={s.path}:" for s in image.sources]
        self._constants = [self._constants_of(*listed) for listed in zip(image.sources, image.class_of, strict=True)]
        self._nxdomain = _template(compose.negative(message.NXDOMAIN, mode.ttl))
        self._templates = {qtype: _template(mode.answer(qtype)) for qtype in (message.A, message.AAAA)}
        self._other = _template(mode.answer(0))

    def claims(self, qname: Name, qtype: int) -> Claims:
        """The claims on a question. None on the records that a validating resolver needs for a name that passes below: without
        proof, the answer that there is no such name would make that name bogus as well."""
        claims = self.image.lookup(qname)
        if claims and qtype in message.CUT_QTYPES and self.image.passes_below(qname, self.board):
            return ()
        return claims

    def explain(self, decision: Decision) -> str:
        """The EDE text, and what `why` prints."""
        return f"{self._prefix[decision.source]}{decision.line} rule={decision.rule}"

    def _constants_of(self, source: Source, class_: int) -> dict[str, str]:
        """What the events of all blocks by a list have in common, by key, as JSON."""
        return {
            "action": events.quote("nxdomain" if class_ in self._canary else self.mode.kind), "mode": '"block"',
            "app": events.quote(source.app), "function": events.quote(source.function), "list": events.quote(source.path),
            "generation": str(self.generation),
        }  # fmt: skip

    def event_of(self, decision: Decision) -> dict[str, str]:
        """What decided, and what was done if it was a block, as values of a `dns` event: see `events.members`."""
        return self._constants[decision.source] | {"line": str(decision.line), "rule": events.quote(decision.rule)}

    def ede(self, decision: Decision) -> bytes:
        """The EDE option of a blocked reply (RFC 8914)."""
        return message.ede(message.EDE_BLOCKED, self.explain(decision))

    def canary(self, decision: Decision) -> bool:
        """Whether the asking program gives way only to NXDOMAIN, whatever the block mode."""
        return decision.class_ in self._canary

    def block_answer(self, decision: Decision, qtype: int) -> Answer:
        """What a name that this entry blocks is answered with."""
        return self._template(decision, qtype).answer

    def pieces(self, decision: Decision, qtype: int) -> Pieces:
        """The same, taken apart for the fast path."""
        return self._template(decision, qtype).pieces

    def _template(self, decision: Decision, qtype: int) -> _Template:
        return self._nxdomain if self.canary(decision) else self._templates.get(qtype, self._other)

    def parts(self) -> "Parts":
        """All that the compiled fast path takes of a judgement."""
        templates = (self._nxdomain, self._templates[message.A], self._templates[message.AAAA], self._other)
        pieces = tuple(template.pieces for template in templates)
        constants = self._constants
        keys = tuple(key for key in events.keys("dns") if key in _BY_QUERY or (constants and key in constants[0]))
        return Parts(self._prefix, self.image.class_of, self.board.actions, self._canary, pieces, keys, constants)

    def action_name(self, decision: Decision) -> str:
        """The block mode as the event names it."""
        return "nxdomain" if self.canary(decision) else self.mode.kind


class Parts(NamedTuple):
    """What a judgement is made of."""

    explained: list[str]  # by source: the EDE text up to the line
    classes: list[int]  # by source
    actions: tuple[Action, ...]  # by class
    canary: frozenset[int]
    pieces: tuple[Pieces, ...]  # of canaries, of A, of AAAA, of other types
    keys: tuple[str, ...]  # of a block's event
    constants: list[dict[str, str]]  # by source: values of a block's event, but for those of `_BY_QUERY`


class Attempt:
    """A query for a name that a class claims: all of its event but client and time."""

    __slots__ = ("_members", "action", "answer", "audit", "decision", "kind", "other", "qname", "qtype", "rules")

    def __init__(
        self,
        rules: Rules,
        qname: Name,
        qtype: int,
        decision: Decision | None,
        action: str,
        audit: bool = False,
        answer: str = "",
    ) -> None:
        self.rules = rules
        self.qname = qname
        self.qtype = qtype
        self.decision = decision  # None: no class claims the name, and every query is logged
        self.action = action
        self.audit = audit
        self.answer = answer  # name or address that an answer led to and that the entry claims; empty: the qname
        #: equal for equal attempts
        self.kind = qname + _KIND.pack(qtype, -1 if decision is None else decision.class_, action == "pass", rules.judged)
        self.kind += answer.encode()
        #: equal for attempts that are equal but for name and type: what they are counted by beyond a client's share of the log
        source, line = (-1, 0) if decision is None else (decision.source, decision.line)
        self.other = _OTHER.pack(-1 if decision is None else decision.class_, action == "pass", rules.judged, source, line)
        self._members = ""

    @property
    def nameless(self) -> bytes:
        """Equal for attempts that are equal but for the name and what its answer led to."""
        return self.kind[len(self.qname) : len(self.qname) + _KIND.size]

    def members(self, *, names: bool) -> str:
        """The event behind the client, as JSON. Without `names` the qname and what its answer led to are left out. Written when
        it is first needed."""
        if not self._members:
            values = self.rules.event_of(self.decision) if self.decision else {"generation": str(self.rules.generation)}
            values |= {"qtype": events.quote(message.type_name(self.qtype)), "action": events.quote(self.action)}
            if self.audit:
                values["mode"] = '"audit"'
            if names:
                values["qname"] = events.quote(to_text(self.qname))
                values |= {"answer": events.quote(self.answer)} if self.answer else {}
            self._members = events.members("dns", values)
        return self._members


_KIND = struct.Struct("!Hh?I")
_OTHER = struct.Struct("!xh?IiI")  # a zero octet first: no kind is equal


def unclaimed(image: Image, qname: Name, answer: Answer) -> bool:
    """Whether no entry of the image claims the name, nor an owner, target, address or hint of the answer."""
    return image.finder.unclaimed(qname, answer.leads + answer.extra_leads, image.lookup_address)
