"""DNS messages: raw bytes where every packet passes.

Three things are done to a message here. A client's query is taken apart (`parse_query`), and everything sent on is built
anew from the parts, so nothing a client hides in a message reaches the upstream. An upstream's response is matched
against what was asked (`matches`) and read into an `Answer` (`parse_response`). Every reply is shaped in one place,
`reply`: header bits, EDNS only if the query had it, EDE, size limit and TC. dnslib builds what is built rarely.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from embargo import names
from embargo.errors import MessageError
from embargo.names import Name

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
A, NS, CNAME, SOA, PTR, MX, AAAA, SRV, NAPTR, DNAME, OPT, SVCB, HTTPS = 1, 2, 5, 6, 12, 15, 28, 33, 35, 39, 41, 64, 65
IN = 1
EDE_BLOCKED, EDE_NO_REACHABLE, EDE_NETWORK = 15, 22, 23  # RFC 8914 section 4
MAX_UDP = 1232  # the DNS flag day value: fits the IPv6 minimum MTU without fragments
MAX_RECORDS = 512  # in one response; a gateway's clients need a few dozen, an attacker's pointers cost time per record
MAX_TTL = 3600  # seconds; what a client may keep of an answer, so that a new block bites within the hour
META_QTYPES = frozenset({OPT, 249, 250, 251, 252, 253, 254})  # TKEY, TSIG, IXFR, AXFR, MAILB, MAILA

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, rdlength
_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV",
    35: "NAPTR", 39: "DNAME", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 52: "TLSA",
    64: "SVCB", 65: "HTTPS", 99: "SPF", 255: "ANY", 257: "CAA",
}  # fmt: skip
QTYPES = {mnemonic: number for number, mnemonic in _TYPES.items()}


def type_name(qtype: int) -> str:
    """The mnemonic of a type, TYPE1234 where there is none (RFC 3597 section 5)."""
    return _TYPES.get(qtype) or f"TYPE{qtype}"


class Query(NamedTuple):
    """A well-formed question of class IN."""

    id: int
    flags: int  # RD and CD as asked
    question: bytes  # as sent, the case kept
    qname: Name
    qtype: int
    edns: bool
    do: bool
    size: int  # octets of UDP payload that the client takes

    @property
    def key(self) -> bytes:
        """What a cached answer depends on: name, type, DO and CD."""
        return self.qname + self.question[-4:-2] + bytes([self.do << 1 | bool(self.flags & CD)])


class Refused(MessageError):
    """The message is whole, but its answer is an rcode. Carries what the reply needs."""

    def __init__(self, rcode: int, query: Query) -> None:
        super().__init__(rcode, 12)
        self.query = query


def parse_query(packet: bytes) -> Query:
    """A client's query, gates in order, each with its fate. A packet shorter than a header, or a response, is not for here."""
    ident, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(packet)
    if flags & 0x7800:  # an opcode other than QUERY
        raise Refused(NOTIMP, _nothing(ident, flags))
    if questions != 1 or answers or authorities:  # RFC 9619
        raise Refused(FORMERR, _nothing(ident, flags))
    try:
        qname, end = _question_name(packet)
        qtype, qclass = struct.unpack_from("!HH", packet, end)
    except (MessageError, struct.error):
        raise Refused(FORMERR, _nothing(ident, flags)) from None
    question = packet[12 : end + 4]
    plain = Query(ident, flags & (RD | CD), question, qname, qtype, False, False, 512)
    try:
        edns = _client_edns(packet, end + 4, additionals)
    except MessageError:
        raise Refused(FORMERR, plain) from None
    if edns is None:
        query = plain
    else:
        size, version, do = edns
        query = plain._replace(edns=True, do=do, size=min(max(size, 512), MAX_UDP))
        if version:
            raise Refused(BADVERS, query)
    if qclass != IN or qtype in META_QTYPES or qtype == 0:
        raise Refused(REFUSED, query)
    return query


