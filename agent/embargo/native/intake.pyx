# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `intake.Intake`: a batch of datagrams from `recvmmsg` to `sendmmsg` in one call.

What the fast path declines is handed back. Everything is allocated once: a packet costs at most one Python object.
"""

import math

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from embargo.native.events cimport Kind
from embargo.native.fastpath cimport Known, Shortcut
from embargo.native.octets cimport made, put
from embargo.native.sockets cimport *

from embargo import events

cdef enum:
    BATCH = 64  # packets a call
    GATHER_FROM = 4  # packets at once: more are coming, and are waited for, which saves a wake-up for each few of them
    GATHER = 20_000  # nanoseconds; the kernel adds some 50 000 of its own
    MAX_QUERY = 4096  # octets; no query needs more
    MAX_REPLY = 1280  # octets; the largest has 1232
    CONTROL = 64
    MAX_LINES = 1 << 16  # octets of event lines gathered before they are handed over
    CLIENTS = 4096  # whose text and permission are remembered; a power of two
    ASKED = 256  # as in `attempts`
    KINDS = 256  # clients whose kinds a reply remembers: `attempts.CLIENTS`
    FOLDED_BY = 9  # octets of an attempt's kind behind its qname: see `judgement.Attempt`


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


@cython.final
cdef class _Noting:
    """Attempts that are counted and written down until they are handed over: the twin of `attempts.Attempts.note`."""

    cdef object _attempts, _head_of
    cdef bytes _head, _opening, _closing
    cdef double _wall  # the time in `_head`: all attempts of a batch have one
    cdef uint64_t[::1] _tally, _page
    cdef dict _kinds  # of the folder, by client and kind
    cdef dict _asked  # names of first attempts
    cdef bint _names  # whether the qname is a part of a kind
    cdef Py_ssize_t _most_kinds
    cdef long _noted, _records
    cdef uint8_t *_lines
    cdef Py_ssize_t written

    def __cinit__(self, attempts, Py_ssize_t classes):
        self._attempts, self._names = attempts, attempts.names
        self._tally, self._page = attempts.tally, attempts.page
        if self._tally.shape[0] < classes:
            raise ValueError("the tally is another judgement's")
        self._kinds, self._asked, self._most_kinds = attempts.folder.kinds, attempts.asked, events.MAX_KINDS
        self._head_of, self._closing = events.head, events.CLOSING.encode()
        self._head, self._wall = self._head_of(0.0).encode(), 0.0
        self._opening = events.opening("dns").encode() + b'"'
        self._lines = <uint8_t *>calloc(1, MAX_LINES)
        if not self._lines:
            raise MemoryError

    def __dealloc__(self):
        free(self._lines)

    cdef int hand_over(self) except -1:
        """Tell the worker's attempts what was noted since the last time."""
        if not self._noted:
            return 0
        lines = PyBytes_FromStringAndSize(<const char *>self._lines, self.written)
        noted, records = self._noted, self._records
        self._noted = self._records = self.written = 0
        self._attempts.logged(lines, records, noted)
        return 0

    cdef int note(self, Known known, str client, double now, double wall) except -1:
        """Count an attempt; the first of its kind is a line."""
        cdef PyObject *found
        cdef Kind kind
        self._noted += 1
        self._page[0] += 1  # a page of the supervisor's, which it reads if this process is killed
        self._tally[known.class_] += 1
        if known.kinds is not None:
            found = PyDict_GetItem(known.kinds, client)
            if found != NULL and (<Kind>found).open:
                (<Kind>found).again(wall)
                return 0
        kind = self._counted(known, client.encode(), now, wall)
        if kind is not None:
            if known.kinds is None or len(known.kinds) >= KINDS:
                known.kinds = {}
            known.kinds[client] = kind
        return 0

    cdef Kind _counted(self, Known known, bytes client, double now, double wall):
        """The kind that an attempt was counted in; None for a first one when too many kinds are held."""
        cdef Py_ssize_t named = PyBytes_GET_SIZE(known.kind) - FOLDED_BY
        cdef Kind kind
        key = client + b"\0" + (known.kind if self._names else known.kind[named:])
        kind = self._kinds.get(key)
        if kind is not None:
            kind.again(wall)
            return kind
        if len(self._asked) < ASKED:
            self._asked[known.kind[:named]] = None
        if wall != self._wall:
            self._head, self._wall = self._head_of(wall).encode(), wall
        members = self._write(known, client)
        if len(self._kinds) < self._most_kinds:
            kind = self._kinds[key] = Kind(members, now)
        return kind

    cdef str _write(self, Known known, bytes client):
        """Add the line of a first attempt; its members."""
        cdef bytes head = self._head
        cdef Py_ssize_t length = len(head) + len(self._opening) + len(client) + 1 + len(known.members) + len(self._closing)
        cdef uint8_t *begin
        cdef uint8_t *end
        if length > MAX_LINES:
            raise OverflowError("an event is longer than all that is gathered")
        if self.written + length > MAX_LINES:
            self.hand_over()
        begin = put(self._lines + self.written, PyBytes_AS_STRING(head), len(head))
        end = put(begin, PyBytes_AS_STRING(self._opening), len(self._opening))
        end = put(end, PyBytes_AS_STRING(client), len(client))
        end[0] = c'"'
        end = put(end + 1, PyBytes_AS_STRING(known.members), len(known.members))
        self.written = put(end, PyBytes_AS_STRING(self._closing), len(self._closing)) - self._lines
        self._records += 1
        return (<char *>begin)[: end - begin].decode("ascii")


