# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `intake.Intake`: a batch of datagrams from `recvmmsg` to `sendmmsg` in one call, and turns of TCP connections.

What the fast path declines is handed back. Everything is allocated once: a packet costs at most one Python object.
"""

import math

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

from embargo.native.attempts cimport Noting
from embargo.native.fastpath cimport Known, Shortcut
from embargo.native.octets cimport made, read16, write16
from embargo.native.sockets cimport *

cdef enum:
    BATCH = 64  # packets a call
    GATHER_FROM = 4  # packets at once: more are coming, and are waited for, which saves a wake-up for each few of them
    GATHER = 20_000  # nanoseconds; the kernel adds some 50 000 of its own
    MAX_QUERY = 4096  # octets; no query needs more
    MAX_REPLY = 1280  # octets; the largest has 1232
    CONTROL = 64
    CLIENTS = 4096  # whose text and permission are remembered; a power of two
    STREAMS = 32  # these as in `intake`
    TURNS = 4
    READ = 4096
    REPLIES = 1 << 16
    IN_FLIGHT = 100  # as in `stream`
    UNREAD = 2 + 2 * MAX_QUERY  # octets that a connection may hold: less than a whole query, and what is read then


cdef struct Client:
    uint8_t address[16]
    uint32_t scope
    uint16_t family  # 0: no client
    bint allowed
    PyObject *text


@cython.final
cdef class _Clients:
    """Clients of one judgement by address: their text, and whether they are answered."""

    cdef object _acl
    cdef Client *_clients

    def __cinit__(self, acl):
        self._acl = acl
        self._clients = <Client *>calloc(CLIENTS, sizeof(Client))
        if not self._clients:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self._clients:
            for i in range(CLIENTS):
                if self._clients[i].family:
                    Py_DECREF(<object>self._clients[i].text)
        free(self._clients)

    cdef Client *find(self, sockaddr_storage *peer) except NULL:
        """The client that sent from this address. It stays until the next call."""
        cdef Client key
        cdef Client *client
        cdef uint64_t hash_
        cdef uint64_t words[2]
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
        if client.family != key.family or client.scope != key.scope or memcmp(client.address, key.address, 16) != 0:
            self._replace(client, &key)
        return client

    cdef int _replace(self, Client *client, Client *key) except -1:
        """Remember another client in this place."""
        cdef char text[80]
        if inet_ntop(key.family, key.address, text, sizeof(text)) == NULL:  # no scope: an interface may have any name
            raise OSError(errno, "inet_ntop")
        shown = (<bytes>text).decode()
        key.allowed = self._acl.allows(shown)
        Py_INCREF(shown)
        key.text = <PyObject *>shown
        if client.family:
            Py_DECREF(<object>client.text)
        client[0] = key[0]
        return 0


cdef class Intake:
    """The twin of `intake.Intake`. `packet`, `peer`, `drained`: the types `intake.Packet`, `intake.UdpPeer`, `intake.Drained`."""

    cdef type _packet, _peer, _drained
    cdef object _cache, _attempts
    cdef dict _listeners
    cdef Shortcut _shortcut
    cdef _Clients _clients
    cdef Noting _noting
    cdef uint8_t *_in
    cdef uint8_t *_out
    cdef uint8_t *_control
    cdef mmsghdr *_received
    cdef mmsghdr *_sent
    cdef iovec *_in_parts
    cdef iovec *_out_parts
    cdef sockaddr_storage *_peers
    cdef int _used  # places that the kernel has written over
    cdef object _acl
    cdef int _streams  # the epoll descriptor of all connections; -1: there is none
    cdef dict _connections
    cdef long _round
    cdef uint8_t *_octets  # what a connection has sent
    cdef uint8_t *_replies  # to a connection

    def __cinit__(self, cache, attempts, type packet, type peer, type drained):
        cdef int i
        self._cache, self._attempts, self._listeners = cache, attempts, {}
        self._packet, self._peer, self._drained = packet, peer, drained
        self._streams, self._connections, self._round = -1, {}, 0
        self._octets = <uint8_t *>calloc(UNREAD, 1)
        self._replies = <uint8_t *>calloc(REPLIES + 4 + MAX_REPLY, 1)
        self._in = <uint8_t *>calloc(BATCH, MAX_QUERY)
        self._out = <uint8_t *>calloc(BATCH, MAX_REPLY)
        self._control = <uint8_t *>calloc(BATCH, CONTROL)
        self._received = <mmsghdr *>calloc(BATCH, sizeof(mmsghdr))
        self._sent = <mmsghdr *>calloc(BATCH, sizeof(mmsghdr))
        self._in_parts = <iovec *>calloc(BATCH, sizeof(iovec))
        self._out_parts = <iovec *>calloc(BATCH, sizeof(iovec))
        self._peers = <sockaddr_storage *>calloc(BATCH, sizeof(sockaddr_storage))
        if not (
            self._in and self._out and self._control and self._received and self._sent
            and self._in_parts and self._out_parts and self._peers and self._octets and self._replies
        ):
            raise MemoryError
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
        free(self._in)
        free(self._out)
        free(self._control)
        free(self._received)
        free(self._sent)
        free(self._in_parts)
        free(self._out_parts)
        free(self._peers)
        free(self._octets)
        free(self._replies)

    def watch(self, listener):
        self._listeners[listener.fileno] = listener

    def watch_streams(self, streams):
        self._streams, self._connections = streams.epoll.fileno(), streams.connections

    def adopt(self, rules):
        """Judge by these rules from the next packet on. What raises leaves the old judgement whole."""
        cdef Shortcut shortcut = Shortcut(rules, self._cache, self._attempts.names)
        cdef Noting noting = Noting(self._attempts, shortcut.classes)
        cdef _Clients clients = _Clients(rules.acl)
        if self._noting is not None:
            self._tell()
        self._shortcut, self._noting, self._clients, self._acl = shortcut, noting, clients, rules.acl

    def drain(self, listener, double now, double wall):
        """The twin of `intake.Intake.drain`."""
        cdef list declined = []
        cdef int count = self._batch(listener, now, wall, declined)
        self._tell()
        return made(self._drained, (declined, count, 0, ()))

    def take_streams(self, double now, double wall):
        """The twin of `intake.Intake.take_streams`."""
        cdef list stirred = []
        cdef long taken = self._take_streams(now, wall, stirred)
        self._tell()
        return made(self._drained, ([], 0, taken, stirred))

    def converse(self, connection, double now, double wall, list stirred):
        """The twin of `intake.Intake.converse`."""
        cdef int taken = self._converse(connection, now, wall, stirred)
        self._tell()
        return taken

    def wait(self, int epoll, timeout, taken):
        """The twin of `intake.Intake.wait`, which comes back as soon as Python is needed and not before."""
        cdef epoll_event ready[64]
        cdef double now, deadline = -1.0
        cdef int i, count, batch, pause = -1
        cdef long total = 0, streamed = 0
        cdef timespec gather
        cdef bint others = False
        cdef list declined = [], stirred = []
        if self._shortcut is None:
            raise RuntimeError("adopt comes first")
        gather.tv_sec, gather.tv_nsec = 0, GATHER
        if timeout is not None:
            deadline = clock(CLOCK_MONOTONIC) + max(timeout, 0.0)
            pause = math.ceil(max(timeout, 0.0) * 1000)
        while True:
            with nogil:
                count = epoll_wait(epoll, ready, 64, pause)
            if count < 0 and errno != EINTR:
                raise OSError(errno, "epoll_wait")
            now = clock(CLOCK_MONOTONIC)
            batch = 0
            for i in range(count):
                listener = self._listeners.get(ready[i].data.fd)
                if listener is not None:
                    batch += self._batch(listener, now, clock(CLOCK_REALTIME), declined)
                elif ready[i].data.fd == self._streams:
                    streamed += self._take_streams(now, clock(CLOCK_REALTIME), stirred)
                else:
                    others = True
            total += batch
            if GATHER_FROM <= batch < BATCH and not declined and not others:
                with nogil:
                    nanosleep(&gather, NULL)
            if count <= 0 or others or declined or stirred or self._noting.recorded:
                break
            if deadline >= 0:
                if now >= deadline:
                    break
                pause = <int>((deadline - now) * 1000) + 1
        if total or streamed or stirred:
            self._tell()
            taken(made(self._drained, (declined, total, streamed, stirred)))
        return others

    cdef int _tell(self) except -1:
        """Tell what was noted since the last time."""
        self._noting.hand_over()
        self._cache.hits += self._shortcut.hits
        self._shortcut.hits = 0
        return 0

    cdef int _batch(self, listener, double now, double wall, list declined) except -1:
        """Take one batch and answer what the fast path answers; the packets taken."""
        cdef int fd = listener.fileno
        cdef bint wildcard = listener.wildcard
        cdef int i, replies = 0
        cdef Client *client
        cdef Known known
        if self._shortcut is None:
            raise RuntimeError("adopt comes first")
        for i in range(self._used):  # here, as a batch may have failed before its end
            self._ready(i)
        # an ICMP error that an earlier reply met is an error; the socket is fine
        self._used = max(recvmmsg(fd, self._received, BATCH, MSG_DONTWAIT, NULL), 0)
        for i in range(self._used):
            client = self._clients.find(&self._peers[i])
            known = None
            if client.allowed:
                known = self._shortcut.known(self._in + i * MAX_QUERY, self._received[i].msg_len, now, True)
            if known is None:
                declined.append(self._packet_of(i, listener, <str>client.text, wildcard))
                continue
            if known.kind is not None:
                self._noting.note(known, <str>client.text, now, wall)
            self._reply(i, replies, known, now, wildcard)
            replies += 1
        if replies:
            self._send(fd, replies, listener)
        return self._used

    cdef object _packet_of(self, int i, listener, str client, bint wildcard):
        """A packet for the engine."""
        sender = sender_of(&self._peers[i], client, &self._received[i].msg_hdr, wildcard)
        data = PyBytes_FromStringAndSize(<const char *>self._in + i * MAX_QUERY, self._received[i].msg_len)
        return made(self._packet, (data, client, made(self._peer, (listener, sender))))

    cdef void _reply(self, int i, int place, Known known, double now, bint wildcard) noexcept:  # nothing to raise
        """Write the reply to a packet at a place of the batch that is to be sent."""
        cdef uint8_t *out = self._out + place * MAX_REPLY
        cdef msghdr *header = &self._sent[place].msg_hdr
        memcpy(out, self._in + i * MAX_QUERY, 2)
        self._out_parts[place].iov_len = 2 + known.write(out + 2, read16(out), now)
        header[0] = self._received[i].msg_hdr
        header.msg_flags = 0
        header.msg_iov = &self._out_parts[place]
        if wildcard:
            answer_from(header)
        else:
            header.msg_control, header.msg_controllen = NULL, 0

    cdef int _send(self, int fd, int replies, listener) except -1:
        cdef int sent, done = 0
        while done < replies:
            sent = sendmmsg(fd, self._sent + done, replies - done, MSG_DONTWAIT)
            if sent < 0:
                if errno == EINTR:
                    continue
                listener.unsent += 1  # the client is gone, the buffer is full: UDP may lose it, the client asks again
                sent = 1
            done += sent
        return 0

    # ── over TCP ─────────────────────────────────────────────────────────────────────────────────────────────────────

    cdef long _take_streams(self, double now, double wall, list stirred) except -1:
        """A turn for connections that have sent something; the queries answered."""
        cdef epoll_event ready[STREAMS]
        cdef int i
        cdef long taken = 0
        self._round += 1
        for i in range(epoll_wait(self._streams, ready, STREAMS, 0)):
            connection = self._connections.get(ready[i].data.fd)
            if connection is None or connection.waiting:
                continue
            group = connection.group
            if group.round != self._round:
                group.round, group.left = self._round, TURNS
            if group.left:
                group.left -= 1
                if ready[i].events & (EPOLLERR | EPOLLHUP):
                    connection.lost = True
                taken += self._converse(connection, now, wall, stirred)
        return taken

    cdef int _converse(self, connection, double now, double wall, list stirred) except -1:
        """A turn for one connection; the queries answered."""
        cdef Py_ssize_t have, at
        cdef int taken
        if self._shortcut is None:
            raise RuntimeError("adopt comes first")
        if connection.lost or connection.unsent:
            stirred.append(connection)
            return 0
        have = self._read(connection)
        at = self._answer_stream(connection, have, now, wall, &taken)
        connection.unread = PyBytes_FromStringAndSize(<const char *>self._octets + at, have - at)
        if connection.ended or connection.lost or connection.unsent or _whole(self._octets + at, have - at):
            stirred.append(connection)
        return taken

    cdef Py_ssize_t _read(self, connection) except -1:
        """Read once, unless there is a whole query. What is not answered yet is in `_octets` then; its length."""
        cdef bytes unread = connection.unread
        cdef Py_ssize_t have = PyBytes_GET_SIZE(unread), got, skip
        if have > UNREAD:
            raise OverflowError("a connection holds more than it may")
        memcpy(self._octets, PyBytes_AS_STRING(unread), have)
        if connection.ended or have > UNREAD - READ or _whole(self._octets, have):
            return have
        got = recv(connection.fileno, self._octets + have, READ, MSG_DONTWAIT)
        if got < 0:
            connection.lost = errno != EAGAIN and errno != EINTR  # a reset
            return have
        if not got:
            connection.ended = True
        skip = min(<Py_ssize_t>connection.skip, got)
        if skip:
            connection.skip -= skip
            memmove(self._octets + have, self._octets + have + skip, got - skip)
        return have + got - skip

    cdef Py_ssize_t _answer_stream(self, connection, Py_ssize_t have, double now, double wall, int *taken) except -1:
        """Answer the queries in `_octets` until one is declined; where that begins."""
        cdef Py_ssize_t at = 0, used = 0, size
        cdef uint8_t *out
        cdef int length
        cdef Known known
        cdef str client = connection.client
        taken[0] = 0
        if connection.in_flight < IN_FLIGHT and self._acl.allows(client):
            while used < REPLIES and _whole(self._octets + at, have - at):
                length = read16(self._octets + at)
                known = self._shortcut.known(self._octets + at + 2, length, now, False) if length <= MAX_QUERY else None
                if known is None:
                    break
                if known.kind is not None:
                    self._noting.note(known, client, now, wall)
                out = self._replies + used
                size = known.write(out + 4, read16(self._octets + at + 2), now)
                write16(out, <uint32_t>(2 + size))
                memcpy(out + 2, self._octets + at + 2, 2)
                used += 4 + size
                at += 2 + length
                taken[0] += 1
        if used:
            connection.since = now
            self._send_stream(connection, used)
        return at

    cdef int _send_stream(self, connection, Py_ssize_t size) except -1:
        """Send what stands in `_replies`; what the kernel has no room for stays with the connection."""
        cdef Py_ssize_t sent = send(connection.fileno, self._replies, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            connection.lost = errno != EAGAIN and errno != EINTR
            sent = 0
        if sent < size:
            connection.unsent = PyBytes_FromStringAndSize(<const char *>self._replies + sent, size - sent)
        return 0


cdef inline bint _whole(const uint8_t *octets, Py_ssize_t have) noexcept nogil:
    """Whether a message over TCP is there as far as it is read: see `stream.Connection.complete`."""
    return have >= 2 and have - 2 >= min(<Py_ssize_t>read16(octets), <Py_ssize_t>MAX_QUERY)
