# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The compiled twins of `image.Finder`, `events.Kind`, `message.parse_query`, `response.parse`, `fastpath.Shortcut` and
`intake.Intake`.

A batch of datagrams goes from `recvmmsg` to `sendmmsg` in one call. What the fast path declines is handed back. Nothing of
`embargo` is imported when this module is: the modules that ask for it would be half there.
"""

import math

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

cdef extern from "native.h":
    void embargo_crc_init() nogil
    uint32_t embargo_crc(const unsigned char *data, size_t length) nogil

cdef extern from "<sys/epoll.h>":
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int, epoll_event *, int, int) nogil

cdef extern from "<time.h>":
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC, CLOCK_REALTIME
    int clock_gettime(int, timespec *) nogil
    int nanosleep(const timespec *, timespec *) nogil

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <sys/socket.h>
    """
    ctypedef unsigned int socklen_t
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        uint32_t sin_addr "sin_addr.s_addr"
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        uint8_t sin6_addr "sin6_addr.s6_addr"[16]
        uint32_t sin6_scope_id
    struct sockaddr_storage:
        unsigned short ss_family
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct in_pktinfo:
        int ipi_ifindex
        uint32_t ipi_spec_dst "ipi_spec_dst.s_addr"
        uint32_t ipi_addr "ipi_addr.s_addr"
    int AF_INET, AF_INET6, MSG_DONTWAIT, IPPROTO_IP, IP_PKTINFO
    int recvmmsg(int, mmsghdr *, unsigned int, int, timespec *) nogil
    int sendmmsg(int, mmsghdr *, unsigned int, int) nogil
    const char *inet_ntop(int, const void *, char *, socklen_t)
    cmsghdr *CMSG_FIRSTHDR(msghdr *)
    cmsghdr *CMSG_NXTHDR(msghdr *, cmsghdr *)
    unsigned char *CMSG_DATA(cmsghdr *)
    uint16_t ntohs(uint16_t)
    uint32_t ntohl(uint32_t)

embargo_crc_init()

cdef enum:
    BATCH = 64  # packets a call
    GATHER_FROM = 4  # packets at once: more are coming, and are waited for, which saves a wake-up for each few of them
    GATHER = 20_000  # nanoseconds; the kernel adds some 50 000 of its own
    MAX_QUERY = 4096  # octets; no query needs more
    MAX_REPLY = 1280  # octets; the largest has 1232
    CONTROL = 64
    MAX_LINES = 1 << 16  # octets of event lines gathered before they are handed over
    CLIENTS = 4096  # whose text and permission are remembered; a power of two
    MEMO_HALF = 8192
    ASKED = 256  # see `attempts.ASKED`


cdef uint8_t _LOWER[256]
cdef int _octet
for _octet in range(256):
    _LOWER[_octet] = _octet + 32 if 65 <= _octet <= 90 else _octet


# ── image.Finder ─────────────────────────────────────────────────────────────────────────────────────────────────────────


