# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `response.parse`: the usual response taken apart.

Usual: CNAMEs in their order, then the addresses asked for; or one SOA in place of an answer; and nothing else but an OPT.
Octets are read into a `Reading` first; Python objects are made when it is certain that the response is usual.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from embargo.native.octets cimport lower, made, read16, read32, write32

cdef enum:  # bounds
    CHAIN = 16  # names behind each other
    RECORDS = 4096  # a message has room for as many addresses
    POINTABLE = 0x4000  # octets that a compression pointer can lead to
    BITMAP = 0x800  # octets with a bit for each of them
    MAX_TTL = 3600  # as in `response`
    UNPROVEN_TTL = 5

cdef enum:  # types and rcodes
    A = 1
    CNAME = 5
    SOA = 6
    AAAA = 28
    OPT = 41
    EDE = 15  # the option
    NOERROR = 0
    NXDOMAIN = 3


cdef struct Name:
    uint8_t wire[256]  # in lower case
    int length


cdef struct Record:
    Name owner
    uint32_t rtype
    uint32_t ttl
    Py_ssize_t ttl_at
    Py_ssize_t start  # of its rdata
    Py_ssize_t end


cdef struct Reading:
    const uint8_t *p
    Py_ssize_t size
    Py_ssize_t at  # where the next record begins
    uint32_t qtype
    int rcode
    Name chain[CHAIN + 1]  # the name asked for, and where each CNAME leads
    int steps  # CNAMEs read
    Py_ssize_t addresses[RECORDS]  # where each begins
    int address_count
    Py_ssize_t ttl_at[RECORDS]
    uint32_t ttls[RECORDS]
    int count  # records read
    bint soa
    uint8_t began[BITMAP]  # a bit for each octet at which a name or the rest of one began


cdef inline void _begins(Reading *reading, Py_ssize_t at) noexcept nogil:
    """Note that names may point here."""
    if at < POINTABLE:
        reading.began[at >> 3] |= 1 << (at & 7)


cdef Py_ssize_t _read_name(Reading *reading, Py_ssize_t offset, Name *name) noexcept nogil:
    """`names.read`: the offset behind the name, -1 when there is no name."""
    cdef Py_ssize_t at = offset, end = 0, target
    cdef const uint8_t *p = reading.p
    cdef int out = 0, step, i
    while True:
        if at >= reading.size:
            return -1
        step = p[at]
        if not end:
            _begins(reading, at)
        if not step:
            break
        if step < 64:
            if at + 1 + step >= reading.size or out + 1 + step >= 255:
                return -1
            name.wire[out] = step
            for i in range(1, step + 1):
                name.wire[out + i] = lower(p[at + i])
            out += 1 + step
            at += 1 + step
        elif step >= 192:
            if at + 1 >= reading.size:
                return -1
            target = (step & 63) << 8 | p[at + 1]
            # to a name before this one, whose pointers lead to names before that one: so this ends
            if target >= offset or not reading.began[target >> 3] >> (target & 7) & 1:
                return -1
            if not end:
                end = at + 2
            at = target
        else:
            return -1
    name.wire[out] = 0
    name.length = out + 1
    return end if end else at + 1


cdef inline bint _equal(const Name *one, const Name *other) noexcept nogil:
    return one.length == other.length and memcmp(one.wire, other.wire, one.length) == 0


cdef bint _ends_with(const Name *name, const Name *above) noexcept nogil:
    """Whether `above` is the name itself or a name above it."""
    cdef int at = 0
    while name.length - at > above.length:
        at += 1 + name.wire[at]
    return name.length - at == above.length and memcmp(name.wire + at, above.wire, above.length) == 0


cdef bint _read_record(Reading *reading, Record *record) noexcept nogil:
    """Read the next record of class IN; False when there is none."""
    cdef Py_ssize_t at = _read_name(reading, reading.at, &record.owner)
    cdef const uint8_t *fixed  # type, class, TTL, length of rdata
    if at < 0 or at + 10 > reading.size:
        return False
    fixed = reading.p + at
    if read16(fixed + 2) != 1:
        return False
    record.rtype, record.ttl, record.ttl_at = read16(fixed), read32(fixed + 4), at + 4
    record.ttl = min(record.ttl, <uint32_t>MAX_TTL) if record.ttl >> 31 == 0 else <uint32_t>0  # RFC 2181 section 8
    record.start = at + 10
    record.end = record.start + read16(fixed + 8)
    return record.end <= reading.size


cdef bint _answers(Reading *reading, const Record *record) noexcept nogil:
    """Whether this record of the answer section is the next step of the chain or an address at its end; it is noted."""
    cdef int i
    cdef Name *target
    if not _equal(&record.owner, &reading.chain[reading.steps]):
        return False
    if record.rtype == reading.qtype and record.end - record.start == (4 if reading.qtype == A else 16):
        reading.addresses[reading.address_count] = record.start
        reading.address_count += 1
        return True
    if record.rtype != CNAME or reading.address_count or reading.steps >= CHAIN - 1:
        return False
    target = &reading.chain[reading.steps + 1]
    if _read_name(reading, record.start, target) != record.end:
        return False
    for i in range(reading.steps + 1):  # it leads back
        if _equal(&reading.chain[i], target):
            return False
    reading.steps += 1
    return True


