"""Queries in and replies out: take a batch, offer each query to the fast path, hand back the rest.

Over UDP a batch is so many packets of a socket. Over TCP it is a turn for some connections: see `stream`.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from embargo import accelerator
from embargo.daemon.resolve.attempts import Attempts
from embargo.daemon.resolve.stream import IN_FLIGHT, MAX_QUERY, Connection, Streams
from embargo.dns import fastpath
from embargo.dns.cache import Cache
from embargo.dns.judgement import Attempt, Rules

BATCH = 64  # packets per wake-up, so that a flood on one socket does not starve the others
STREAMS = 32  # connections that the kernel lists in one turn
TURNS = 4  # of them taken of one group of clients
READ = 4096  # octets read from one of them
REPLIES = 64 << 10  # octets of replies to one of them
_IP_PKTINFO, _IP_MTU_DISCOVER, _PMTUDISC_OMIT = 8, 10, 5
_IPV6_MTU_DISCOVER = 23

_native = accelerator.load("intake")


class Packet(NamedTuple):
    """A query over UDP for the engine, and the way back to its client."""

    data: bytes
    client: str
    peer: "UdpPeer"


class UdpPeer(NamedTuple):
    """A UDP client, as replies see it."""

    listener: "Listener"
    sender: Any

    def send(self, wire: bytes) -> None:
        """Send a reply to the client, from the address that it queried."""
        self.listener.send(wire, self.sender)


class Listener:
    """One UDP socket. A sender is a tuple that begins with the client's address and that `sendto` sends back to.

    Bound to a wildcard address, it asks the kernel which address each query was sent to, and answers from there.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.receive: Any = sock.recvfrom
        self.sendto: Any = sock.sendto
        self.unsent = 0
        self.fileno = sock.fileno()
        six = sock.family == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        # a forged "fragmentation needed" must not make us send fragments (RFC 9715)
        sock.setsockopt(level, _IPV6_MTU_DISCOVER if six else _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
        self.wildcard = sock.getsockname()[0] in ("0.0.0.0", "::")
        if self.wildcard:
            sock.setsockopt(level, socket.IPV6_RECVPKTINFO if six else _IP_PKTINFO, 1)
            self.receive, self.sendto = self._receive, self._sendto

    def send(self, wire: bytes, sender: Any) -> None:
        """Send a reply, from the address that the client queried. One that cannot be sent is counted in `unsent`."""
        try:
            self.sendto(wire, sender)
        except OSError:  # the client has gone or the buffer is full: the client asks again, as after any lost datagram
            self.unsent += 1

    def _receive(self, size: int) -> tuple[bytes, tuple[str, Any, list[tuple[int, int, bytes]]]]:
        data, ancillary, _, address = self.sock.recvmsg(size, 64)
        return data, (address[0], address, [_answer_from(*item) for item in ancillary])

    def _sendto(self, wire: bytes, sender: tuple[str, Any, list[tuple[int, int, bytes]]]) -> None:
        _, address, ancillary = sender
        self.sock.sendmsg([wire], ancillary, 0, address)


def _answer_from(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The control message that makes the reply leave from the address the query was sent to (ip(7), ipv6(7))."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        _, local, _ = struct.unpack("I4s4s", data)
        return level, kind, struct.pack("I4s4s", 0, local, bytes(4))
    return level, kind, data


class Drained(NamedTuple):
    """What was taken: the packets that the fast path declined, how many came, how many queries came over TCP, and the
    connections that `Streams.settle` has to look at."""

    declined: list[Packet]
    packets: int
    streamed: int = 0
    stirred: Sequence[Connection] = ()


class Intake:
    """Takes queries by one judgement until it is given the next. Its compiled twin is `native.intake.Intake`."""

    def __init__(self, cache: Cache, attempts: Attempts) -> None:
        self._cache = cache
        self._attempts = attempts
        self._shortcut: fastpath.Shortcut
        self._listeners: dict[int, Listener] = {}
        self._streams: Streams | None = None
        self._round = 0
        self._poll: tuple[int, select.epoll] | None = None

    def watch(self, listener: Listener) -> None:
        """Wait for queries at this socket too."""
        self._listeners[listener.fileno] = listener

    def watch_streams(self, streams: Streams) -> None:
        """Take queries of these connections too."""
        self._streams = streams

    def wait(self, epoll: int, timeout: float | None, taken: Callable[[Drained], None]) -> bool:
        """Wait at this epoll descriptor for at most so many seconds, and take what comes at the watched sockets.

        True when something else is ready; False when the time is over or `taken` was called.
        """
        if self._poll is None or self._poll[0] != epoll:
            self._poll = epoll, select.epoll.fromfd(os.dup(epoll))  # it closes what it is given
        others = False
        for number, _ in self._poll[1].poll(timeout):
            listener = self._listeners.get(number)
            if listener is not None:
                taken(self.drain(listener, time.monotonic(), time.time()))
            elif self._streams is not None and number == self._streams.epoll.fileno():
                taken(self.take_streams(time.monotonic(), time.time()))
            else:
                others = True
        return others

    def adopt(self, rules: Rules) -> None:
        """Judge by these rules from the next packet on. The attempts have adopted them already."""
        self._shortcut = fastpath.Shortcut(rules, self._cache)

    def drain(self, listener: Listener, now: float, wall: float) -> Drained:
        """Take one batch and note what was blocked."""
        blocked: list[tuple[str, Attempt]] = []
        declined: list[Packet] = []
        receive, sendto, answer = listener.receive, listener.sendto, self._shortcut.answer
        taken = 0
        while taken < BATCH:
            try:
                data, sender = receive(MAX_QUERY)
            except OSError:  # nothing more, or an ICMP error that an earlier reply met; the socket is fine
                break
            taken += 1
            client = sender[0]
            known = answer(data, client, now)
            if known is None:
                declined.append(Packet(data, client, UdpPeer(listener, sender)))
                continue
            if known.attempt is not None:
                blocked.append((client, known.attempt))
            try:
                sendto(known.reply(data[:2]), sender)
            except OSError:
                listener.unsent += 1
        if blocked:
            self._attempts.note(blocked, now, wall)
        return Drained(declined, taken)

    def take_streams(self, now: float, wall: float) -> Drained:
        """A turn for connections that have sent something, of each group of clients so many."""
        stirred: list[Connection] = []
        if self._streams is None:
            return Drained([], 0)
        taken = 0
        self._round += 1
        for number, events in self._streams.epoll.poll(0, STREAMS):
            connection = self._streams.connections.get(number)
            if connection is None or connection.waiting:
                continue
            group = connection.group
            if group.round != self._round:
                group.round, group.left = self._round, TURNS
            if group.left:
                group.left -= 1
                connection.lost = connection.lost or bool(events & (select.EPOLLERR | select.EPOLLHUP))
                taken += self.converse(connection, now, wall, stirred)
        return Drained([], 0, taken, stirred)

    def converse(self, connection: Connection, now: float, wall: float, stirred: list[Connection]) -> int:
        """A turn for one connection: read unless there is a whole query, and answer queries until one is declined.

        Returns how many it answered. Adds the connection to `stirred` if more is to be done about it than to wait for octets.
        """
        if connection.lost or connection.unsent:
            stirred.append(connection)
            return 0
        if not connection.complete:
            self._read(connection)
        replies = bytearray()
        blocked: list[tuple[str, Attempt]] = []
        taken = self._answer_stream(connection, now, replies, blocked)
        if blocked:
            self._attempts.note(blocked, now, wall)
        if replies:
            connection.since = now
            connection.write(bytes(replies))
        if connection.complete or connection.unsent or connection.ended or connection.lost:
            stirred.append(connection)
        return taken

    def _read(self, connection: Connection) -> None:
        """Read once, and skip the rest of a message that is too long."""
        if connection.ended:
            return
        try:
            octets = connection.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:  # a reset
            connection.lost = True
            return
        connection.ended = not octets
        connection.unread += octets[connection.skip :]
        connection.skip = max(connection.skip - len(octets), 0)

    def _answer_stream(self, connection: Connection, now: float, replies: bytearray, blocked: list[tuple[str, Attempt]]) -> int:
        """Answer the queries that a connection has sent as a whole, until one is declined; how many."""
        answer, taken = self._shortcut.answer, 0
        while connection.complete and len(replies) < REPLIES and connection.in_flight < IN_FLIGHT:
            length = int.from_bytes(connection.unread[:2])
            query = connection.unread[2 : 2 + length]
            known = answer(query, connection.client, now, udp=False) if length <= MAX_QUERY else None
            if known is None:
                break
            taken += 1
            connection.unread = connection.unread[2 + length :]
            if known.attempt is not None:
                blocked.append((connection.client, known.attempt))
            replies += (2 + len(known.rest)).to_bytes(2) + known.reply(query[:2])
        return taken


def make(cache: Cache, attempts: Attempts) -> Intake:
    """The compiled one where it is there."""
    return _native.Intake(cache, attempts, Packet, UdpPeer, Drained) if _native else Intake(cache, attempts)
