# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The compiled twins of `image.find`, `events.Kind`, `fastpath.answer` and `intake.Intake`.

A batch of datagrams goes from `recvmmsg` to `sendmmsg` in one call. What the fast path declines is handed back. Nothing of
`embargo` is imported when this module is: the modules that ask for it would be half there.
"""

import math
import socket

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

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <netdb.h>
    #include <netinet/in.h>
    #include <sys/socket.h>
    """
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
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
    struct timespec
    int AF_INET, AF_INET6, MSG_DONTWAIT, IPPROTO_IP, IP_PKTINFO, NI_NUMERICHOST
    int recvmmsg(int, mmsghdr *, unsigned int, int, timespec *) nogil
    int sendmmsg(int, mmsghdr *, unsigned int, int) nogil
    int getnameinfo(const sockaddr *, socklen_t, char *, socklen_t, char *, socklen_t, int)
    cmsghdr *CMSG_FIRSTHDR(msghdr *)
    cmsghdr *CMSG_NXTHDR(msghdr *, cmsghdr *)
    unsigned char *CMSG_DATA(cmsghdr *)
    uint16_t ntohs(uint16_t)
    uint32_t ntohl(uint32_t)

embargo_crc_init()

cdef enum:
    BATCH = 64  # packets a call
    MAX_QUERY = 4096  # octets; no query needs more
    MAX_REPLY = 1280  # octets; the largest has 1232
    CONTROL = 64
    CLIENTS = 4096  # whose text and permission are remembered; a power of two
    MEMO_HALF = 8192


# ── image.find ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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

    def find(self, bytes name):
        """The twin of `image.find`."""
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


# ── fastpath.answer ──────────────────────────────────────────────────────────────────────────────────────────────────────


cdef class Known:
    """The twin of `fastpath.Known`."""

    cdef readonly bytes rest
    cdef readonly double until
    cdef readonly object attempt, entry
    cdef dict kinds
    cdef Py_ssize_t class_

    def __init__(self, bytes rest, double until, attempt, entry):
        self.rest, self.until, self.attempt, self.entry = rest, until, attempt, entry
        if attempt is not None:
            self.kinds, self.class_ = attempt.kinds, attempt.decision.class_


cdef struct Client:
    uint8_t address[16]
    uint32_t scope
    uint16_t family  # 0: nobody
    bint allowed
    PyObject *text


cdef uint8_t _LOWER[256]
cdef int _octet
for _octet in range(256):
    _LOWER[_octet] = _octet + 32 if 65 <= _octet <= 90 else _octet