cdef class Intake:
    """The twin of `intake.Intake`. `packet`, `peer`: the types `intake.Packet` and `intake.UdpPeer`."""

    cdef type _packet, _peer
    cdef object _cache, _attempts
    cdef dict _listeners
    cdef Shortcut _shortcut
    cdef _Clients _clients
    cdef _Noting _noting
    cdef uint8_t *_in
    cdef uint8_t *_out
    cdef uint8_t *_control
    cdef mmsghdr *_received
    cdef mmsghdr *_sent
    cdef iovec *_in_parts
    cdef iovec *_out_parts
    cdef sockaddr_storage *_peers
    cdef int _used  # places that the kernel has written over

    def __cinit__(self, cache, attempts, type packet, type peer):
        cdef int i
        self._cache, self._attempts, self._packet, self._peer, self._listeners = cache, attempts, packet, peer, {}
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
            and self._in_parts and self._out_parts and self._peers
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

    def watch(self, listener):
        self._listeners[listener.fileno] = listener

    def adopt(self, rules):
        """Judge by these rules from the next packet on. What raises leaves the old judgement whole."""
        cdef Shortcut shortcut = Shortcut(rules, self._cache, self._attempts.names)
        cdef _Noting noting = _Noting(self._attempts, shortcut.classes)
        cdef _Clients clients = _Clients(rules.acl)
        if self._noting is not None:
            self._tell()
        self._shortcut, self._noting, self._clients = shortcut, noting, clients

    def drain(self, listener, double now, double wall):
        """The twin of `intake.Intake.drain`."""
        cdef list declined = []
        cdef int count = self._batch(listener, now, wall, declined)
        self._tell()
        return declined, count

    def wait(self, int epoll, timeout, taken):
        """The twin of `intake.Intake.wait`, which comes back as soon as Python is needed and not before."""
        cdef epoll_event ready[64]
        cdef double now, deadline = -1.0
        cdef int i, count, batch, pause = -1
        cdef long total = 0
        cdef timespec gather
        cdef bint others = False
        cdef list declined = []
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
                if listener is None:
                    others = True
                else:
                    batch += self._batch(listener, now, clock(CLOCK_REALTIME), declined)
            total += batch
            if GATHER_FROM <= batch < BATCH and not declined and not others:
                with nogil:
                    nanosleep(&gather, NULL)
            if count <= 0 or others or declined or self._noting.written:
                break
            if deadline >= 0:
                if now >= deadline:
                    break
                pause = <int>((deadline - now) * 1000) + 1
        if total:
            self._tell()
            taken((declined, total))
        return others

    cdef int _tell(self) except -1:
        """Tell what was noted since the last time, and hand over the lines."""
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
                known = self._shortcut.known(self._in + i * MAX_QUERY, self._received[i].msg_len, now)
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
        self._out_parts[place].iov_len = 2 + known.write(out + 2, now)
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
