"""DNS over TCP to clients (RFC 7766): many queries on a connection, replies in the order they are ready, everything bounded.

All connections stand in one epoll set, which the event loop watches as a single descriptor. In each turn of the loop the
intake takes a few of those that have sent something (`intake.Intake.take_streams`): at most TURNS of one group of clients,
and of each at most READ octets. The kernel lists ready connections in rotation, so each has its turn. What the fast path does
not answer stays in the connection (`unread`) until the engine has a turn for its client.

A connection is not read while replies to it are unread, while IN_FLIGHT of its queries are not answered, or while one of them
waits for the engine. When there is no room for another connection, the one that has been idle for longest is closed
(RFC 7766 section 6.2.3), one of the client with the most connections.
"""

import asyncio
import errno
import select
import socket
from collections.abc import Callable, Iterable

from embargo.dns import shares

QUERY_SECONDS = 10.0  # within which the next query must be complete (RFC 7766 section 6.2.3: idle for "a few seconds")
REPLY_SECONDS = 5.0  # within which a client must read some of what it has been sent
CHECKS = 10  # of all connections for being idle, in QUERY_SECONDS
MAX_CONNECTIONS, PER_GROUP, PER_CLIENT = 1000, 500, 50
IN_FLIGHT = 100  # queries of one connection that are not answered yet
MAX_UNSENT = 1 << 18  # octets that a client may leave unread, apart from the kernel's buffers
MAX_QUERY = 4096  # octets; what a longer message has beyond them is skipped, as it is cut off over UDP
ACCEPTED = 16  # connections in one turn of the event loop
PAUSE = 0.1  # seconds without accepting, when the system has no room for another connection
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Group:
    """A group of clients, its connections, and its turns in the present round of `take_streams`."""

    __slots__ = ("clients", "count", "left", "name", "round")

    def __init__(self, name: str) -> None:
        self.name = name
        self.clients: dict[str, dict[int, Connection]] = {}  # by address and descriptor
        self.count = 0  # connections
        self.round = 0
        self.left = 0  # turns in that round


class Connection:
    """A TCP client's connection. The intake, compiled or not, reads and writes the attributes up to `lost`."""

    __slots__ = (
        "_streams", "client", "ended", "fileno", "group", "in_flight", "lost", "mask", "since", "skip", "sock", "unread",
        "unsent", "waiting",
    )  # fmt: skip

    def __init__(self, streams: "Streams", sock: socket.socket, client: str, group: Group, now: float) -> None:
        self.sock = sock
        self.fileno = sock.fileno()
        self.client = client
        self.group = group
        self.unread = b""  # octets received that no query was made of yet
        self.skip = 0  # octets to come that are not read: the rest of a message that is too long
        self.unsent = b""  # octets of replies that the kernel has no room for
        self.in_flight = 0  # queries taken that are not answered yet
        self.since = now  # when the last query was taken, or the client last read something
        self.ended = False  # no more is read: the client has closed its side, or its time is over
        self.lost = False  # nothing can be sent any more
        self.waiting = False  # for a turn of the engine
        self.mask = select.EPOLLIN  # what the epoll set is asked for
        self._streams = streams

    @property
    def complete(self) -> bool:
        """Whether `unread` begins with a whole query."""
        have = len(self.unread) - 2
        return have >= 0 and have >= min(int.from_bytes(self.unread[:2]), MAX_QUERY)

    def next_query(self) -> bytes:
        """Take the query that `unread` begins with."""
        length = int.from_bytes(self.unread[:2])
        query = self.unread[2 : 2 + min(length, MAX_QUERY)]
        self.skip = max(2 + length - len(self.unread), 0)
        self.unread = self.unread[2 + length :]
        self.in_flight += 1
        return query

    def send(self, wire: bytes) -> None:
        """Send the reply to a query that was in flight."""
        self.in_flight -= 1
        self.write(len(wire).to_bytes(2) + wire)
        self._streams.settle(self)

    def write(self, octets: bytes) -> None:
        """Send octets, or keep those for which the kernel has no room. A client that leaves too many unread is lost."""
        if self.lost:
            return
        if not self.unsent:
            try:
                octets = octets[self.sock.send(octets) :]
            except BlockingIOError:
                pass
            except OSError:
                self.lost = True
                return
        self.unsent += octets
        self.lost = len(self.unsent) > MAX_UNSENT

    def flush(self, now: float) -> None:
        """Send what was kept, as far as the kernel has room."""
        unsent, self.unsent = self.unsent, b""
        self.write(unsent)
        if len(self.unsent) < len(unsent):
            self.since = now

    def end(self) -> None:
        """Take no more queries. The connection is closed when those taken are answered."""
        self.ended, self.unread = True, b""

    @property
    def idle(self) -> bool:
        """Whether the client waits for nothing."""
        return not self.in_flight and not self.unsent and not self.waiting