cdef class Answering:
    """One judgement and the replies that it remembers. The twin of `fastpath.Rules.memo` and `fastpath.answer`."""

    cdef object rules, cache, board, image, _fastpath
    cdef dict young, old
    cdef long judged
    cdef object special, meta, pack, opts
    cdef long long hits

    def __init__(self, rules, cache):
        from embargo import fastpath, message

        self.rules, self.cache, self.board, self.image = rules, cache, rules.board, rules.image
        self.judged, self.young, self.old, self.hits = rules.judged, {}, {}, 0
        self._fastpath = fastpath
        self.special, self.meta = fastpath.SPECIAL, message.META_QTYPES
        self.opts = fastpath.OPTS

    def answer(self, bytes packet, str client, double now):
        """The twin of `fastpath.answer`, but for the rules and the cache."""
        if not self.rules.acl.allows(client):
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
        found = PyDict_GetItem(self.young, key)
        if found == NULL:
            found = PyDict_GetItem(self.old, key)
            if found != NULL:
                self.young[key] = <object>found
        if found != NULL:
            known = <Known>found
            if now < known.until:
                if known.attempt is None:
                    known.entry.used = True
                    self.cache.hits += 1
                return known
        known = self._first(packet, size, now, key)
        return known

    cdef Known _first(self, const uint8_t *packet, Py_ssize_t size, double now, bytes key):
        """The reply to a packet that is not remembered."""
        cdef Py_ssize_t at = 12, end, left, limit = 512
        cdef const uint8_t *opt
        cdef int variant = 0, length
        cdef int rd = packet[2] & 1, cd = packet[3] & 0x10
        cdef uint8_t qname[256]
        cdef Py_ssize_t i
        cdef Known known
        # response, opcode, AA and TC in the first flags octet, RA, Z and rcode in the second: all zero in a plain query
        if packet[2] & 0xFE or packet[3] & 0xCF:
            return None
        while True:
            length = packet[at]
            if length > 63:
                return None
            if not length:
                break
            at += length + 1
            if at >= size:
                return None
        end = at + 5
        if at > 266 or end > size or packet[at + 3] or packet[at + 4] != 1:
            return None
        if memcmp(packet + 4, b"\0\1\0\0\0\0\0\0", 8) == 0:
            if end != size:
                return None
        elif memcmp(packet + 4, b"\0\1\0\0\0\0\0\1", 8) == 0:
            # one OPT: root owner, type 41, size, extended rcode 0, version 0, flags, whole options
            opt = packet + end
            if size - end < 11 or opt[0] or opt[1] or opt[2] != 41 or opt[5] or opt[6]:
                return None
            left = opt[9] << 8 | opt[10]
            if left + 11 != size - end:
                return None
            i = 11
            while left >= 4:
                length = 4 + (opt[i + 2] << 8 | opt[i + 3])
                i += length
                left -= length
            if left:
                return None
            limit = min(max(opt[3] << 8 | opt[4], 512), 1232)
            variant = 6 if opt[7] & 0x80 else 3
        else:
            return None
        for i in range(12, at + 1):
            qname[i - 12] = _LOWER[packet[i]]
        question = PyBytes_FromStringAndSize(<const char *>packet + 12, end - 12)
        name = PyBytes_FromStringAndSize(<const char *>qname, at - 11)
        known = self._cached(name, question, variant, limit, rd, cd, now)
        if known is None:
            known = self._blocked(name, question, variant, limit, rd, cd)
        if known is not None and (not variant or size == end + 11):  # options may differ every time (RFC 7873)
            if len(self.young) >= MEMO_HALF:
                self.old, self.young = self.young, {}
            self.young[key] = known
        return known

    cdef Known _cached(self, bytes name, bytes question, int variant, Py_ssize_t limit, int rd, int cd, double now):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(question)
        cdef uint8_t head[10]
        cdef int an, ns, ar, flags
        key = name + question[size - 4 : size - 2] + (b"\0\1\2\3"[((variant == 6) << 1) + (cd != 0) :][:1])
        entry = self.cache.get(key, now)
        if entry is None or entry.judged != self.judged:
            return None
        stored = entry.answer
        tail = entry.body(now)
        an, ns, ar = stored.counts
        if variant:
            tail += self.opts[variant]
            ar += 1
        if 12 + size + len(tail) > limit:
            return None
        flags = 0x8080 | rd << 8 | stored.flags | cd | stored.rcode
        head[0], head[1], head[2], head[3] = flags >> 8, flags & 0xFF, 0, 1
        head[4], head[5], head[6], head[7], head[8], head[9] = an >> 8, an & 255, ns >> 8, ns & 255, ar >> 8, ar & 255
        self.cache.hits += 1
        return Known(PyBytes_FromStringAndSize(<const char *>head, 10) + question + tail, entry.steady(now), None, entry)

    cdef Known _blocked(self, bytes name, bytes question, int variant, Py_ssize_t limit, int rd, int cd):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(question)
        claims = self.image.lookup(name)
        if not claims or name.endswith(self.special):
            return None
        action, decision = self.board.choose(claims)
        if action != 2 or decision is None:
            return None
        qtype = <uint8_t>question[size - 4] << 8 | <uint8_t>question[size - 3]
        if qtype in self.meta or not qtype:
            return None
        rules = self.rules
        octet, plain, edns, tail = rules.pieces(decision, qtype)
        if variant:
            plain = edns
            ede = rules.ede(decision)
            tail += self.opts[variant][:9] + len(ede).to_bytes(2, "big") + ede
        if 12 + size + len(tail) > limit:
            return None
        rest = bytes((0x80 | rd, octet | cd)) + plain + question + tail
        attempt = self._fastpath.Attempt(rules, name, qtype, decision, rules.action_name(decision))
        return Known(rest, math.inf, attempt, None)


# ── intake.Intake ────────────────────────────────────────────────────────────────────────────────────────────────────────


