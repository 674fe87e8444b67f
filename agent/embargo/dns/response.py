"""Responses of upstreams: matched with the question, taken apart, and stripped of records that do not belong to it.

A response counts only when its ID and question are those that were sent (`matches`). `parse` keeps the records that belong
to the question: in the answer section those of the asked type on the chain of CNAME and DNAME records that begins at the
qname, in the authority section those of a zone above that chain (and the proofs of DNSSEC), in the additional section those
that the kept records point to. A response that keeps all its records is passed on octet by octet; one that loses some in
the middle is written anew (`rdata.Writer`). The names and addresses that kept records point to come out as leads, for the
policy to judge.

What is merely unusual is used as far as it is good, as other resolvers do: records of another type or name are left out, a
chain may have any length and ends where it closes, OPT records beyond the first one and octets behind the last record are
ignored. What cannot be read is malformed.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from embargo import accelerator, names
from embargo.dns import message, rdata
from embargo.dns.message import Answer, Lead
from embargo.dns.rdata import Rdata, is_private
from embargo.dns.upstream import KEEP_ALL, Strip
from embargo.errors import MessageError
from embargo.names import Name

MAX_TTL = 3600  # seconds for which a client may keep an answer, so that a new block takes effect within the hour
UNPROVEN_TTL = 5  # seconds to remember that something does not exist without an SOA that says for how long, as Unbound does
#: YXDOMAIN: a DNAME made the name too long (RFC 6672 section 2.2), which is an answer
USABLE = frozenset({message.NOERROR, message.NXDOMAIN, message.YXDOMAIN})
_ERRORS = frozenset({message.FORMERR, message.SERVFAIL, message.NOTIMP, message.REFUSED})
_PROOFS = frozenset({message.RRSIG, message.NSEC, message.NSEC3})
_DENYING = _PROOFS | {message.SOA}

_native = accelerator.load("response")


class _Record(NamedTuple):
    section: int
    owner: Name
    rtype: int
    rclass: int
    ttl: int
    rdata: Rdata


def matches(packet: bytes, ident: int, question: bytes) -> bool:
    """Whether a packet is the response to a question: ID, QR and question (RFC 5452 section 9). Letters of the name may have
    another case (RFC 4343).

    A server that cannot read the query may send an error without a question (RFC 6891 section 7).
    """
    if len(packet) < 12 or packet[:2] != ident.to_bytes(2) or not packet[2] & 0x80:
        return False
    if packet[4:6] == b"\0\0":
        return packet[3] & 15 in _ERRORS and not any(packet[6:10])
    repeated = packet[12 : 12 + len(question)]
    same = repeated == question or (repeated[:-4].lower() == question[:-4] and repeated[-4:] == question[-4:])
    return same and packet[4:6] == b"\0\1"


def parse(packet: bytes, question: bytes, strip: Strip = KEEP_ALL) -> Answer:
    """A response that `matches`, as an Answer without its OPT record. Raises MessageError when it is malformed.

    One that ends before its last record is `truncated`, with the TC bit or without. One with an error in place of an answer
    is an Answer without records, whatever it has. `strip`: what is taken out. The AD bit stays only if nothing was.
    """
    usual: Answer | None = _native.read(packet, question, Answer, Lead) if _native else None
    if usual is not None and not (strip.private and any(is_private(a) for lead in usual.leads for a in lead.addresses)):
        return usual  # it has no private address, or they may stay
    _, flags, questions, *counts = message.HEADER.unpack_from(packet)
    if flags & _OPCODE:
        raise MessageError(message.FORMERR, 2)
    if not questions:
        return Answer(flags & 15)
    if flags & message.TC:
        return Answer(flags & 15, truncated=True)
    names_at: dict[int, Name] = {}
    qname, end = names.read(packet, 12, names_at)
    begin = end + 4
    try:
        records = _records(packet, begin, counts, names_at)
    except MessageError:
        if flags & 15 in USABLE:
            raise
        return Answer(flags & 15)
    if records is None:
        return Answer(flags & 15, truncated=flags & 15 in USABLE)
    rcode, ede = flags & 15, None
    if opt := _opt(records):
        rcode |= opt.ttl >> 24 << 4  # RFC 6891 section 6.1.3
        ede = message.explanation(packet, opt.rdata.start, opt.rdata.end)
    answer = _answer(packet, begin, qname, flags, rcode, records, strip) if rcode in USABLE else Answer(rcode)
    return answer._replace(ede=ede) if ede else answer


_OPCODE = 0x7800


def _answer(packet: bytes, begin: int, qname: Name, flags: int, rcode: int, records: Sequence[_Record], strip: Strip) -> Answer:
    """The records that are passed on, and what follows from them."""
    qtype = int.from_bytes(packet[begin - 4 : begin - 2])
    belonging = _belonging(records, qname, qtype)
    without = _without_private(belonging) if strip.private else belonging
    private = len(without) < len(belonging)
    kept = belonging if strip.private_meant else without
    emptied = bool(_answers(records) and not _answers(kept))
    if emptied:  # name servers without an answer would look like a referral to the client
        soa = _soa(kept)
        kept = [soa] if soa else []
    stripped = emptied or len(kept) < len(belonging)
    answered = rcode == message.NOERROR and any(qtype in (record.rtype, message.ANY) for record in _answers(kept))
    if not answered:
        kept = _with_negative_ttl(packet, kept)
    if strip.ech and any(record.rtype in rdata.SERVICES for record in kept):
        body, ttls = _written_anew(packet, qname, begin, kept, ech=False)
        stripped = stripped or body != _written_anew(packet, qname, begin, kept)[0]
    else:
        body, ttls = _body(packet, qname, begin, records, kept)
    counted = [sum(record.section == section for record in kept) for section in range(3)]
    return Answer(
        rcode=rcode,
        counts=(counted[0], counted[1], counted[2]),
        body=body,
        ttls=ttls,
        flags=flags & (message.AA if stripped else message.AA | message.AD),
        lifetime=_lifetime(rcode, kept, proven=bool(answered or _soa(kept))),
        referral=not (rcode or flags & message.AA or _answers(records)) and _refers(belonging),
        leads=_leads(_answers(kept)),
        extra_leads=_leads(record for record in kept if record.section and _points(record)),
        answer_end=_end_of(counted[0], ttls, body),
        private=private,
    )


def _lifetime(rcode: int, kept: Iterable[_Record], *, proven: bool) -> int:
    """Seconds for which an answer may be cached. Without an SOA, RFC 2308 section 5 would not cache what does not exist, lest
    two servers that ask each other keep it alive forever; for a moment it must be, lest every query goes upstream."""
    if rcode not in (message.NOERROR, message.NXDOMAIN):
        return 0
    least = min((record.ttl for record in kept), default=MAX_TTL)
    return least if proven else min(least, UNPROVEN_TTL)


def _answers(records: Iterable[_Record]) -> list[_Record]:
    """The records of the answer section."""
    return [record for record in records if record.section == 0]


def _soa(records: Iterable[_Record]) -> _Record | None:
    """The SOA record of the authority section, by which a negative answer is cached (RFC 2308 section 3)."""
    return next((record for record in records if record.section == 1 and record.rtype == message.SOA), None)


def _refers(records: Sequence[_Record]) -> bool:
    """Whether these name other servers in place of an answer."""
    return not _answers(records) and not _soa(records) and any(record.rtype == message.NS for record in records)


def _with_negative_ttl(packet: bytes, records: list[_Record]) -> list[_Record]:
    """The records, the SOA with its TTL or MINIMUM, whichever is less: so long is remembered what does not exist (RFC 2308
    section 5)."""
    soa = _soa(records)
    if soa is None:
        return records
    minimum = int.from_bytes(packet[soa.rdata.end - 4 : soa.rdata.end])
    return [record._replace(ttl=min(record.ttl, minimum)) if record is soa else record for record in records]


def _records(packet: bytes, offset: int, counts: Sequence[int], names_at: dict[int, Name]) -> list[_Record] | None:
    """All records, OPT records too; None when the packet ends before the last one. Octets behind that are ignored."""
    found: list[_Record] = []
    for section, count in enumerate(counts):
        for _ in range(count):
            try:
                owner, rtype, rclass, ttl, start, offset = message.record(packet, offset, names_at)
            except MessageError as error:
                if error.offset == len(packet):
                    return None
                raise
            if rtype != message.OPT:
                ttl = 0 if ttl & 0x80000000 else min(ttl, MAX_TTL)  # RFC 2181 section 8
            if rclass == message.IN:
                data = rdata.read(packet, owner, rtype, start, offset, names_at)
            else:
                data = Rdata(start, offset, offset, offset)
            found.append(_Record(section, owner, rtype, rclass, ttl, data))
    return found


def _opt(records: Iterable[_Record]) -> _Record | None:
    """The first OPT record at its place."""
    at_its_place = (record for record in records if record.section == 2 and record.owner == names.ROOT)
    return next((record for record in at_its_place if record.rtype == message.OPT), None)


def _points(record: _Record) -> bool:
    return bool(record.rdata.targets or record.rdata.addresses)


def below(answer: Answer, question: bytes, asked: bytes) -> Answer | None:
    """An NXDOMAIN for the name of `question`, as the answer to `asked`, whose name is the same or below it (RFC 8020).

    The SOA and the proofs of DNSSEC that deny a name deny those below it too. None: it has no SOA, so it proves nothing; or
    that of the denied name itself, which is what filters make up: the owner of an SOA is the apex of a zone, and exists.
    """
    packet = message.HEADER.pack(0, 0, 1, *answer.counts) + question + answer.body
    names_at: dict[int, Name] = {}
    begin = names.read(packet, 12, names_at)[1] + 4
    records = _records(packet, begin, answer.counts, names_at) or ()
    kept = [record for record in records if record.section == 1 and record.rtype in _DENYING]
    soa = _soa(kept)
    if soa is None or soa.owner == question[:-4].lower():
        return None
    body, ttls = _written_anew(packet, Name(asked[:-4]), 12 + len(asked), kept)
    return answer._replace(counts=(0, len(kept), 0), body=body, ttls=ttls, extra_leads=(), answer_end=0)


# ── which records belong to the question ───────────────────────────────────────────────────────────────────────────────


def _belonging(records: Sequence[_Record], qname: Name, qtype: int) -> list[_Record]:
    """The records that belong to the question, in their order."""
    chain = _chain([r for r in records if r.section == 0 and r.rclass == message.IN], qname, qtype)
    above = {suffix for name in chain for suffix in names.suffixes(name)} | {names.ROOT}
    asked = frozenset({qtype, message.CNAME, message.RRSIG})
    pointed: set[Name] = set()
    kept: list[_Record] = []
    for record in records:
        owner, rtype = record.owner, record.rtype
        if record.rclass != message.IN or rtype == message.OPT:
            continue
        if record.section == 0:
            belongs = (owner in chain and (rtype in asked or qtype == message.ANY)) or (
                owner in above and rtype in (message.DNAME, message.RRSIG)
            )
        elif record.section == 1:
            belongs = rtype in _PROOFS or (rtype in (message.SOA, message.NS) and owner in above)
        else:
            belongs = owner in pointed
        if belongs:
            kept.append(record)
            pointed.update(record.rdata.targets)
    return kept


def _chain(answers: Sequence[_Record], qname: Name, qtype: int) -> list[Name]:
    """The qname, and the names that its CNAMEs and DNAMEs lead to, until one comes again. No more than there are records, since
    DNAMEs alone could go on without end."""
    steps = {
        (record.rtype, record.owner): record.rdata.targets[0]
        for record in answers
        if record.rtype in (message.CNAME, message.DNAME)
    }
    chain = {qname: None}
    name = qname
    while qtype != message.CNAME and len(chain) <= len(answers):
        target = _step(name, steps)
        if target is None or target in chain:
            break
        chain[target] = None
        name = target
    return list(chain)


def _step(name: Name, steps: dict[tuple[int, Name], Name]) -> Name | None:
    if not steps:
        return None
    if (message.CNAME, name) in steps:
        return steps[message.CNAME, name]
    for above in names.suffixes(name):
        if above != name and (message.DNAME, above) in steps:  # RFC 6672 section 2.2
            target = name[: -len(above)] + steps[message.DNAME, above]
            return Name(target) if len(target) <= names.MAX_NAME else None
    return None


def _leads(records: Iterable[_Record]) -> tuple[Lead, ...]:
    targets: dict[Name, list[Name]] = {}
    addresses: dict[Name, list[bytes]] = {}
    for record in records:
        targets.setdefault(record.owner, []).extend(record.rdata.targets)
        addresses.setdefault(record.owner, []).extend(record.rdata.addresses)
    return tuple(Lead(owner, tuple(targets[owner]), tuple(addresses[owner])) for owner in targets)


# ── what is passed on ──────────────────────────────────────────────────────────────────────────────────────────────────


def _body(
    packet: bytes, qname: Name, begin: int, records: Sequence[_Record], kept: Sequence[_Record]
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """(the kept records' octets, their TTLs and where these stand)."""
    if kept and kept[-1].rdata.start != records[len(kept) - 1].rdata.start:
        return _written_anew(packet, qname, begin, kept)
    body = bytearray(packet[begin : kept[-1].rdata.end if kept else begin])  # names point backwards: to none that is left out
    ttls = tuple((record.rdata.start - 6 - begin, record.ttl) for record in kept)
    for offset, ttl in ttls:
        struct.pack_into("!I", body, offset, ttl)
    return bytes(body), ttls


def _written_anew(
    packet: bytes, qname: Name, begin: int, kept: Iterable[_Record], *, ech: bool = True
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """The same, each record written anew. `ech`: with keys of Encrypted Client Hello."""
    writer = rdata.Writer(packet, qname, begin)
    for record in kept:
        writer.add(record.owner, record.rtype, record.ttl, record.rdata, ech=ech)
    return bytes(writer.body), tuple(writer.ttls)


def _without_private(records: list[_Record]) -> list[_Record]:
    """The records without those that have a private address."""
    return [record for record in records if not any(map(is_private, record.rdata.addresses))]


def _end_of(count: int, ttls: Sequence[tuple[int, int]], body: bytes) -> int:
    """Where the first `count` records end."""
    if not count:
        return 0
    at = ttls[count - 1][0] + 4
    return at + 2 + int.from_bytes(body[at : at + 2])