cdef class Finder:
    """The names of an image. It keeps the views; whatever they hold, it reads nothing outside them."""

    cdef const uint32_t[::1] _slots
    cdef const uint8_t[::1] _blob
    cdef uint64_t _homes
    cdef Py_ssize_t _count
    cdef uint64_t _octets

    def __init__(self, const uint32_t[::1] slots, const uint8_t[::1] blob, uint64_t homes):
        self._slots, self._blob, self._homes = slots, blob, homes
        self._count = slots.shape[0] // 4
        self._octets = blob.shape[0]

    cdef Py_ssize_t search(self, const uint8_t *name, Py_ssize_t size) noexcept nogil:
        """256 times the slot of the first listed suffix, plus where in the name it begins; -1 without one."""
        cdef Py_ssize_t start = 0, slot, left
        cdef uint32_t hash_, begin
        while True:
            left = size - start
            hash_ = embargo_crc(name + start, left)
            slot = <Py_ssize_t>(<uint64_t>hash_ * self._homes >> 32)
            while slot < self._count:
                begin = self._slots[4 * slot + 1]
                if not begin or self._slots[4 * slot] > hash_:
                    break
                if self._slots[4 * slot] == hash_ and <uint64_t>begin - 1 + left <= self._octets:
                    if memcmp(&self._blob[begin - 1], name + start, left) == 0:
                        return slot << 8 | start
                slot += 1
            if not name[start]:
                return -1
            start += 1 + name[start]
            if start >= size:
                return -1

    def unclaimed(self, bytes qname, leads, address):
        """The twin of `image.Finder.unclaimed`."""
        cdef bytes owner, target
        if self.find(qname) >= 0:
            return False
        for owner, targets, packed in leads:
            if owner != qname and self.find(owner) >= 0:
                return False
            for target in targets:
                if self.find(target) >= 0:
                    return False
            for each in packed:
                if address(each):
                    return False
        return True

    cpdef Py_ssize_t find(self, bytes name) except -2:
        """The twin of `image.Finder.find`."""
        if PyBytes_GET_SIZE(name) > 255:
            raise ValueError("a name has at most 255 octets")
        return self.search(<const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


# ── events.Kind ────────────────────────────────────────────────────────────────────────────────────────────────────────


cdef class Kind:
    """The twin of `events.Kind`."""

    cdef public str members
    cdef public double opened, first, last
    cdef public long long count
    cdef public bint open

    def __init__(self, str members, double opened):
        self.members, self.opened, self.open = members, opened, True
        self.count, self.first, self.last = 0, 0.0, 0.0

    cpdef void again(self, double wall):
        if not self.count:
            self.first = wall
        self.count += 1
        self.last = wall


# ── message.parse_query, response.parse ──────────────────────────────────────────────────────────────────────────────────


cdef type _Query = None, _Answer = None, _Lead = None


cdef _types():
    """The tuples that messages are taken apart into. Not when this module is imported: see above."""
    global _Query, _Answer, _Lead
    from embargo.dns.message import Answer, Lead, Query

    _Query, _Answer, _Lead = Query, Answer, Lead


cdef inline object _made(type kind, tuple values):
    """A named tuple, without its own constructor."""
    return tuple.__new__(kind, values)


cdef Py_ssize_t _question_end(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    """Where the one question of a query ends, which is of class IN and has a name that is spelt out; 0 for another one."""
    cdef Py_ssize_t at = 12
    if size < 17:
        return 0
    while p[at]:
        if p[at] > 63:
            return 0
        at += p[at] + 1
        if at >= size:
            return 0
    return at + 5 if at <= 266 and at + 5 <= size and not p[at + 3] and p[at + 4] == 1 else 0


cdef bint _whole_opt(const uint8_t *opt, Py_ssize_t size) noexcept nogil:
    """Are these octets one OPT record: root owner, type 41, version 0, whole options?"""
    cdef Py_ssize_t left, at = 11
    cdef int length
    if size < 11 or opt[0] or opt[1] or opt[2] != 41 or opt[6]:
        return False
    left = opt[9] << 8 | opt[10]
    if left + 11 != size:
        return False
    while left >= 4:
        length = 4 + (opt[at + 2] << 8 | opt[at + 3])
        at += length
        left -= length
    return not left


cdef inline int _payload(const uint8_t *opt) noexcept nogil:
    """Octets of UDP payload that the client takes, within our bounds."""
    return min(max(opt[3] << 8 | opt[4], 512), 1232)


def query(bytes packet):
    """The twin of `message.parse_query` for a plain query; None for a packet that Python has to look at."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packet), end = _question_end(p, size), i
    cdef int payload = 512
    cdef bint edns, do = False
    cdef uint32_t qtype
    cdef uint8_t qname[256]
    if not end or p[2] & 0xFA or memcmp(p + 4, b"\0\1\0\0\0\0\0", 7) or p[11] > 1:
        return None
    qtype = p[end - 4] << 8 | p[end - 3]
    if qtype == 0 or qtype == 41 or 249 <= qtype <= 254:
        return None
    edns = p[11] == 1
    if edns:
        if not _whole_opt(p + end, size - end):
            return None
        payload, do = _payload(p + end), p[end + 7] >> 7
    elif end != size:
        return None
    for i in range(12, end - 4):
        qname[i - 12] = _LOWER[p[i]]
    if _Query is None:
        _types()
    return _made(_Query, (
        p[0] << 8 | p[1], (p[2] & 1) << 8 | p[3] & 0x30, PyBytes_FromStringAndSize(<const char *>p + 12, end - 12),
        PyBytes_FromStringAndSize(<const char *>qname, end - 16), qtype, bool(edns), bool(do), payload,
    ))  # fmt: skip


cdef Py_ssize_t _read_name(const uint8_t *p, Py_ssize_t size, Py_ssize_t offset, uint8_t *wire, int *length) noexcept nogil:
    """`names.read`: the offset behind the name, -1 when it is not one; its octets in lower case in `wire`."""
    cdef Py_ssize_t i = offset, limit = offset, end = 0, target
    cdef int out = 0, step, j
    while True:
        if i >= size:
            return -1
        step = p[i]
        if step < 64:
            if not step:
                break
            if i + 1 + step >= size or out + 1 + step >= 255:
                return -1
            wire[out] = step
            for j in range(1, step + 1):
                wire[out + j] = _LOWER[p[i + j]]
            out += 1 + step
            i += 1 + step
        elif step >= 192:
            if i + 1 >= size:
                return -1
            target = (step & 63) << 8 | p[i + 1]
            if target >= limit:
                return -1
            if not end:
                end = i + 2
            limit = i = target
        else:
            return -1
    wire[out] = 0
    length[0] = out + 1
    return end if end else i + 1


cdef bint _ends(const uint8_t *name, int size, const uint8_t *above, int length) noexcept nogil:
    """Is `above` the name itself or a name above it?"""
    cdef int at = 0
    while size - at > length:
        at += 1 + name[at]
    return size - at == length and memcmp(name + at, above, length) == 0


cdef enum:
    CHAIN = 16  # names behind each other, as in `response`
    RECORDS = 48
    MAX_TTL = 3600


def read(bytes packet, bytes question):
    """The twin of `response.parse` for the usual response; None for one that Python has to look at.

    Usual: CNAMEs in their order, then the addresses asked for; or one SOA in place of an answer; and nothing else but an OPT.
    """
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packet), asked = PyBytes_GET_SIZE(question), at, begin, owner_end, start, end
    cdef uint8_t chain[CHAIN + 1][256]
    cdef int lengths[CHAIN + 1]
    cdef uint8_t owner[256]
    cdef uint8_t name[256]
    cdef int an, ns, ar, rcode, i, j, length = 0, ignored = 0, steps = 0, count = 0, width
    cdef uint32_t qtype, rtype, ttl, least = MAX_TTL, minimum
    cdef Py_ssize_t at_ttl[RECORDS]
    cdef uint32_t ttls[RECORDS]
    cdef bint soa = False, above
    cdef list addresses = []
    cdef list leads = []
    cdef bytes body
    cdef uint8_t *out
    if size < 12 + asked or asked < 5 or asked > 259 or p[4] or p[5] != 1 or p[2] & 2 or p[6] or p[8] or p[10]:
        return None
    rcode, an, ns, ar = p[3] & 15, p[7], p[9], p[11]
    if (rcode != 0 and rcode != 3) or an + ns > RECORDS or ns > 1 or ar > 1:
        return None
    qtype = <uint8_t>question[asked - 4] << 8 | <uint8_t>question[asked - 3]
    if qtype == 1:
        width = 4
    elif qtype == 28:
        width = 16
    else:
        return None
    if _Answer is None:
        _types()
    lengths[0] = asked - 4
    memcpy(chain[0], PyBytes_AS_STRING(question), lengths[0])
    at = begin = 12 + asked
    end = begin
    for i in range(an + ns):
        owner_end = _read_name(p, size, at, owner, &length)
        if owner_end < 0 or owner_end + 10 > size or p[owner_end + 2] or p[owner_end + 3] != 1:
            return None
        rtype = p[owner_end] << 8 | p[owner_end + 1]
        ttl = (
            <uint32_t>p[owner_end + 4] << 24 | <uint32_t>p[owner_end + 5] << 16 | <uint32_t>p[owner_end + 6] << 8
            | p[owner_end + 7]
        )  # fmt: skip
        ttl = 0 if ttl & 0x80000000 else min(ttl, <uint32_t>MAX_TTL)
        start = owner_end + 10
        end = start + (p[owner_end + 8] << 8 | p[owner_end + 9])
        if end > size:
            return None
        if i < an:
            if length != lengths[steps] or memcmp(owner, chain[steps], length):
                return None
            if rtype == qtype and end - start == width:
                addresses.append(PyBytes_FromStringAndSize(<const char *>p + start, width))
            elif rtype == 5 and not addresses and steps < CHAIN - 1:
                if _read_name(p, size, start, chain[steps + 1], &lengths[steps + 1]) != end:
                    return None
                for j in range(steps + 1):
                    if lengths[j] == lengths[steps + 1] and memcmp(chain[j], chain[steps + 1], lengths[j]) == 0:
                        return None
                leads.append(_made(_Lead, (
                    PyBytes_FromStringAndSize(<const char *>chain[steps], lengths[steps]),
                    (PyBytes_FromStringAndSize(<const char *>chain[steps + 1], lengths[steps + 1]),), (),
                )))  # fmt: skip
                steps += 1
            else:
                return None
        else:
            above = length == 1
            for j in range(steps + 1):
                above = above or _ends(chain[j], lengths[j], owner, length)
            if rtype != 6 or not above:
                return None
            start = _read_name(p, size, start, name, &ignored)
            if start < 0 or _read_name(p, size, start, name, &ignored) != end - 20:
                return None
            soa = True
            minimum = (
                <uint32_t>p[end - 4] << 24 | <uint32_t>p[end - 3] << 16 | <uint32_t>p[end - 2] << 8 | p[end - 1]
            )  # fmt: skip
            if (rcode or not addresses) and minimum < ttl:
                ttl = minimum
        at_ttl[count], ttls[count] = owner_end + 4 - begin, ttl
        count += 1
        least = min(least, ttl)
        at = end
        if i == an - 1:
            answer_end = end - begin
    if ar:
        if size - at < 11 or p[at] or p[at + 1] or p[at + 2] != 41 or p[at + 5]:
            return None
        if at + 11 + (p[at + 9] << 8 | p[at + 10]) != size:
            return None
    elif at != size:
        return None
    body = PyBytes_FromStringAndSize(<const char *>p + begin, at - begin)
    out = <uint8_t *>PyBytes_AS_STRING(body)
    for i in range(count):
        ttl = ttls[i]
        start = at_ttl[i]
        out[start], out[start + 1], out[start + 2], out[start + 3] = ttl >> 24, ttl >> 16 & 255, ttl >> 8 & 255, ttl & 255
    if addresses:
        leads.append(_made(_Lead, (
            PyBytes_FromStringAndSize(<const char *>chain[steps], lengths[steps]), (), tuple(addresses),
        )))  # fmt: skip
    return _made(_Answer, (
        rcode, (an, ns, 0), body, tuple([(at_ttl[i], ttls[i]) for i in range(count)]), (p[2] & 4) << 8 | p[3] & 0x20,
        least if count and (soa or (addresses and not rcode)) else 0, False, False, tuple(leads), (),
        answer_end if an else 0,
    ))  # fmt: skip


# ── fastpath.Shortcut ─────────────────────────────────────────────────────────────────────────────────────────────────────


cdef struct Ttl:
    uint16_t at  # in `rest`
    uint32_t seconds


cdef class Known:
    """The twin of `fastpath.Known`. TTLs are aged as the reply is written, so a cached answer is known until it expires."""

    cdef readonly double until
    cdef readonly object entry
    cdef readonly bytes kind  # of a blocked packet: what its attempt is folded by, and the members of its event
    cdef bytes rest, members
    cdef readonly Py_ssize_t class_
    cdef dict kinds
    cdef double stored
    cdef int count
    cdef Ttl *ttls

    def __dealloc__(self):
        free(self.ttls)

    cdef Py_ssize_t write(self, uint8_t *out, double now) noexcept:  # it copies octets and counts: nothing to raise
        """The reply behind its ID; the octets written."""
        cdef Py_ssize_t length = PyBytes_GET_SIZE(self.rest)
        cdef uint32_t age, left
        cdef uint8_t *at
        cdef int i
        memcpy(out, PyBytes_AS_STRING(self.rest), length)
        if self.count:
            age = <uint32_t>(now - self.stored)
            for i in range(self.count):
                left = self.ttls[i].seconds - age if self.ttls[i].seconds > age else 0
                at = out + self.ttls[i].at
                at[0], at[1], at[2], at[3] = left >> 24, left >> 16 & 255, left >> 8 & 255, left & 255
        return length

    def octets(self, double now):
        """The twin of `fastpath.Known.rest`."""
        cdef uint8_t out[MAX_REPLY]
        return PyBytes_FromStringAndSize(<const char *>out, self.write(out, now))


cdef Known _cached_reply(bytes rest, Py_ssize_t before, entry, double until):
    cdef Known known = Known.__new__(Known)
    cdef int i = 0
    known.rest, known.entry, known.until, known.stored = rest, entry, until, entry.stored
    ttls = entry.answer.ttls
    known.ttls = <Ttl *>calloc(len(ttls) + 1, sizeof(Ttl))
    if not known.ttls:
        raise MemoryError
    for offset, seconds in ttls:
        if before + offset + 4 > PyBytes_GET_SIZE(rest):
            raise ValueError("a TTL stands outside its answer")
        known.ttls[i].at, known.ttls[i].seconds = before + offset, seconds
        i += 1
    known.count = i
    return known


cdef struct Client:
    uint8_t address[16]
    uint32_t scope
    uint16_t family  # 0: nobody
    bint allowed
    PyObject *text


cdef struct Piece:  # of a block's reply: see `judgement.Pieces`
    uint8_t octet
    uint8_t counts[2][8]
    uint8_t tail[256]
    Py_ssize_t length


cdef struct Text:
    const char *octets
    Py_ssize_t length


cdef inline uint8_t *_put(uint8_t *out, const char *octets, Py_ssize_t length) noexcept nogil:
    memcpy(out, octets, length)
    return out + length


cdef uint8_t *_number(uint8_t *out, uint32_t value) noexcept nogil:
    cdef uint8_t digits[10]
    cdef int count = 0
    while True:
        digits[count] = 48 + value % 10
        count += 1
        value //= 10
        if not value:
            break
    while count:
        count -= 1
        out[0] = digits[count]
        out += 1
    return out


cdef uint8_t *_name_text(uint8_t *out, const uint8_t *name) noexcept nogil:
    """A name of plain octets in presentation format; NULL for another."""
    cdef int i, length
    if not name[0]:
        return NULL
    while True:
        length = name[0]
        for i in range(1, length + 1):
            if not _PLAIN[name[i]]:
                return NULL
            out[i - 1] = name[i]
        out += length
        name += length + 1
        if not name[0]:
            return out
        out[0] = 46
        out += 1


cdef uint8_t _PLAIN[256]
memset(_PLAIN, 0, 256)
for _octet in bytearray(b"abcdefghijklmnopqrstuvwxyz0123456789-_*/"):
    _PLAIN[_octet] = 1


cdef class Shortcut:
    """The twin of `fastpath.Shortcut`."""

    cdef object _rules, _cache, _fastpath, _attempt, _special, _meta, _opts, _about, _type_name
    cdef Finder _finder
    cdef dict _young, _old, _types
    cdef long _judged
    cdef readonly long hits
    cdef bint _names
    cdef list _kept  # what the pointers below point into
    cdef Text *_explained  # by source: app=… function=… list=…:
    cdef Text *_told  # by source: "app":…,"line":
    cdef uint16_t *_class_of  # by source
    cdef uint8_t *_actions  # by class: 2 blocks
    cdef uint8_t *_canary  # by class
    cdef Py_ssize_t _sources, _classes
    cdef Piece _pieces[4]  # canary, A, AAAA, other types
    cdef Text _action
    cdef Text _generation

    def __cinit__(self):
        self._explained = self._told = NULL
        self._class_of = NULL
        self._actions = self._canary = NULL

    def __dealloc__(self):
        free(self._explained)
        free(self._told)
        free(self._class_of)
        free(self._actions)
        free(self._canary)

    def __init__(self, rules, cache, bint names=True, about=None):
        from embargo.dns import fastpath, judgement, message, special

        self._rules, self._cache, self._finder = rules, cache, rules.image.finder
        self._judged, self._young, self._old, self._types, self.hits = rules.judged, {}, {}, {}, 0
        self._fastpath, self._special, self._meta = fastpath, special.ENDINGS, message.META_QTYPES
        self._attempt = judgement.Attempt
        self._opts, self._type_name, self._names, self._about = fastpath.OPTS, message.type_name, names, about
        self._prepare(rules.parts())

    cdef _prepare(self, parts):
        cdef Py_ssize_t i, count = len(parts.explained)
        self._sources, self._classes, self._kept = count, len(parts.actions), []
        self._explained = <Text *>calloc(count + 1, sizeof(Text))
        self._told = <Text *>calloc(count + 1, sizeof(Text))
        self._class_of = <uint16_t *>calloc(count + 1, sizeof(uint16_t))
        self._actions = <uint8_t *>calloc(self._classes + 1, 1)
        self._canary = <uint8_t *>calloc(self._classes + 1, 1)
        if not (self._explained and self._told and self._class_of and self._actions and self._canary):
            raise MemoryError
        for i in range(count):
            self._explained[i] = self._keep(parts.explained[i].encode())
            self._told[i] = self._keep(parts.told[i].encode())
            self._class_of[i] = parts.classes[i]
        for i in range(self._classes):
            self._actions[i], self._canary[i] = parts.actions[i], i in parts.canary
        self._action = self._keep(parts.action.encode())
        self._generation = self._keep(str(parts.generation).encode())
        for i in range(4):
            octet, plain, edns, tail = parts.pieces[i]
            self._pieces[i].octet = octet
            memcpy(self._pieces[i].counts[0], PyBytes_AS_STRING(plain), 8)
            memcpy(self._pieces[i].counts[1], PyBytes_AS_STRING(edns), 8)
            # one that is too long for a reply is Python's to decline
            self._pieces[i].length = len(tail) if len(tail) <= 256 else -1
            if len(tail) <= 256:
                memcpy(self._pieces[i].tail, PyBytes_AS_STRING(tail), len(tail))

    cdef Text _keep(self, bytes octets):
        cdef Text text
        self._kept.append(octets)
        text.octets, text.length = PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets)
        return text

    def answer(self, bytes packet, str client, double now):
        """The twin of `fastpath.Shortcut.answer`."""
        if not self._rules.acl.allows(client):
            return None
        return self.known(<const uint8_t *>PyBytes_AS_STRING(packet), PyBytes_GET_SIZE(packet), now)

    cdef Known known(self, const uint8_t *packet, Py_ssize_t size, double now):
        """For a client that is allowed."""
        cdef bytes key
        cdef PyObject *found
        cdef Known known
        if size < 17:
            return None
        key = PyBytes_FromStringAndSize(<const char *>packet + 2, size - 2)
        found = PyDict_GetItem(self._young, key)
        if found == NULL:
            found = PyDict_GetItem(self._old, key)
            if found != NULL:
                self._young[key] = <object>found
        if found != NULL:
            known = <Known>found
            if known.kind is not None:
                return known
            if now < known.until:
                known.entry.used = True
                self.hits += 1
                return known
        return self._first(packet, size, now, key)

    cdef Known _first(self, const uint8_t *packet, Py_ssize_t size, double now, bytes key):
        """The reply to a packet that is not remembered."""
        cdef Py_ssize_t end = _question_end(packet, size), limit = 512, i
        cdef int variant = 0
        cdef int rd = packet[2] & 1, cd = packet[3] & 0x10
        cdef uint8_t qname[256]
        cdef Known known
        # response, opcode, AA and TC in the first flags octet, RA, Z and rcode in the second: all zero in a plain query
        if not end or packet[2] & 0xFE or packet[3] & 0xCF:
            return None
        if memcmp(packet + 4, b"\0\1\0\0\0\0\0\0", 8) == 0:
            if end != size:
                return None
        elif memcmp(packet + 4, b"\0\1\0\0\0\0\0\1", 8) == 0:
            if not _whole_opt(packet + end, size - end) or packet[end + 5]:  # nor an extended rcode
                return None
            limit = _payload(packet + end)
            variant = 6 if packet[end + 7] & 0x80 else 3
        else:
            return None
        for i in range(12, end - 4):
            qname[i - 12] = _LOWER[packet[i]]
        known = self._cached(packet, qname, end - 16, end, variant, limit, rd, cd, now)
        if known is None:
            known = self._blocked(packet, qname, end - 16, end, variant, limit, rd, cd)
        if known is not None and (not variant or size == end + 11):  # options may differ every time (RFC 7873)
            if len(self._young) >= MEMO_HALF:
                self._old, self._young = self._young, {}
            self._young[key] = known
        return known

    cdef Known _cached(
        self, const uint8_t *packet, const uint8_t *qname, Py_ssize_t size, Py_ssize_t end, int variant, Py_ssize_t limit,
        int rd, int cd, double now,
    ):  # fmt: skip
        cdef uint8_t key[260]
        cdef uint8_t head[10]
        cdef int an, ns, ar, flags
        memcpy(key, qname, size)
        key[size], key[size + 1], key[size + 2] = packet[end - 4], packet[end - 3], (variant == 6) << 1 | (cd != 0)
        entry = self._cache.get(PyBytes_FromStringAndSize(<const char *>key, size + 3), now)
        if entry is None:
            return None
        if entry.judged != self._judged:
            name = PyBytes_FromStringAndSize(<const char *>qname, size)
            if not self._fastpath.passes(entry, name, self._rules):
                return None
        stored = entry.answer
        an, ns, ar = stored.counts
        tail = stored.body
        if variant:
            tail += self._opts[variant]
            ar += 1
        if end + len(tail) > limit:
            return None
        flags = stored.flags
        if variant != 6 and not packet[3] & 0x20:  # AD is for who asked for it, by that bit or by DO
            flags &= ~0x20
        flags |= 0x8080 | rd << 8 | cd | stored.rcode
        head[0], head[1], head[2], head[3] = flags >> 8, flags & 0xFF, 0, 1
        head[4], head[5], head[6], head[7], head[8], head[9] = an >> 8, an & 255, ns >> 8, ns & 255, ar >> 8, ar & 255
        self.hits += 1
        question = PyBytes_FromStringAndSize(<const char *>packet + 12, end - 12)
        rest = PyBytes_FromStringAndSize(<const char *>head, 10) + question + tail
        return _cached_reply(rest, end - 2, entry, entry.known_until(now))

    cdef Known _blocked(
        self, const uint8_t *packet, const uint8_t *qname, Py_ssize_t size, Py_ssize_t end, int variant, Py_ssize_t limit,
        int rd, int cd,
    ):  # fmt: skip
        cdef Py_ssize_t found = self._finder.search(qname, size)
        cdef Py_ssize_t start
        cdef const uint32_t *slot
        cdef uint32_t source, kind, class_
        cdef uint32_t qtype = packet[end - 4] << 8 | packet[end - 3]
        cdef Known known
        if found < 0:
            return None
        start = found & 255
        slot = &self._finder._slots[4 * (found >> 8)]
        source, kind = slot[3] & 0xFFFF, slot[3] >> 16
        if kind == 2 and start:  # an exact name's child
            return None
        name = PyBytes_FromStringAndSize(<const char *>qname, size)
        if name.endswith(self._special) or qtype in self._meta or not qtype:
            return None
        if (kind == 1 or kind == 2) and source < self._sources:
            class_ = self._class_of[source]
            if class_ >= self._classes or self._actions[class_] != 2:
                return None
            known = self._plain(packet, qname, size, end, variant, limit, rd, cd, start, slot, source, class_, qtype)
            if known is not None:
                return known
        return self._elaborate(packet, name, end, variant, limit, rd, cd, qtype)

    cdef Known _plain(
        self, const uint8_t *packet, const uint8_t *qname, Py_ssize_t size, Py_ssize_t end, int variant, Py_ssize_t limit,
        int rd, int cd, Py_ssize_t start, const uint32_t *slot, uint32_t source, uint32_t class_, uint32_t qtype,
    ):  # fmt: skip
        """The block of a name that one line claims, without a Python object; None when there is something unusual."""
        cdef uint8_t rule[260]
        cdef uint8_t asked[260]
        cdef uint8_t rest[MAX_REPLY]
        cdef uint8_t text[2048]
        cdef uint8_t *out
        cdef uint8_t *mark
        cdef Py_ssize_t ruled, named, explained
        cdef Piece *piece
        cdef Text type_, action
        cdef Known known
        cdef bint canary = self._canary[class_]
        piece = &self._pieces[0 if canary else 1 if qtype == 1 else 2 if qtype == 28 else 3]
        rule[0] = 61
        out = rule + (slot[3] >> 16 == 2)
        out = _name_text(out, qname + start)
        if out == NULL or piece.length < 0:
            return None
        ruled = out - rule
        out = _name_text(asked, qname)
        if out == NULL:
            return None
        named = out - asked
        explained = self._explained[source].length + 10 + 6 + ruled
        if explained > 390 or self._told[source].length > 600 or end + piece.length + 11 + 6 + explained > limit:
            return None
        # the reply
        rest[0], rest[1] = 0x80 | rd, piece.octet | cd
        memcpy(rest + 2, piece.counts[variant != 0], 8)
        out = _put(rest + 10, <const char *>packet + 12, end - 12)
        out = _put(out, <const char *>piece.tail, piece.length)
        if variant:
            out = _put(out, b"\0\0\x29\x04\xd0\0\0\x80\0" if variant == 6 else b"\0\0\x29\x04\xd0\0\0\0\0", 9)
            mark = out
            out = _put(out + 2, b"\0\x0f\0\0\0\x0f", 6)  # option EDE, its length, code 15
            out = _put(out, self._explained[source].octets, self._explained[source].length)
            out = _number(out, slot[2])
            out = _put(out, b" rule=", 6)
            out = _put(out, <const char *>rule, ruled)
            explained = out - mark - 2
            mark[0], mark[1] = explained >> 8, explained & 255
            mark[4], mark[5] = (explained - 4) >> 8, (explained - 4) & 255
        known = Known.__new__(Known)
        known.rest, known.until, known.class_ = PyBytes_FromStringAndSize(<const char *>rest, out - rest), math.inf, class_
        # what an attempt is folded by: see `judgement.Attempt.kind`
        out = _put(text, <const char *>qname, size)
        out[0], out[1], out[2], out[3], out[4] = qtype >> 8, qtype & 255, class_ >> 8, class_ & 255, 0
        out[5], out[6], out[7], out[8] = (
            self._judged >> 24 & 255, self._judged >> 16 & 255, self._judged >> 8 & 255, self._judged & 255,
        )  # fmt: skip
        known.kind = PyBytes_FromStringAndSize(<const char *>text, size + 9)
        # and its event: see `Attempts.about`
        out = text
        if self._names:
            out = _put(out, b'"qname":"', 9)
            out = _put(out, <const char *>asked, named)
            out = _put(out, b'",', 2)
        type_ = self._type(qtype)
        action = self._action
        if canary:
            action.octets, action.length = b"nxdomain", 8
        out = _put(out, b'"qtype":"', 9)
        out = _put(out, type_.octets, type_.length)
        out = _put(out, b'","action":"', 12)
        out = _put(out, action.octets, action.length)
        out = _put(out, b'","mode":"block",', 17)
        out = _put(out, self._told[source].octets, self._told[source].length)
        out = _number(out, slot[2])
        out = _put(out, b',"rule":"', 9)
        out = _put(out, <const char *>rule, ruled)
        out = _put(out, b'","generation":', 15)
        out = _put(out, self._generation.octets, self._generation.length)
        known.members = PyBytes_FromStringAndSize(<const char *>text, out - text)
        return known

    cdef Text _type(self, uint32_t qtype):
        cdef Text text
        mnemonic = self._types.get(qtype)
        if mnemonic is None:
            mnemonic = self._types[qtype] = self._type_name(qtype).encode()
        text.octets, text.length = PyBytes_AS_STRING(mnemonic), PyBytes_GET_SIZE(mnemonic)
        return text

    cdef Known _elaborate(
        self, const uint8_t *packet, bytes name, Py_ssize_t end, int variant, Py_ssize_t limit, int rd, int cd, uint32_t qtype
    ):  # fmt: skip
        """The same, in Python's words."""
        cdef Known known
        rules = self._rules
        action, decision = rules.board.choose(rules.image.lookup(name))
        if action != 2 or decision is None:
            return None
        octet, plain, edns, tail = rules.pieces(decision, qtype)
        if variant:
            plain = edns
            ede = rules.ede(decision)
            tail += self._opts[variant][:9] + len(ede).to_bytes(2, "big") + ede
        if end + len(tail) > limit:
            return None
        known = Known.__new__(Known)
        question = PyBytes_FromStringAndSize(<const char *>packet + 12, end - 12)
        known.rest, known.until = bytes((0x80 | rd, octet | cd)) + plain + question + tail, math.inf
        attempt = self._attempt(rules, name, qtype, decision, rules.action_name(decision))
        known.kind, known.class_ = attempt.kind, decision.class_
        known.members = self._about(attempt).encode() if self._about is not None else b""
        return known


# ── intake.Intake ────────────────────────────────────────────────────────────────────────────────────────────────────────


cdef inline double _clock(int which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef class Intake:
    """The twin of `intake.Intake`."""

    cdef type _packet, _way
    cdef object _cache, _rules, _attempts, _stamp
    cdef dict _listeners
    cdef Shortcut _answering
    cdef uint64_t[::1] _tally, _page
    cdef dict _kinds  # of the folder, by client and kind
    cdef dict _asked  # names of first attempts
    cdef Py_ssize_t _most_kinds
    cdef long _noted, _records
    cdef uint8_t *_lines
    cdef Py_ssize_t _written
    cdef Client *_clients
    cdef uint8_t *_in
    cdef uint8_t *_out
    cdef uint8_t *_control
    cdef mmsghdr *_received
    cdef mmsghdr *_sent
    cdef iovec *_in_parts
    cdef iovec *_out_parts
    cdef sockaddr_storage *_peers
    cdef int _used  # places that the kernel has written over

    def __cinit__(self):
        self._clients = <Client *>calloc(CLIENTS, sizeof(Client))
        self._in = <uint8_t *>calloc(BATCH, MAX_QUERY)
        self._out = <uint8_t *>calloc(BATCH, MAX_REPLY)
        self._control = <uint8_t *>calloc(BATCH, CONTROL)
        self._received = <mmsghdr *>calloc(BATCH, sizeof(mmsghdr))
        self._sent = <mmsghdr *>calloc(BATCH, sizeof(mmsghdr))
        self._in_parts = <iovec *>calloc(BATCH, sizeof(iovec))
        self._out_parts = <iovec *>calloc(BATCH, sizeof(iovec))
        self._peers = <sockaddr_storage *>calloc(BATCH, sizeof(sockaddr_storage))
        self._lines = <uint8_t *>calloc(1, MAX_LINES)
        if not (
            self._clients and self._in and self._out and self._control and self._received and self._sent
            and self._in_parts and self._out_parts and self._peers and self._lines
        ):
            raise MemoryError

        cdef int i
        for i in range(BATCH):
            self._in_parts[i].iov_base, self._in_parts[i].iov_len = self._in + i * MAX_QUERY, MAX_QUERY
            self._received[i].msg_hdr.msg_iov, self._received[i].msg_hdr.msg_iovlen = &self._in_parts[i], 1
            self._received[i].msg_hdr.msg_name = &self._peers[i]
            self._received[i].msg_hdr.msg_control = self._control + i * CONTROL
            self._out_parts[i].iov_base = self._out + i * MAX_REPLY
            self._ready(i)

    cdef inline void _ready(self, int i) noexcept:  # it sets two lengths: nothing to raise
        """What the kernel writes over, for the next packet. All that stays is written once: a lone query touches little."""
        self._received[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
        self._received[i].msg_hdr.msg_controllen = CONTROL

    def __dealloc__(self):
        if self._clients:
            self._forget()
        free(self._clients)
        free(self._in)
        free(self._out)
        free(self._control)
        free(self._received)
        free(self._sent)
        free(self._in_parts)
        free(self._out_parts)
        free(self._peers)
        free(self._lines)

    def __init__(self, cache, attempts):
        from embargo import events
        from embargo.daemon.resolve import intake

        self._cache, self._packet, self._way, self._attempts = cache, intake.Packet, intake.Way, attempts
        self._listeners = {}
        self._kinds, self._most_kinds, self._stamp = attempts.folder.kinds, events.MAX_KINDS, events.timestamp
        self._asked = attempts.asked

    def watch(self, listener):
        self._listeners[listener.fileno] = listener

    def adopt(self, rules):
        self._rules, self._tally, self._page = rules, self._attempts.tally, self._attempts.page
        self._answering = Shortcut(rules, self._cache, self._attempts.names, self._attempts.about)
        self._forget()

    cdef void _forget(self):
        """Forget the clients: they may be answered or not by other rules."""
        cdef Py_ssize_t i
        for i in range(CLIENTS):
            if self._clients[i].family:
                Py_DECREF(<object>self._clients[i].text)
                self._clients[i].family = 0

    cdef Client *_client(self, sockaddr_storage *peer) except NULL:
        cdef Client key
        cdef Client *client
        cdef uint64_t hash_ = 0
        cdef uint64_t words[2]
        cdef char text[80]
        memset(&key, 0, sizeof(key))
        key.family = peer.ss_family
        if key.family == AF_INET:
            memcpy(key.address, &(<sockaddr_in *>peer).sin_addr, 4)
        else:
            memcpy(key.address, (<sockaddr_in6 *>peer).sin6_addr, 16)
            key.scope = (<sockaddr_in6 *>peer).sin6_scope_id
        memcpy(words, key.address, 16)
        hash_ = (words[0] ^ words[1] * <uint64_t>0x9E3779B97F4A7C15 ^ key.scope) * <uint64_t>0xD6E8FEB86659FD93
        client = &self._clients[hash_ >> 40 & CLIENTS - 1]
        if client.family == key.family and client.scope == key.scope and memcmp(client.address, key.address, 16) == 0:
            return client
        if inet_ntop(key.family, key.address, text, sizeof(text)) == NULL:  # no scope: an interface may have any name
            raise OSError(errno, "inet_ntop")
        shown = (<bytes>text).decode()
        key.allowed = self._rules.acl.allows(shown)
        Py_INCREF(shown)
        key.text = <PyObject *>shown
        if client.family:
            Py_DECREF(<object>client.text)
        client[0] = key
        return client

    def drain(self, listener, double now, double wall):
        """The twin of `intake.Intake.drain`."""
        cdef list declined = []
        cdef int count = self._batch(listener, now, wall, declined)
        self._tell()
        return declined, count

    def wait(self, int epoll, timeout, taken):
        """The twin of `intake.Intake.wait`, which comes back as soon as Python is needed and not before."""
        cdef epoll_event events[64]
        cdef double now, deadline = -1.0
        cdef int i, count, pause = -1
        cdef long total = 0
        cdef int taken_
        cdef timespec gather
        cdef bint others = False
        cdef list declined = []
        gather.tv_sec, gather.tv_nsec = 0, GATHER
        if timeout is not None:
            deadline = _clock(CLOCK_MONOTONIC) + max(timeout, 0.0)
            pause = math.ceil(max(timeout, 0.0) * 1000)
        while True:
            with nogil:
                count = epoll_wait(epoll, events, 64, pause)
            if count < 0 and errno != EINTR:
                raise OSError(errno, "epoll_wait")
            now = _clock(CLOCK_MONOTONIC)
            taken_ = 0
            for i in range(count):
                listener = self._listeners.get(events[i].data.fd)
                if listener is None:
                    others = True
                else:
                    taken_ += self._batch(listener, now, _clock(CLOCK_REALTIME), declined)
            total += taken_
            if GATHER_FROM <= taken_ < BATCH and not declined and not others:
                with nogil:
                    nanosleep(&gather, NULL)
            if count <= 0 or others or declined or self._written:
                break
            if deadline >= 0:
                if now >= deadline:
                    break
                pause = <int>((deadline - now) * 1000) + 1
        if total:
            self._tell()
            taken((declined, total))
        return others

    cdef _tell(self):
        """Tell what was noted since the last time, and hand over the lines."""
        if self._noted:
            lines = PyBytes_FromStringAndSize(<const char *>self._lines, self._written)
            noted, records = self._noted, self._records
            self._noted = self._records = self._written = 0
            self._attempts.logged(lines, records, noted)
        self._cache.hits += self._answering.hits
        self._answering.hits = 0

    cdef _note(self, Known known, str client, double now, double wall):
        """Count an attempt; the first of its kind is a line."""
        cdef PyObject *found
        cdef Kind kind
        cdef uint8_t *out
        cdef bytes who
        self._noted += 1
        self._page[0] += 1  # should we be killed now, the supervisor knows of it
        self._tally[known.class_] += 1
        if known.kinds is not None:
            found = PyDict_GetItem(known.kinds, client)
            if found != NULL and (<Kind>found).open:
                (<Kind>found).again(wall)
                return
        who = client.encode()
        key = who + b"\0" + (known.kind if self._answering._names else known.kind[len(known.kind) - 9 :])
        kind = self._kinds.get(key)
        if kind is not None:
            kind.again(wall)
        else:
            if len(self._asked) < ASKED:
                self._asked[known.kind[: len(known.kind) - 9]] = None
            if self._written + 512 + PyBytes_GET_SIZE(known.members) > MAX_LINES:
                lines = PyBytes_FromStringAndSize(<const char *>self._lines, self._written)
                noted, records = self._noted, self._records
                self._noted = self._records = self._written = 0
                self._attempts.logged(lines, records, noted)
            out = self._lines + self._written
            out = _put(out, b'{"schema":1,"ts":"', 18)
            stamp = self._stamp(wall).encode()
            out = _put(out, PyBytes_AS_STRING(stamp), PyBytes_GET_SIZE(stamp))
            out = _put(out, b'",', 2)
            begun = out - self._lines
            out = _put(out, b'"event":"dns","client":"', 24)
            out = _put(out, PyBytes_AS_STRING(who), PyBytes_GET_SIZE(who))
            out = _put(out, b'",', 2)
            out = _put(out, PyBytes_AS_STRING(known.members), PyBytes_GET_SIZE(known.members))
            ended = out - self._lines
            out = _put(out, b',"count":1}\n', 12)
            self._written = out - self._lines
            self._records += 1
            if len(self._kinds) >= self._most_kinds:
                return
            members = PyBytes_FromStringAndSize(<const char *>self._lines + <Py_ssize_t>begun, <Py_ssize_t>ended - <Py_ssize_t>begun)
            kind = Kind(members.decode("ascii"), now)
            self._kinds[key] = kind
        if known.kinds is None or len(known.kinds) >= 256:
            known.kinds = {}
        known.kinds[client] = kind

    cdef int _batch(self, listener, double now, double wall, list declined) except -1:
        """Take one batch and answer what the fast path answers."""
        cdef int fd = listener.fileno
        cdef bint wildcard = listener.wildcard
        cdef int i, sent, done = 0, out = 0
        cdef Client *client
        cdef Known known
        cdef mmsghdr *message
        cdef mmsghdr *reply
        cdef Py_ssize_t size, length
        cdef uint8_t *wire
        for i in range(self._used):  # here, as a batch may have failed before its end
            self._ready(i)
        # an ICMP error that an earlier reply met is an error; the socket is fine
        self._used = max(recvmmsg(fd, self._received, BATCH, MSG_DONTWAIT, NULL), 0)
        for i in range(self._used):
            message = &self._received[i]
            size = message.msg_len
            wire = self._in + i * MAX_QUERY
            client = self._client(&self._peers[i])
            known = self._answering.known(wire, size, now) if client.allowed else None
            if known is None:
                sender = self._sender(&self._peers[i], <object>client.text, &message.msg_hdr, wildcard)
                data = PyBytes_FromStringAndSize(<const char *>wire, size)
                declined.append(_made(self._packet, (data, <str>client.text, _made(self._way, (listener, sender)))))
                continue
            if known.kind is not None:
                self._note(known, <str>client.text, now, wall)
            memcpy(self._out + out * MAX_REPLY, wire, 2)
            length = known.write(self._out + out * MAX_REPLY + 2, now)
            reply = &self._sent[out]
            self._out_parts[out].iov_len = length + 2
            reply.msg_hdr = message.msg_hdr
            reply.msg_hdr.msg_flags = 0
            reply.msg_hdr.msg_iov = &self._out_parts[out]
            if wildcard:
                _answer_from(&reply.msg_hdr)
            else:
                reply.msg_hdr.msg_control, reply.msg_hdr.msg_controllen = NULL, 0
            out += 1
        while done < out:
            sent = sendmmsg(fd, self._sent + done, out - done, MSG_DONTWAIT)
            if sent < 0:
                if errno == EINTR:
                    continue
                listener.unsent += 1  # the client is gone, the buffer is full: UDP may lose it, the client asks again
                sent = 1
            done += sent
        return self._used

    cdef tuple _sender(self, sockaddr_storage *peer, str text, msghdr *header, bint wildcard):
        """Whom Python sends to: see `intake.Listener`."""
        cdef sockaddr_in6 *six = <sockaddr_in6 *>peer
        cdef cmsghdr *control
        if peer.ss_family == AF_INET:
            address = (text, ntohs((<sockaddr_in *>peer).sin_port))
        else:
            address = (text, ntohs(six.sin6_port), ntohl(six.sin6_flowinfo), six.sin6_scope_id)
        if not wildcard:
            return address
        ancillary = []
        _answer_from(header)
        control = CMSG_FIRSTHDR(header)
        while control != NULL:
            data = PyBytes_FromStringAndSize(
                <const char *>CMSG_DATA(control), control.cmsg_len - (CMSG_DATA(control) - <unsigned char *>control)
            )
            ancillary.append((control.cmsg_level, control.cmsg_type, data))
            control = CMSG_NXTHDR(header, control)
        return text, address, ancillary


cdef void _answer_from(msghdr *header) noexcept:  # it writes into one message: nothing to raise
    """Make the control message that tells where a query was sent to the one that says where the reply leaves from."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(header)
    cdef in_pktinfo *info
    while control != NULL:
        if control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            info = <in_pktinfo *>CMSG_DATA(control)
            info.ipi_ifindex = 0
            info.ipi_addr = 0
        control = CMSG_NXTHDR(header, control)
