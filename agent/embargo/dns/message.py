"""DNS messages: clients' queries read, questions to upstreams and replies written, as octets without an object a record.

A client's query is taken apart (`parse_query`), and everything sent on is built anew from the parts (`ask`), so nothing a
client hides in a message reaches the upstream. Every reply is shaped in one place, `reply`: header bits, EDNS only if the
query had it, EDE, size limit and TC. Responses are read in `response`, answers of our own are composed in `compose`.
"""

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from embargo import accelerator, names
from embargo.errors import MessageError
from embargo.names import Name

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, BADVERS = 0, 1, 2, 3, 4, 5, 6, 16
A, NS, CNAME, SOA, PTR, MX, AAAA, SRV, NAPTR, DNAME, OPT, SVCB, HTTPS = 1, 2, 5, 6, 12, 15, 28, 33, 35, 39, 41, 64, 65
DS, RRSIG, NSEC, DNSKEY, NSEC3, ANY = 43, 46, 47, 48, 50, 255
IN = 1
_EDE = 15  # the option
EDE_STALE, EDE_BLOCKED, EDE_STALE_NXDOMAIN, EDE_NO_REACHABLE, EDE_NETWORK = 3, 15, 19, 22, 23  # RFC 8914 section 4
MAX_UDP = 1232  # the DNS flag day value: fits the IPv6 minimum MTU without fragments
PADDED_TO = 128  # octets: the block of RFC 8467 section 4.1
MAX_RECORDS = 512  # in a query, which needs one
MAX_EDE = 400  # octets of text: the rest of a reply needs room too
#: what a validating resolver asks at each zone cut above a name (RFC 4035 section 5): it says nothing about the name itself
CUT_QTYPES = frozenset({DS, DNSKEY})
META_QTYPES = frozenset({OPT, 249, 250, 251, 252, 253, 254})  # TKEY, TSIG, IXFR, AXFR, MAILB, MAILA

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
HEADER = struct.Struct("!HHHHHH")
RECORD = struct.Struct("!HHIH")  # type, class, TTL, rdlength
_TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV",
    35: "NAPTR", 39: "DNAME", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 52: "TLSA",
    64: "SVCB", 65: "HTTPS", 99: "SPF", 255: "ANY", 257: "CAA",
}  # fmt: skip
QTYPES = {mnemonic: number for number, mnemonic in _TYPES.items()}

_native = accelerator.load("message")


def type_name(qtype: int) -> str:
    """The mnemonic of a type, TYPE1234 where there is none (RFC 3597 section 5)."""
    return _TYPES.get(qtype) or f"TYPE{qtype}"


class Query(NamedTuple):
    """A well-formed question of class IN."""

    id: int
    flags: int  # RD, CD and AD as asked
    question: bytes  # as sent, the case kept
    qname: Name
    qtype: int
    edns: bool
    do: bool
    size: int  # octets of UDP payload that the client accepts

    @property
    def wanted_ad(self) -> int:
        """AD when the client asked for it, by that bit or by DO (RFC 6840 section 5.7)."""
        return AD if self.do else self.flags & AD

    @property
    def key(self) -> bytes:
        """What a cached answer depends on: name, type, and an octet with DO and CD. See `query_of`."""
        return self.qname + self.question[-4:-2] + bytes([self.do << 1 | bool(self.flags & CD)])


def own_query(qname: Name, qtype: int, *, do: bool = False, cd: bool = False) -> Query:
    """A question of our own, as a client with EDNS would ask it."""
    flags = RD | (CD if cd else 0)
    return Query(0, flags, qname + qtype.to_bytes(2) + IN.to_bytes(2), qname, qtype, True, do, MAX_UDP)


def query_of(key: bytes) -> Query:
    """A query that has this key, see `Query.key`."""
    return own_query(Name(key[:-3]), int.from_bytes(key[-3:-1]), do=bool(key[-1] & 2), cd=bool(key[-1] & 1))


