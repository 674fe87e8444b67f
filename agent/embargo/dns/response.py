"""Responses of upstreams: matched with the question, taken apart, and stripped of records that do not belong to it.

A response counts only when its ID and question are those that were sent (`matches`). `parse` keeps the records that belong
to the question: in the answer section those of the asked type on the chain of CNAME and DNAME records that begins at the
qname, in the authority section those of a zone above that chain (and the proofs of DNSSEC), in the additional section those
that the kept records point to. A response that keeps all its records is passed on octet by octet; one that loses some in
the middle is written anew without compression. The names and addresses that kept records point to come out as leads, for
the policy to judge.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from embargo import accelerator, names
from embargo.dns import message
from embargo.dns.message import Answer, Lead
from embargo.dns.upstream import KEEP_ALL, Strip
from embargo.errors import MessageError
from embargo.lists import image
from embargo.names import Name

MAX_CHAIN = 16  # CNAME and DNAME records on the way to an answer; BIND and Unbound follow 16 and 12
MAX_TTL = 3600  # seconds for which a client may keep an answer, so that a new block takes effect within the hour
_ERRORS = frozenset({message.FORMERR, message.SERVFAIL, message.NOTIMP, message.REFUSED})
_SERVICES = frozenset({message.SVCB, message.HTTPS})
_MANDATORY, _ECH = 0, 5  # SvcParamKeys
_PROOFS = frozenset({message.RRSIG, message.NSEC, message.NSEC3})
#: type → (octets of rdata before its names, how many names): those of RFC 3597 section 4 and RFC 9460
_NAMES_IN = {
    **dict.fromkeys((message.NS, 3, 4, message.CNAME, 7, 8, 9, message.PTR, message.DNAME), (0, 1)),  # MD MF MB MG MR
    **dict.fromkeys((message.SOA, 14, 17), (0, 2)),  # MINFO RP
    **dict.fromkeys((message.MX, 18, 21, 36, message.SVCB, message.HTTPS), (2, 1)),  # AFSDB RT KX
    26: (2, 2),  # PX
    message.SRV: (6, 1),
    message.NAPTR: (0, 1),  # it stands behind three texts, see `_first_name`
}
_SOA_NUMBERS = 20  # octets behind the names of a SOA record
#: types whose target is where the client goes next
_LEADING = frozenset(
    {message.NS, message.CNAME, message.DNAME, message.MX, message.SRV, message.NAPTR, message.SVCB, message.HTTPS}
)

_native = accelerator.load("response")


class _Record(NamedTuple):
    section: int
    owner: Name
    rtype: int
    rclass: int
    ttl: int
    start: int  # of its rdata
    end: int
    targets: tuple[Name, ...]
    addresses: tuple[bytes, ...]


def matches(packet: bytes, ident: int, question: bytes) -> bool:
    """Whether a packet is the response to a question: ID, QR, opcode and question octet by octet (RFC 5452 section 9).

    A server that cannot read the query may send an error without a question (RFC 6891 section 7).
    """
    if len(packet) < 12 or packet[:2] != ident.to_bytes(2) or packet[2] & 0xF8 != 0x80:
        return False
    if packet[4:6] == b"\0\0":
        return packet[3] & 15 in _ERRORS and not any(packet[6:10])
    return packet[4:6] == b"\0\1" and packet[12 : 12 + len(question)] == question


def parse(packet: bytes, question: bytes, strip: Strip = KEEP_ALL) -> Answer:
    """A response that `matches`, as an Answer without its OPT record. Raises MessageError when it is malformed.

    `strip`: what is taken out. The AD bit stays only if nothing was.
    """
    usual: Answer | None = _native.read(packet, question, Answer, Lead) if _native else None
    if usual is not None and not (strip.private and any(is_private(a) for lead in usual.leads for a in lead.addresses)):
        return usual
    _, flags, questions, *counts = message.HEADER.unpack_from(packet)
    if not questions:
        return Answer(flags & 15)
    if flags & message.TC:
        return Answer(flags & 15, truncated=True)
    qname, qtype = Name(question[:-4]), int.from_bytes(question[-4:-2])
    names_at = {12: qname}
    records = _records(packet, 12 + len(question), counts, names_at)
    rcode = flags & 15 | _extended_rcode(records)
    belonging = _belonging(records, qname, qtype)
    if counts[0] and not _answers(belonging):  # it answers another question
        raise MessageError(message.FORMERR, 6)
    kept = _without_private(belonging) if strip.private else belonging
    stripped = len(kept) < len(belonging)
    answered = rcode == message.NOERROR and any(qtype in (record.rtype, message.ANY) for record in _answers(kept))
    if not answered:
        kept = _with_negative_ttl(packet, kept)
    if strip.ech and any(record.rtype in _SERVICES for record in kept):
        body, ttls = _rebuilt(packet, kept, names_at, without_ech=True)
        stripped = stripped or body != _rebuilt(packet, kept, names_at)[0]
    else:
        body, ttls = _body(packet, 12 + len(question), records, kept, names_at)
    counted = [sum(record.section == section for record in kept) for section in range(3)]
    cacheable = rcode in (message.NOERROR, message.NXDOMAIN) and (answered or _soa(kept))
    return Answer(
        rcode=rcode,
        counts=(counted[0], counted[1], counted[2]),
        body=body,
        ttls=ttls,
        flags=flags & (message.AA if stripped else message.AA | message.AD),
        lifetime=min((record.ttl for record in kept), default=0) if cacheable else 0,
        referral=not (rcode or flags & message.AA) and _refers(belonging),
        leads=_leads(_answers(kept)),
        extra_leads=_leads(record for record in kept if record.section and (record.targets or record.addresses)),
        answer_end=_end_of(counted[0], ttls, body),
    )


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
    minimum = int.from_bytes(packet[soa.end - 4 : soa.end])
    return [record._replace(ttl=min(record.ttl, minimum)) if record is soa else record for record in records]


def _records(packet: bytes, offset: int, counts: Sequence[int], names_at: dict[int, Name]) -> list[_Record]:
    if sum(counts) > message.MAX_RECORDS:
        raise MessageError(message.FORMERR, 6)
    found: list[_Record] = []
    for section, count in enumerate(counts):
        for _ in range(count):
            owner, rtype, rclass, ttl, start, offset = message.record(packet, offset, names_at)
            if rtype == message.OPT and (section != 2 or owner != names.ROOT):
                raise MessageError(message.FORMERR, start)
            if rtype != message.OPT:
                ttl = 0 if ttl & 0x80000000 else min(ttl, MAX_TTL)  # RFC 2181 section 8
            targets, addresses = _pointing(packet, owner, rtype, start, offset, names_at)
            found.append(_Record(section, owner, rtype, rclass, ttl, start, offset, targets, addresses))
    if offset != len(packet):
        raise MessageError(message.FORMERR, offset)
    return found


def _extended_rcode(records: Iterable[_Record]) -> int:
    opts = [record for record in records if record.rtype == message.OPT]
    if len(opts) > 1:
        raise MessageError(message.FORMERR, opts[1].start)
    return opts[0].ttl >> 24 << 4 if opts else 0


def _pointing(
    packet: bytes, owner: Name, rtype: int, start: int, end: int, names_at: dict[int, Name]
) -> tuple[tuple[Name, ...], tuple[bytes, ...]]:
    """Where a record leads: (target names, addresses and hints).

    Names that lead nowhere are read as well, since a client will: MessageError where one is malformed.
    """
    if rtype in (message.A, message.AAAA):
        if end - start != (4 if rtype == message.A else 16):
            raise MessageError(message.FORMERR, start)
        return (), (packet[start:end],)
    if rtype not in _NAMES_IN:
        return (), ()
    at = _first_name(packet, rtype, start, end)
    for _ in range(_NAMES_IN[rtype][1]):
        target, at = names.read(packet, at, names_at)
    left = end - at
    if left < 0 or (left != (_SOA_NUMBERS if rtype == message.SOA else 0) and rtype not in _SERVICES):
        raise MessageError(message.FORMERR, start)
    if rtype not in _SERVICES:
        return (target,) if rtype in _LEADING else (), ()
    hints: list[bytes] = []
    for key, value in message.options(packet, at, end):
        width = {4: 4, 6: 16}.get(key)  # ipv4hint, ipv6hint (RFC 9460 section 7.3)
        if width:
            hints += [value[i : i + width] for i in range(0, len(value) - len(value) % width, width)]
    return (owner if target == names.ROOT else target,), tuple(hints)


def _first_name(packet: bytes, rtype: int, start: int, end: int) -> int:
    """Where in a record's rdata its names begin."""
    if rtype != message.NAPTR:
        return start + _NAMES_IN[rtype][0]
    at = start + 4
    for _ in range(3):  # flags, services, regexp
        if at >= end:
            raise MessageError(message.FORMERR, start)
        at += 1 + packet[at]
    return at


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
            pointed.update(record.targets)
    return kept