cdef class Intake:
    """The twin of `intake.Intake`."""

    cdef object _packet, _way, _cache, _rules
    cdef Answering _answering
    cdef uint64_t[::1] _tally
    cdef Client *_clients
    cdef uint8_t *_in
    cdef uint8_t *_out
    cdef uint8_t *_control
    cdef mmsghdr *_received
    cdef mmsghdr *_sent
    cdef iovec *_in_parts
    cdef iovec *_out_parts
    cdef sockaddr_storage *_peers

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
        if not (
            self._clients and self._in and self._out and self._control and self._received and self._sent
            and self._in_parts and self._out_parts and self._peers
        ):
            raise MemoryError

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

    def __init__(self, cache):
        from embargo.daemon import intake

        self._cache, self._packet, self._way = cache, intake.Packet, intake.Way

    def adopt(self, rules, tally):
        """Judge by these rules, and count in this array of uint64, by class."""
        self._rules, self._answering, self._tally = rules, Answering(rules, self._cache), tally
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
        size = sizeof(sockaddr_in) if key.family == AF_INET else sizeof(sockaddr_in6)
        if getnameinfo(<sockaddr *>peer, size, text, sizeof(text), NULL, 0, NI_NUMERICHOST):
            raise OSError("an address has no text")
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
        cdef int fd = listener.fileno
        cdef bint wildcard = listener.wildcard
        cdef int count, i, sent, done = 0, out = 0
        cdef long folded = 0
        cdef Client *client
        cdef Known known
        cdef PyObject *found
        cdef Kind kind
        cdef mmsghdr *message
        cdef mmsghdr *reply
        cdef Py_ssize_t size, length
        cdef uint8_t *wire
        cdef list fresh = [], declined = []
        for i in range(BATCH):
            message = &self._received[i]
            self._in_parts[i].iov_base = self._in + i * MAX_QUERY
            self._in_parts[i].iov_len = MAX_QUERY
            message.msg_hdr.msg_name = &self._peers[i]
            message.msg_hdr.msg_namelen = sizeof(sockaddr_storage)
            message.msg_hdr.msg_iov = &self._in_parts[i]
            message.msg_hdr.msg_iovlen = 1
            message.msg_hdr.msg_control = self._control + i * CONTROL if wildcard else NULL
            message.msg_hdr.msg_controllen = CONTROL if wildcard else 0
        count = recvmmsg(fd, self._received, BATCH, MSG_DONTWAIT, NULL)
        for i in range(count if count > 0 else 0):  # an ICMP error that an earlier reply met is an error; the socket is fine
            message = &self._received[i]
            size = message.msg_len
            wire = self._in + i * MAX_QUERY
            client = self._client(&self._peers[i])
            known = self._answering.known(wire, size, now) if client.allowed else None
            if known is None:
                if not client.allowed:
                    client = self._client(&self._peers[i])
                sender = self._sender(&self._peers[i], <object>client.text, &message.msg_hdr, wildcard)
                data = PyBytes_FromStringAndSize(<const char *>wire, size)
                declined.append(self._packet(data, sender[0], self._way(listener, sender)))
                continue
            if known.attempt is not None:
                found = PyDict_GetItem(known.kinds, <object>client.text)
                if found != NULL and (<Kind>found).open:
                    (<Kind>found).again(wall)
                    self._tally[known.class_] += 1
                    folded += 1
                else:
                    fresh.append((<object>client.text, known.attempt))
            length = PyBytes_GET_SIZE(known.rest)
            reply = &self._sent[out]
            self._out_parts[out].iov_base = self._out + out * MAX_REPLY
            self._out_parts[out].iov_len = length + 2
            memcpy(self._out + out * MAX_REPLY, wire, 2)
            memcpy(self._out + out * MAX_REPLY + 2, PyBytes_AS_STRING(known.rest), length)
            reply.msg_hdr = message.msg_hdr
            reply.msg_hdr.msg_flags = 0
            reply.msg_hdr.msg_iov = &self._out_parts[out]
            if wildcard:
                _answer_from(&reply.msg_hdr)
            out += 1
        while done < out:
            sent = sendmmsg(fd, self._sent + done, out - done, MSG_DONTWAIT)
            if sent < 0:
                if errno == EINTR:
                    continue
                listener.unsent += 1  # the client is gone, the buffer is full: UDP may lose it, the client asks again
                sent = 1
            done += sent
        return fresh, declined, count if count > 0 else 0, folded

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


cdef void _answer_from(msghdr *header) noexcept:
    """Make the control message that tells where a query was sent to the one that says where the reply leaves from."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(header)
    cdef in_pktinfo *info
    while control != NULL:
        if control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            info = <in_pktinfo *>CMSG_DATA(control)
            info.ipi_ifindex = 0
            info.ipi_addr = 0
        control = CMSG_NXTHDR(header, control)