class RejectedQuery(MessageError):
    """The query is answered with an rcode alone. Carries what the reply needs."""

    def __init__(self, rcode: int, query: Query) -> None:
        super().__init__(rcode, 12)
        self.query = query


def parse_query(packet: bytes) -> Query:
    """A client's query; RejectedQuery with the rcode of the reply to any other. Gates in order, each with its fate.

    A packet shorter than a header, or a response, must not come here: it gets no reply at all.
    """
    usual: Query | None = _native.query(packet, Query) if _native else None
    if usual is not None:
        return usual
    ident, flags, questions, answers, authorities, additionals = HEADER.unpack_from(packet)
    # An opcode other than QUERY: "Not Implemented - The name server does not support the requested kind of query"
    # (RFC 1035 section 4.1.1). What the rest of the message means depends on the opcode.
    if flags & 0x7800:
        raise RejectedQuery(NOTIMP, _without_question(ident, flags))
    # More than one question, or none, is a format error (RFC 9619 section 4); so are sections that no query has.
    if questions != 1 or answers or authorities:
        raise RejectedQuery(FORMERR, _without_question(ident, flags))
    # "Format error - The name server was unable to interpret the query" (RFC 1035 section 4.1.1). The reply has no question:
    # there is none that could be repeated.
    try:
        qname, end = _question_name(packet)
        qtype, qclass = struct.unpack_from("!HH", packet, end)
    except (MessageError, struct.error):
        raise RejectedQuery(FORMERR, _without_question(ident, flags)) from None
    # A second OPT record is a format error (RFC 6891 section 6.1.1), as is one that is cut short. From here on the reply
    # repeats the question.
    plain = Query(ident, flags & (RD | CD | AD), packet[12 : end + 4], qname, qtype, False, False, 512)
    try:
        edns = _client_edns(packet, end + 4, additionals)
    except MessageError:
        raise RejectedQuery(FORMERR, plain) from None
    query = plain
    if edns is not None:
        size, version, do = edns
        query = plain._replace(edns=True, do=do, size=min(max(size, 512), MAX_UDP))
        # A version that is not implemented: BADVERS, with our own version in the OPT of the reply (RFC 6891 section 6.1.3).
        if version:
            raise RejectedQuery(BADVERS, query)
    # What no upstream can answer for a client: other classes, zone transfers, and types that stand for no data. "Refused -
    # The name server refuses to perform the specified operation for policy reasons" (RFC 1035 section 4.1.1).
    if qclass != IN or qtype in META_QTYPES or qtype == 0:
        raise RejectedQuery(REFUSED, query)
    return query


def _without_question(ident: int, flags: int) -> Query:
    return Query(ident, flags & (0x7800 | RD | CD), b"", names.ROOT, 0, False, False, 512)


def _question_name(packet: bytes) -> tuple[Name, int]:
    """The qname and the offset behind it. A compressed one is FORMERR: there is nothing before it to point at."""
    name, end = names.read(packet, 12)
    if end - 12 != len(name):
        raise MessageError(FORMERR, 12)
    return name, end


def _client_edns(packet: bytes, offset: int, count: int) -> tuple[int, int, bool] | None:
    """(size, version, DO) of the one OPT record a query may have (RFC 6891 section 6.1.1). Other records are skipped."""
    edns: tuple[int, int, bool] | None = None
    names_at: dict[int, Name] = {}
    names.read(packet, 12, names_at)  # the qname, which owners may point to
    for _ in range(min(count, MAX_RECORDS + 1)):
        owner, rtype, size, ttl, start, offset = record(packet, offset, names_at)
        if rtype != OPT:
            continue
        if edns is not None or owner != names.ROOT:
            raise MessageError(FORMERR, start)
        for _ in options(packet, start, offset):
            pass
        edns = (size, ttl >> 16 & 0xFF, bool(ttl & 0x8000))
    if offset != len(packet) or count > MAX_RECORDS:
        raise MessageError(FORMERR, offset)
    return edns