class Streams:
    """All TCP clients. `ready` is called with a connection that needs a turn of the engine."""

    def __init__(self, allows: Callable[[str], bool], ready: Callable[[Connection], None]) -> None:
        self._allows = allows
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._groups: dict[str, Group] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}  # by descriptor
        self.turned_away = 0  # connections refused: of clients that are not answered, or with as many that are all busy
        self.evicted = 0  # idle connections closed to make room

    # ── connections come ─────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, sock: socket.socket) -> None:
        """Accept connections on this socket, which is bound and may not be listening yet."""
        sock.setblocking(False)
        sock.listen(1024)
        self._listening.append(sock)
        self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED):
            try:
                sock, peer = listening.accept()
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._wait_for_room(listening)
                return
            client = str(peer[0]).partition("%")[0]
            if self._allows(client) and self._make_room(client):
                self._add(sock, client)
            else:
                self.turned_away += 1
                sock.close()
        self._start_timer()

    def _wait_for_room(self, listening: socket.socket) -> None:
        """The system has no room for another connection: close an idle one, and accept again after a moment."""
        self._evict(self._of_largest())
        self._loop.remove_reader(listening)
        self._loop.call_later(PAUSE, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def _add(self, sock: socket.socket, client: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = shares.group(client)
        group = self._groups.setdefault(name, Group(name))
        connection = Connection(self, sock, client, group, self._loop.time())
        group.clients.setdefault(client, {})[connection.fileno] = connection
        group.count += 1
        self.connections[connection.fileno] = connection
        self.epoll.register(connection.fileno, connection.mask)
        self._start_timer()

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_room(self, client: str) -> bool:
        """Make room for one more connection of a client. False: it has as many as it may have, and all are busy."""
        group = self._groups.get(shares.group(client))
        if group is not None:
            own = group.clients.get(client, {})
            if len(own) >= PER_CLIENT:
                return self._evict(own.values())
            if group.count >= PER_GROUP:
                return self._evict(_largest(group))
        if len(self.connections) < MAX_CONNECTIONS:
            return True
        return self._evict(self._of_largest(), busy=True)

    def _of_largest(self) -> "list[Connection]":
        """The connections of the client with the most, in the group with the most."""
        return _largest(max(self._groups.values(), key=lambda group: group.count)) if self._groups else []

    def _evict(self, candidates: Iterable[Connection], *, busy: bool = False) -> bool:
        """Close the connection that has been idle for longest, or, with `busy`, one that is not idle if none is."""
        victim = min(candidates, key=lambda each: (not each.idle, each.since), default=None)
        if victim is None or not (victim.idle or busy):
            return False
        self.evicted += 1
        self._close(victim)
        return True

    # ── connections go on ────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self, connection: Connection) -> None:
        """See what a connection waits for now: for the engine, its client, answers, or its end."""
        if connection.unsent and not connection.lost:
            connection.flush(self._loop.time())
        if connection.lost:
            self._close(connection)
        elif connection.unsent:
            self._watch(connection, select.EPOLLOUT)
        elif connection.in_flight >= IN_FLIGHT:
            self._watch(connection, 0)
        elif connection.complete:
            if not connection.waiting:
                connection.waiting = True
                self._ready(connection)
        elif not connection.ended:
            self._watch(connection, select.EPOLLIN)
        elif connection.in_flight:
            self._watch(connection, 0)
        else:
            self._close(connection)

    def _watch(self, connection: Connection, mask: int) -> None:
        if mask != connection.mask and connection.fileno in self.connections:
            connection.mask = mask
            self.epoll.modify(connection.fileno, mask)

    # ── connections end ──────────────────────────────────────────────────────────────────────────────────────────────

    def _start_timer(self) -> None:
        if self._timer is None and self.connections:
            self._timer = self._loop.call_later(QUERY_SECONDS / CHECKS, self._tick)

    def _tick(self) -> None:
        """End connections whose client has sent no query, or read no reply, for too long."""
        self._timer = None
        now = self._loop.time()
        for connection in list(self.connections.values()):
            if connection.unsent:
                connection.lost = now >= connection.since + REPLY_SECONDS
            elif now >= connection.since + QUERY_SECONDS:
                connection.end()
            else:
                continue
            self.settle(connection)
        self._start_timer()

    def _close(self, connection: Connection) -> None:
        if self.connections.get(connection.fileno) is not connection:
            return
        connection.lost = True
        group = connection.group
        own = group.clients[connection.client]
        del self.connections[connection.fileno], own[connection.fileno]
        group.count -= 1
        if not own:
            del group.clients[connection.client]
        if not group.count:
            del self._groups[group.name]
        _hang_up(connection.sock)

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening.clear()

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self.connections.values()):
            self._close(connection)
        if self._timer is not None:
            self._timer.cancel()
        self.epoll.close()


def _largest(group: Group) -> "list[Connection]":
    return list(max(group.clients.values(), key=len).values())


def _hang_up(sock: socket.socket) -> None:
    """Close a connection. What the client has sent is read first: with octets unread, the kernel would send a reset,
    which may overtake the last replies."""
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1 << 16)
    except OSError:  # the client has gone, or has sent nothing
        pass
    sock.close()