cdef bint _denies(Reading *reading, Record *record) noexcept nogil:
    """Whether this record of the authority section is the SOA of a zone above the chain; its TTL is the lesser of two."""
    cdef Name ignored
    cdef Py_ssize_t at
    cdef int i
    cdef bint above = record.owner.length == 1
    for i in range(reading.steps + 1):
        above = above or _ends_with(&reading.chain[i], &record.owner)
    if record.rtype != SOA or not above:
        return False
    at = _read_name(reading, record.start, &ignored)
    if at < 0 or _read_name(reading, at, &ignored) != record.end - 20:
        return False
    reading.soa = True
    if reading.rcode or not reading.address_count:  # RFC 2308 section 5
        record.ttl = min(record.ttl, read32(reading.p + record.end - 4))
    return True


cdef bint _ends(const Reading *reading, int additional) noexcept nogil:
    """Whether nothing follows the records but as many OPT records as are announced: one or none, without an explanation."""
    cdef const uint8_t *opt = reading.p + reading.at
    cdef Py_ssize_t left = reading.size - reading.at, at = 11
    if not additional:
        return left == 0
    if left < 11 or opt[0] or read16(opt + 1) != OPT or opt[5] or 11 + read16(opt + 9) != left:
        return False
    while at + 4 <= left:
        if read16(opt + at) == EDE:
            return False
        at += 4 + read16(opt + at + 2)
    return True


cdef Py_ssize_t _read(Reading *reading, int an, int ns, int ar) noexcept nogil:
    """Read all records of a usual response: where the last answer ends, -1 when it is not usual."""
    cdef Record record
    cdef Py_ssize_t answer_end = reading.at
    cdef int i
    for i in range(an + ns):
        if not _read_record(reading, &record):
            return -1
        if not (_answers(reading, &record) if i < an else _denies(reading, &record)):
            return -1
        reading.ttl_at[i], reading.ttls[i] = record.ttl_at, record.ttl
        reading.count += 1
        reading.at = record.end
        if i < an:
            answer_end = record.end
    return answer_end if _ends(reading, ar) else -1


cdef inline bytes _wire(const Name *name):
    return PyBytes_FromStringAndSize(<const char *>name.wire, name.length)


cdef tuple _leads(const Reading *reading, type lead):
    """The leads of the answers: where each CNAME leads, and the addresses at the end."""
    cdef Py_ssize_t width = 4 if reading.qtype == A else 16
    cdef int i
    cdef list leads = [], addresses = []
    for i in range(reading.steps):
        leads.append(made(lead, (_wire(&reading.chain[i]), (_wire(&reading.chain[i + 1]),), ())))
    for i in range(reading.address_count):
        addresses.append(PyBytes_FromStringAndSize(<const char *>reading.p + reading.addresses[i], width))
    if addresses:
        leads.append(made(lead, (_wire(&reading.chain[reading.steps]), (), tuple(addresses))))
    return tuple(leads)


cdef bytes _body(const Reading *reading, Py_ssize_t begin):
    """The records, their TTLs within bounds."""
    cdef bytes body = PyBytes_FromStringAndSize(<const char *>reading.p + begin, reading.at - begin)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(body)
    cdef int i
    for i in range(reading.count):
        write32(out + reading.ttl_at[i] - begin, reading.ttls[i])
    return body


def read(bytes packet, bytes question, type answer, type lead):
    """The twin of `response.parse` for a usual response; None for one that Python has to look at.

    `packet` is at least a header, and its question is this one. `answer`, `lead`: the types `Answer` and `Lead`.
    """
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t asked = PyBytes_GET_SIZE(question), begin = 12 + asked, answer_end
    cdef int an, ns, ar, i
    cdef uint32_t lifetime = MAX_TTL
    cdef list ttls
    cdef Reading reading
    reading.p, reading.size, reading.at = p, PyBytes_GET_SIZE(packet), begin
    # one question, opcode QUERY, not truncated
    if reading.size < begin or asked < 5 or asked > 259 or read16(p + 4) != 1 or p[2] & 0x7A:
        return None
    an, ns, ar = read16(p + 6), read16(p + 8), read16(p + 10)
    reading.rcode, reading.qtype = p[3] & 15, read16(<const uint8_t *>PyBytes_AS_STRING(question) + asked - 4)
    if (reading.rcode != NOERROR and reading.rcode != NXDOMAIN) or (reading.qtype != A and reading.qtype != AAAA):
        return None
    if an + ns > RECORDS or ns > 1 or ar > 1:
        return None
    reading.steps = reading.address_count = reading.count = 0
    reading.soa = False
    memset(reading.began, 0, sizeof(reading.began))
    i = 12
    while i < begin - 4:
        _begins(&reading, i)
        i += 1 + p[i]
    reading.chain[0].length = asked - 4
    memcpy(reading.chain[0].wire, PyBytes_AS_STRING(question), asked - 4)
    answer_end = _read(&reading, an, ns, ar)
    if answer_end < 0:
        return None
    ttls = []
    for i in range(reading.count):
        lifetime = min(lifetime, reading.ttls[i])
        ttls.append((reading.ttl_at[i] - begin, reading.ttls[i]))
    if not (reading.soa or (reading.address_count and not reading.rcode)):
        lifetime = min(lifetime, <uint32_t>UNPROVEN_TTL)
    return made(answer, (
        reading.rcode, (an, ns, 0), _body(&reading, begin), tuple(ttls), (p[2] & 4) << 8 | p[3] & 0x20, lifetime, False, False,
        _leads(&reading, lead), (), answer_end - begin, None, False,
    ))  # fmt: skip