def options(packet: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The EDNS options or SvcParams in packet[start:end]: both are (uint16 code, uint16 length, value). MessageError if cut."""
    while start < end:
        if start + 4 > end:
            raise MessageError(FORMERR, start)
        code, length = struct.unpack_from("!HH", packet, start)
        start += 4
        if start + length > end:
            raise MessageError(FORMERR, start)
        yield code, packet[start : start + length]
        start += length


#: owner, type, class, TTL, where its rdata begins, where that and the record end; a NamedTuple would cost a response 6% more
Record = tuple[Name, int, int, int, int, int]


def record(packet: bytes, offset: int, names_at: dict[int, Name]) -> Record:
    """The record at `offset`, which lies in the packet as a whole; else MessageError, whose offset is the packet's end when the
    record is cut short. For `names_at` see `names.read`."""
    owner, at = names.read(packet, offset, names_at)
    try:
        rtype, rclass, ttl, length = RECORD.unpack_from(packet, at)
    except struct.error:
        raise MessageError(FORMERR, len(packet)) from None
    start = at + RECORD.size
    if start + length > len(packet):
        raise MessageError(FORMERR, len(packet))
    return owner, rtype, rclass, ttl, start, start + length


def has_edns(packet: bytes) -> bool:
    """Whether a message has an OPT record; what lies behind malformed octets does not count."""
    questions, answers, authorities, additionals = HEADER.unpack_from(packet)[2:]
    names_at: dict[int, Name] = {}
    offset = 12
    with contextlib.suppress(MessageError):
        for _ in range(questions if additionals else 0):
            offset = names.read(packet, offset, names_at)[1] + 4
        for _ in range(answers + authorities + additionals if additionals else 0):
            _, rtype, _, _, _, offset = record(packet, offset, names_at)
            if rtype == OPT:
                return True
    return False


class Lead(NamedTuple):
    """Where the records of one owner lead: the names they point to, their addresses and address hints.

    A client that asks for the owner goes there next, so the policy judges all of them.
    """

    owner: Name
    targets: tuple[Name, ...]
    addresses: tuple[bytes, ...]


class Explanation(NamedTuple):
    """An Extended DNS Error (RFC 8914): its code, and text for people."""

    code: int
    text: str


class Answer(NamedTuple):
    """The part of a message behind the question. Compression pointers in it count from the message's start."""

    rcode: int
    counts: tuple[int, int, int] = (0, 0, 0)  # answer, authority, additional
    body: bytes = b""
    ttls: tuple[tuple[int, int], ...] = ()  # (offset in body, seconds), each capped
    flags: int = 0  # AA and AD of the response; AD only if it came over TLS, AA never in the cache
    lifetime: int = 0  # seconds it may be cached
    truncated: bool = False
    referral: bool = False  # it names other servers in place of an answer
    leads: tuple[Lead, ...] = ()  # of the answer section
    extra_leads: tuple[Lead, ...] = ()  # of the other sections, which may be left out
    answer_end: int = 0  # where in `body` the other sections begin
    ede: Explanation | None = None  # what the upstream says about it
    private: bool = False  # it had private addresses, which are removed for some names


def answer_only(answer: Answer) -> Answer:
    """The same answer without authority and additional records, and without AD: it is not what the server has validated.

    The answer section stays at its place, so its compression pointers hold.
    """
    count = answer.counts[0]
    body = answer.body[: answer.answer_end]
    flags = answer.flags & ~AD
    return answer._replace(counts=(count, 0, 0), body=body, ttls=answer.ttls[:count], flags=flags, extra_leads=())


class Turning(NamedTuple):
    """The addresses that the answer section ends in. Records of one size, in any order (RFC 1794)."""

    start: int  # where the first one begins in the body
    size: int  # octets of each
    records: int


def turning(answer: Answer) -> Turning | None:
    """The addresses that an answer ends in, if they are several of one owner, type and TTL; what leads there stands before."""
    count = answer.counts[0]
    if count < 2:
        return None
    at, ttl = answer.ttls[count - 1]
    head = answer.body[at - 6 : at]  # owner, type and class
    size = _ADDRESS_SIZES.get(head[2:], 0) if head[0] >= 0xC0 else 0  # an owner that is no pointer is left where it is
    found = 1
    while size and found < count:
        before = at - found * size
        if answer.ttls[count - 1 - found] != (before, ttl) or answer.body[before - 6 : before] != head:
            break
        found += 1
    return Turning(at - 6 - (found - 1) * size, size, found) if size and found > 1 else None


def turned(body: bytes, where: Turning, ident: int) -> bytes:
    """The body with its addresses turned by the ID of the query, so that clients use all of them, each in its turn."""
    first, end = where.start + ident % where.records * where.size, where.start + where.records * where.size
    return body[: where.start] + body[first:end] + body[where.start : first] + body[end:]


def ask(query: Query, ident: int, *, edns: bool = True) -> bytes:
    """A query for an upstream: RD set, CD as the client asked, our own EDNS with DO as the client asked, no options."""
    head = HEADER.pack(ident, RD | query.flags & CD, 1, 0, 0, int(edns))
    return head + own_question(query) + (_ASKED[query.do] if edns else b"")


def ask_in_private(query: Query, ident: int, *, edns: bool = True) -> bytes:
    """The same over TLS: AD set, since the AD of the answer can be trusted, and padded (RFC 7830)."""
    head = HEADER.pack(ident, RD | AD | query.flags & CD, 1, 0, 0, int(edns))
    question = own_question(query)
    if not edns:
        return head + question
    room = -(len(head) + len(question) + len(_ASKED[0]) + 4) % PADDED_TO
    return head + question + _opt(0, query.do, struct.pack("!HH", _PADDING, room) + bytes(room))


def own_question(query: Query) -> bytes:
    """The question as it is sent to upstreams: the name in lower case."""
    return query.qname + query.question[-4:]


def reply(query: Query, answer: Answer, *, ede: bytes = b"", udp: bool = True) -> bytes:
    """The reply to a query, with the question as the client sent it. `ede`: an option, left out without EDNS.

    What does not fit into a UDP reply is left out: first that option, then the answer, with TC set.
    """
    flags = QR | RA | query.flags & ~AD | answer.flags & (AA | query.wanted_ad) | answer.rcode & 15
    question, body, counts = query.question, answer.body, answer.counts
    extra = _opt(answer.rcode, query.do, ede) if query.edns else b""
    room = (query.size if udp else 0xFFFF) - 12 - len(question)
    if ede and len(body) + len(extra) > room:  # an explanation goes before an answer does (RFC 8914 section 3)
        extra = _opt(answer.rcode, query.do) if query.edns else b""
    if len(body) + len(extra) > room:  # half an answer is worse than a retry over TCP
        flags, body, counts = flags | TC, b"", (0, 0, 0)
    head = HEADER.pack(query.id, flags, bool(question), counts[0], counts[1], counts[2] + query.edns)
    return head + question + body + extra


def _opt(rcode: int, do: bool, data: bytes = b"") -> bytes:
    return struct.pack("!BHHBBHH", 0, OPT, MAX_UDP, rcode >> 4, 0, 0x8000 if do else 0, len(data)) + data


#: octets of an address record by its type and class, when its owner is a pointer
_ADDRESS_SIZES = {struct.pack("!HH", A, IN): 16, struct.pack("!HH", AAAA, IN): 28}
_PADDING = 12
_ASKED = (_opt(0, False), _opt(0, True))


def ede(code: int, text: str) -> bytes:
    """An Extended DNS Error option (RFC 8914 section 2)."""
    data = code.to_bytes(2) + text.encode()[:MAX_EDE].decode(errors="ignore").encode()
    return struct.pack("!HH", _EDE, len(data)) + data


def explanation(packet: bytes, start: int, end: int) -> Explanation | None:
    """The first Extended DNS Error among the EDNS options in packet[start:end]."""
    with contextlib.suppress(MessageError):
        for code, value in options(packet, start, end):
            if code == _EDE and len(value) >= 2:
                return Explanation(int.from_bytes(value[:2]), value[2 : 2 + MAX_EDE].decode(errors="replace"))
    return None