def _nothing(ident: int, flags: int) -> Query:
    return Query(ident, flags & (0x7800 | RD | CD), b"", names.ROOT, 0, False, False, 512)


def _question_name(packet: bytes) -> tuple[Name, int]:
    """The qname, which has nothing before it to point at: a compressed one is FORMERR."""
    name, end = names.read(packet, 12)
    if end - 12 != len(name):
        raise MessageError(FORMERR, 12)
    return name, end


def _client_edns(packet: bytes, offset: int, count: int) -> tuple[int, int, bool] | None:
    """(size, version, DO) of the one OPT record a query may have (RFC 6891 section 6.1.1). Others are read over."""
    found: tuple[int, int, bool] | None = None
    for _ in range(min(count, MAX_RECORDS + 1)):
        owner, rtype, _, ttl, start, offset = _record(packet, offset)
        if rtype != OPT:
            continue
        if found is not None or owner != names.ROOT:
            raise MessageError(FORMERR, start)
        for _ in options(packet, start, offset):
            pass
        found = (struct.unpack_from("!H", packet, start - 8)[0], ttl >> 16 & 0xFF, bool(ttl & 0x8000))
    if offset != len(packet) or count > MAX_RECORDS:
        raise MessageError(FORMERR, offset)
    return found


def options(packet: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The EDNS options or SvcParams in packet[start:end]: both are (uint16 code, uint16 length, value)."""
    while start < end:
        if start + 4 > end:
            raise MessageError(FORMERR, start)
        code, length = struct.unpack_from("!HH", packet, start)
        start += 4
        if start + length > end:
            raise MessageError(FORMERR, start)
        yield code, packet[start : start + length]
        start += length


def _record(packet: bytes, offset: int) -> tuple[Name, int, int, int, int, int]:
    """(owner, type, class, TTL, start of rdata, end of rdata) of the record at `offset`."""
    owner, at = names.read(packet, offset)
    try:
        rtype, rclass, ttl, length = _RECORD.unpack_from(packet, at)
    except struct.error:
        raise MessageError(FORMERR, at) from None
    start = at + 10
    if start + length > len(packet):
        raise MessageError(FORMERR, start)
    return owner, rtype, rclass, ttl, start, start + length


#: (a record's owner and target names, its addresses and hints)
Lead = tuple[tuple[Name, ...], tuple[bytes, ...]]


class Answer(NamedTuple):
    """The part of a message behind the question. Compression pointers in it count from the message's start."""

    rcode: int
    counts: tuple[int, int, int]  # answer, authority, additional
    body: bytes
    ttls: tuple[tuple[int, int], ...] = ()  # (offset in body, seconds), each capped
    flags: int = 0  # AA as the upstream said; AD is never passed on over plain transport
    lifetime: int = 0  # seconds it may be cached
    truncated: bool = False
    #: where the records of the answer section lead, in their order
    leads: tuple[Lead, ...] = ()
    #: the same for the other sections, which may be left out
    extra_leads: tuple[Lead, ...] = ()


def ask(query: Query, ident: int, *, edns: bool = True) -> bytes:
    """Our own query for the upstream: RD set, CD as asked, our own EDNS with DO as asked, no options."""
    head = _HEADER.pack(ident, RD | query.flags & CD, 1, 0, 0, int(edns))
    return head + asked(query) + (_opt(0, query.do) if edns else b"")


def asked(query: Query) -> bytes:
    """The question as we send it: the name in lower case."""
    return query.qname + query.question[-4:]


def matches(packet: bytes, ident: int, question: bytes) -> bool:
    """Is this the response to what we asked? ID, QR, opcode and the question octet by octet (RFC 5452 section 9)."""
    return (
        len(packet) >= 12 + len(question)
        and packet[:2] == ident.to_bytes(2)
        and packet[2] & 0xF8 == 0x80
        and packet[4:6] == b"\0\1"
        and packet[12 : 12 + len(question)] == question
    )


def parse_response(packet: bytes, question: bytes) -> Answer:
    """A response that `matches`, as an Answer without its OPT record. Raises MessageError when it is malformed."""
    _, flags, _, *counts = _HEADER.unpack_from(packet)
    if sum(counts) > MAX_RECORDS:
        raise MessageError(FORMERR, 6)
    begin = offset = 12 + len(question)
    if flags & TC:
        return Answer(flags & 15, (0, 0, 0), b"", flags=flags & AA, truncated=True)
    rcode = flags & 15
    ttls: list[tuple[int, int]] = []
    wire = bytearray(packet)
    leads: tuple[list[Lead], list[Lead]] = ([], [])
    negative: int | None = None
    opt: tuple[int, int] | None = None
    for section in range(3):
        for _ in range(counts[section]):
            at = offset
            owner, rtype, _, ttl, start, offset = _record(packet, offset)
            if rtype == OPT:
                if section != 2 or opt:
                    raise MessageError(FORMERR, at)
                opt = (at, offset)
                rcode |= ttl >> 24 << 4
                continue
            ttl = 0 if ttl & 0x80000000 else min(ttl, MAX_TTL)  # RFC 2181 section 8
            wire[start - 6 : start - 2] = ttl.to_bytes(4)
            ttls.append((start - 6 - begin, ttl))
            if rtype == SOA and section == 1 and offset - start >= 20:
                negative = min(ttl, int.from_bytes(packet[offset - 4 : offset]))  # RFC 2308 section 5
            leads[section > 0].append(_leads(packet, owner, rtype, start, offset))
    if offset != len(packet):
        raise MessageError(FORMERR, offset)
    body, counts_out = bytes(wire[begin:]), (counts[0], counts[1], counts[2])
    if opt and opt[1] == len(packet):
        body, counts_out = body[: opt[0] - begin], (counts[0], counts[1], counts[2] - 1)
    elif opt:  # records behind it may be pointed at; leaving the section out moves nothing
        return answer_only(_answer(rcode, (counts[0], counts[1], 0), body, ttls, flags, negative, leads))
    return _answer(rcode, counts_out, body, ttls, flags, negative, leads)


def _answer(
    rcode: int,
    counts: tuple[int, int, int],
    body: bytes,
    ttls: list[tuple[int, int]],
    flags: int,
    negative: int | None,
    leads: tuple[list[Lead], list[Lead]],
) -> Answer:
    lifetime = min((seconds for _, seconds in ttls), default=0)
    if rcode == NXDOMAIN or not counts[0]:
        lifetime = negative if negative is not None and rcode in (NOERROR, NXDOMAIN) else 0
    return Answer(rcode, counts, body, tuple(ttls), flags & AA, lifetime, False, tuple(leads[0]), tuple(leads[1]))


def answer_only(answer: Answer) -> Answer:
    """The same answer without authority and additional records."""
    offset, packet = 12, bytes(12) + answer.body  # pointers are not followed here, only skipped
    for _ in range(answer.counts[0]):
        offset = _skip_record(packet, offset)
    return answer._replace(
        counts=(answer.counts[0], 0, 0), body=answer.body[: offset - 12], ttls=answer.ttls[: answer.counts[0]],
        extra_leads=(),
    )  # fmt: skip


def _skip_record(packet: bytes, offset: int) -> int:
    while (length := packet[offset]) and length < 64:
        offset += 1 + length
    offset += 2 if length else 1
    return offset + 10 + int.from_bytes(packet[offset + 8 : offset + 10])


#: type → octets of rdata before the target name
_TARGET_AT = {NS: 0, CNAME: 0, DNAME: 0, MX: 2, SRV: 6, SVCB: 2, HTTPS: 2}


def _leads(packet: bytes, owner: Name, rtype: int, start: int, end: int) -> Lead:
    """Where a record leads: (its owner and target names, its addresses and hints)."""
    if rtype in (A, AAAA):
        if end - start != (4 if rtype == A else 16):
            raise MessageError(FORMERR, start)
        return (owner,), (packet[start:end],)
    if rtype == NAPTR:
        return (owner, _naptr_replacement(packet, start, end)), ()
    if rtype not in _TARGET_AT:
        return (owner,), ()
    target, at = names.read(packet, start + _TARGET_AT[rtype])
    if rtype not in (SVCB, HTTPS):
        if at != end:
            raise MessageError(FORMERR, start)
        return (owner, target), ()
    if at > end:
        raise MessageError(FORMERR, start)
    hints: list[bytes] = []
    for key, value in options(packet, at, end):
        width = {4: 4, 6: 16}.get(key)  # ipv4hint, ipv6hint (RFC 9460 section 7.3)
        if width:
            hints += [value[i : i + width] for i in range(0, len(value) - len(value) % width, width)]
    return (owner, target), tuple(hints)


def _naptr_replacement(packet: bytes, start: int, end: int) -> Name:
    at = start + 4
    for _ in range(3):  # flags, services, regexp
        if at >= end:
            raise MessageError(FORMERR, start)
        at += 1 + packet[at]
    target, at = names.read(packet, at)
    if at != end:
        raise MessageError(FORMERR, start)
    return target


def reply(query: Query, answer: Answer, *, ede: bytes = b"", udp: bool = True) -> bytes:
    """The one place where a reply is shaped. `ede` is an encoded option (see `ede`), left out without EDNS."""
    flags = QR | RA | query.flags | answer.flags | answer.rcode & 15
    question = query.question
    extra = _opt(answer.rcode, query.do, ede) if query.edns else b""
    limit = query.size if udp else 0xFFFF
    body, counts = answer.body, answer.counts
    if 12 + len(question) + len(body) + len(extra) > limit:
        # what remains is the question: half an answer is worse than a retry over TCP
        flags, body, counts = flags | TC, b"", (0, 0, 0)
        if 12 + len(question) + len(extra) > limit:
            extra = _opt(answer.rcode, query.do)
    head = _HEADER.pack(query.id, flags, bool(question), counts[0], counts[1], counts[2] + query.edns)
    return head + question + body + extra


def _opt(rcode: int, do: bool, data: bytes = b"") -> bytes:
    return struct.pack("!BHHBBHH", 0, OPT, MAX_UDP, rcode >> 4, 0, 0x8000 if do else 0, len(data)) + data


def ede(code: int, text: str) -> bytes:
    """An Extended DNS Error option (RFC 8914 section 2)."""
    data = code.to_bytes(2) + text.encode()[:400]
    return struct.pack("!HH", 15, len(data)) + data


#: a negative reply's SOA; its names can belong to nobody (RFC 6761 section 6.4)
_SOA_NAMES = names.from_text("blocked.invalid") + names.from_text("hostmaster.invalid")


def negative(rcode: int, ttl: int) -> Answer:
    """NXDOMAIN or NODATA with the SOA that lets it be cached for `ttl` seconds (RFC 2308 section 3). Its owner is the qname."""
    rdata = _SOA_NAMES + struct.pack("!IIIII", 1, 3600, 600, 86400, ttl)
    body = b"\xc0\x0c" + _RECORD.pack(SOA, IN, ttl, len(rdata)) + rdata
    return Answer(rcode, (0, 1, 0), body, ((6, ttl),))


def addresses(packed: tuple[bytes, ...], ttl: int) -> Answer:
    """A or AAAA records for the qname."""
    body = b"".join(b"\xc0\x0c" + _RECORD.pack(A if len(p) == 4 else AAAA, IN, ttl, len(p)) + p for p in packed)
    return Answer(NOERROR, (len(packed), 0, 0), body)