def _chain(answers: Iterable[_Record], qname: Name, qtype: int) -> list[Name]:
    """The qname, and the names that its CNAMEs and DNAMEs lead to."""
    steps = {
        (record.rtype, record.owner): record.targets[0] for record in answers if record.rtype in (message.CNAME, message.DNAME)
    }
    chain = [qname]
    while qtype != message.CNAME and (target := _step(chain[-1], steps)) is not None:
        if target in chain or len(chain) > MAX_CHAIN:
            raise MessageError(message.FORMERR, 12)
        chain.append(target)
    return chain


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
        targets.setdefault(record.owner, []).extend(record.targets)
        addresses.setdefault(record.owner, []).extend(record.addresses)
    return tuple(Lead(owner, tuple(targets[owner]), tuple(addresses[owner])) for owner in targets)


# ── what is passed on ──────────────────────────────────────────────────────────────────────────────────────────────────


def _body(
    packet: bytes, begin: int, records: Sequence[_Record], kept: Sequence[_Record], names_at: dict[int, Name]
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """(the kept records' octets, their TTLs and where these stand)."""
    if kept and kept[-1].start != records[len(kept) - 1].start:
        return _rebuilt(packet, kept, names_at)
    body = bytearray(packet[begin : kept[-1].end if kept else begin])  # names point backwards: to none that is left out
    ttls = tuple((record.start - 6 - begin, record.ttl) for record in kept)
    for offset, ttl in ttls:
        struct.pack_into("!I", body, offset, ttl)
    return bytes(body), ttls


def _rebuilt(
    packet: bytes, kept: Iterable[_Record], names_at: dict[int, Name], *, without_ech: bool = False
) -> tuple[bytes, tuple[tuple[int, int], ...]]:
    """The records written anew, without compression."""
    body = bytearray()
    ttls: list[tuple[int, int]] = []
    for record in kept:
        rdata = _expanded(packet, record, names_at)
        if without_ech and record.rtype in _SERVICES:
            rdata = _without_ech(rdata)
        ttls.append((len(body) + len(record.owner) + 4, record.ttl))
        body += record.owner + message.RECORD.pack(record.rtype, message.IN, record.ttl, len(rdata)) + rdata
    return bytes(body), tuple(ttls)


def _expanded(packet: bytes, record: _Record, names_at: dict[int, Name]) -> bytes:
    start, end = record.start, record.end
    if record.rtype not in _NAMES_IN:
        return packet[start:end]
    at = _first_name(packet, record.rtype, start, end)
    rdata = packet[start:at]
    for _ in range(_NAMES_IN[record.rtype][1]):
        name, at = names.read(packet, at, names_at)
        rdata += name
    return rdata + packet[at:end]


def _without_private(records: list[_Record]) -> list[_Record]:
    """The records without those that have a private address. Where no answer is left, the SOA alone stays: name servers
    without an answer would look like a referral to the client."""
    kept = [record for record in records if not any(map(is_private, record.addresses))]
    if len(kept) < len(records) and not _answers(kept):
        soa = _soa(kept)
        return [soa] if soa else []
    return kept


def _without_ech(rdata: bytes) -> bytes:
    """SVCB or HTTPS rdata without ECH keys, and without the demand that a client understand them (RFC 9460 section 8)."""
    target = names.read(rdata, 2)[1]
    made = bytearray(rdata[:target])
    for key, value in message.options(rdata, target, len(rdata)):
        if key == _MANDATORY:
            value = b"".join(value[i : i + 2] for i in range(0, len(value), 2) if value[i : i + 2] != _ECH.to_bytes(2))
        if key != _ECH and (value or key != _MANDATORY):
            made += key.to_bytes(2) + len(value).to_bytes(2) + value
    return bytes(made)


def is_private(address: bytes) -> bool:
    """Whether an address cannot exist on the Internet: private, loopback, link-local, unspecified, or IPv6 that carries one."""
    if len(address) == 16:
        inner = image.embedded(address)
        if inner is not None:
            return is_private(inner)
        number = int.from_bytes(address)
        return any(number >> 128 - bits == prefix for prefix, bits in _PRIVATE6)
    number = int.from_bytes(address)
    return any(number >> 32 - bits == prefix for prefix, bits in _PRIVATE4)


#: RFC 1122 (this network, loopback), RFC 1918, RFC 6598, RFC 3927: (prefix, bits)
_PRIVATE4 = (
    (0, 8), (10, 8), (127, 8), (0xAC1, 12), (0xC0A8, 16), (0xA9FE, 16), (0x191, 10),
)  # fmt: skip
_PRIVATE6 = ((0, 127), (0xFC >> 1, 7), (0xFE80 >> 6, 10))  # RFC 4291 (unspecified, loopback, link-local), RFC 4193


def _end_of(count: int, ttls: Sequence[tuple[int, int]], body: bytes) -> int:
    """Where the first `count` records end."""
    if not count:
        return 0
    at = ttls[count - 1][0] + 4
    return at + 2 + int.from_bytes(body[at : at + 2])
