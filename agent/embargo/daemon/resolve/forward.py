"""Carries out a Forward: over UDP from a random port with a random ID, or over a connection (`pipeline`).

Each server has a pool of UDP sockets whose ports the kernel has chosen at random. They are connected, so the kernel accepts
datagrams from the asked address and port alone. A response must match in ID and question too; one that does not is ignored,
because it may be forged (RFC 5452 section 9). A socket is used for a while and then replaced by one with another port. A
query without a response in its time is reported as overdue, and still awaited for a while.
"""

import asyncio
import errno
import math
import os
import select
import socket
from collections.abc import Callable, Iterable
from itertools import islice

from embargo.daemon.resolve.pipeline import Pipelines
from embargo.daemon.resolve.source import connected, source
from embargo.dns import message, response
from embargo.dns.questions import Forward
from embargo.dns.upstream import PATIENCE, Server

MAX_DATAGRAM = 65_535
SOCKETS = 256  # to one server, a power of two: ports that a forger has to guess in addition to the ID
MAX_USES = 64  # questions from one port before it is replaced
MAX_AGE = 10.0  # seconds for which a port is used
BATCH = 64  # sockets read in one turn of the loop at most, so that clients do not wait for many responses
TURN_SECONDS = 0.002  # after which no more are read in that turn: a large response takes as long as dozens of others
MAX_AWAITED = 8192  # queries whose response is awaited, those that are overdue included: a flood of names must not fill memory
MIN_TICK = 0.02  # seconds between two checks for queries whose deadline has passed, at least
RANDOM_OCTETS = 4096  # taken from the kernel at once
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # for one more socket


class Forwarder:
    """Asks upstreams. Each Forward ends once.

    `complete(token, packet)` is called with the first response that matches. `overdue(token, reason)` is called once if none
    has come in time, and `expire(token, reason, network)` when none is awaited any more; `network`: because of an error, not
    of silence.
    """

    def __init__(
        self,
        complete: Callable[[int, bytes], None],
        overdue: Callable[[int, str], None],
        expire: Callable[[int, str, bool], None],
    ) -> None:
        self._complete = complete
        self._overdue = overdue
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Server, list[_Socket]] = {}
        self._sockets: dict[int, _Socket] = {}  # by descriptor; retired ones too, as long as a response is awaited there
        self._queries: dict[_UdpQuery, None] = {}  # those that are not overdue; an ordered set
        self._late: dict[_UdpQuery, None] = {}  # those that are, in the order of their deadlines
        self._epoll = select.epoll()  # one reader of the loop for all sockets costs less than one for each
        self._loop.add_reader(self._epoll.fileno(), self._readable)
        self._buffer = memoryview(bytearray(MAX_DATAGRAM))
        self._random, self._drawn = b"", 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # when the timer fires
        self._retired_at = -math.inf  # when old ports were looked for last
        self._mismatched = 0
        self.pipelines = Pipelines(complete, overdue, expire)

    @property
    def mismatched(self) -> int:
        """Packets from upstreams that were no response to any question."""
        return self._mismatched + self.pipelines.mismatched

    def start(self, forward: Forward) -> None:
        """Ask. Does not raise: an error of the network comes by `expire`."""
        if forward.delay:
            self._loop.call_later(forward.delay, self.start, forward._replace(delay=0.0))
            return
        if forward.tcp:
            self.pipelines.start(forward)
            return
        now = self._loop.time()
        try:
            sock, ident = self._ask(forward, now)
        except OSError as error:
            self._loop.call_soon(self._expire, forward.token, _reason(error), True)
            return
        if len(self._queries) + len(self._late) >= MAX_AWAITED:
            oldest = next(iter(self._late or self._queries))
            self._end(oldest)
            self._loop.call_soon(self._expire, oldest.forward.token, "did not answer", False)
        sock.uses += 1
        deadline = now + forward.wait
        awaited = sock.awaited[ident] = _UdpQuery(forward, sock, ident, deadline)
        self._queries[awaited] = None
        if deadline < self._timer_at:
            self._tick_at(deadline)

    def _ask(self, forward: Forward, now: float) -> "tuple[_Socket, bytes]":
        """Send a query; (its socket, its ID). If the socket cannot send any more, from a new one."""
        sock = self._socket(forward.server, now)
        try:
            return sock, self._send(sock, forward)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
        self._replace(self._pools.pop(forward.server), now)
        sock = self._socket(forward.server, now)
        return sock, self._send(sock, forward)

    def _send(self, sock: "_Socket", forward: Forward) -> bytes:
        ident = self._ident(sock)
        wire = message.ask(forward.query, int.from_bytes(ident), edns=forward.edns)
        try:
            sock.send(wire)
        except OSError as error:
            sock.send(wire)  # the error belonged to an earlier query: the kernel reports it at the next call
            self._loop.call_soon(self._lost, list(sock.awaited.values()), _reason(error))
        return ident

    # ── the address of this machine ──────────────────────────────────────────────────────────────────────────────────

    def readdress(self) -> None:
        """Addresses or routes of this machine may have changed: replace what asks from an address that is no longer used."""
        for server in list(self._pools):
            self._readdress(server)
        self.pipelines.readdress()

    def _readdress(self, server: Server) -> None:
        pool = self._pools.get(server)
        if not pool or not (now_from := source(server)):
            return
        old = [sock for sock in pool if sock.source != now_from]
        pool[:] = [sock for sock in pool if sock.source == now_from]
        self._replace(old, self._loop.time())

    def _replace(self, old: "list[_Socket]", now: float) -> None:
        """Ask no more from these sockets. What is on its way there is overdue: its answer would go elsewhere."""
        for sock in old:
            for query in sock.awaited.values():
                if query in self._queries:
                    query.deadline = now
            self._retire(sock)
        if old and self._queries:
            self._tick_at(now)

    # ── sockets ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _socket(self, server: Server, now: float) -> "_Socket":
        """A random socket of a server, a new one until its pool is full. OSError when it has none and none can be opened."""
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = []
        place = int.from_bytes(self._draw()) * SOCKETS >> 16
        old: _Socket | None = None
        if place < len(pool):
            old = pool[place]
            if old.uses < MAX_USES and now < old.born + MAX_AGE:
                return old
            pool[place] = pool[-1]
            pool.pop()
            if not old.awaited:  # before the next is opened, which may need its descriptor
                self._retire(old)
                old = None
        try:
            opened = self._open(server, now)
        except OSError as error:
            if error.errno not in _NO_ROOM or not (old or pool):
                raise
            opened = old or pool.pop(place % len(pool))  # fewer random ports are better than no answer
        else:
            if old is not None:
                self._retire(old)
        pool.append(opened)
        return opened

    def _open(self, server: Server, now: float) -> "_Socket":
        try:
            sock = connected(server)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            for pool in self._pools.values():  # make room: close the idle sockets of all servers
                idle = [sock_ for sock_ in pool if not sock_.awaited]
                pool[:] = [sock_ for sock_ in pool if sock_.awaited]
                for sock_ in idle:
                    self._retire(sock_)
            sock = connected(server)
        opened = _Socket(sock, now)
        self._sockets[opened.number] = opened
        self._epoll.register(opened.number, select.EPOLLIN)
        return opened

    def _retire(self, sock: "_Socket") -> None:
        """Ask no more from this port. It is closed when no response is awaited there."""
        sock.retired = True
        if not sock.awaited:
            del self._sockets[sock.number]
            sock.sock.close()  # which takes it out of the epoll set

    def _ident(self, sock: "_Socket") -> bytes:
        """An ID that no query on its way from this port has."""
        while (ident := self._draw()) in sock.awaited:
            pass
        return ident

    def _draw(self) -> bytes:
        """Two random octets."""
        self._drawn += 2
        if self._drawn >= len(self._random):
            self._random, self._drawn = os.urandom(RANDOM_OCTETS), 0
        return self._random[self._drawn : self._drawn + 2]

    # ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self) -> None:
        deadline = self._loop.time() + TURN_SECONDS
        for number, _ in self._epoll.poll(0, BATCH):
            if self._loop.time() >= deadline:
                return
            sock = self._sockets.get(number)
            if sock is None:  # closed while an earlier one of these was handled
                continue
            try:
                packet = bytes(self._buffer[: sock.sock.recv_into(self._buffer)])
            except BlockingIOError:
                continue
            except OSError as error:  # ECONNREFUSED: the server does not listen, so none of these gets an answer
                self._lost(list(sock.awaited.values()), _reason(error))
                continue
            awaited = sock.awaited.get(packet[:2])
            if awaited is not None and response.matches(packet, int.from_bytes(awaited.ident), awaited.question):
                self._end(awaited)
                self._complete(awaited.forward.token, packet)
            else:
                self._mismatched += 1

    def _lost(self, queries: "Iterable[_UdpQuery]", reason: str) -> None:
        """An error of the network ends these queries."""
        for query in queries:
            if query in self._queries or query in self._late:
                self._end(query)
                self._expire(query.forward.token, reason, True)

    def _end(self, query: "_UdpQuery") -> None:
        """Await no response to this query any longer."""
        if query in self._queries:
            del self._queries[query]
        else:
            del self._late[query]
        sock = query.sock
        del sock.awaited[query.ident]
        if sock.retired and not sock.awaited:
            del self._sockets[sock.number]
            sock.sock.close()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _tick_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        """Report the queries that are overdue, end those awaited for long, retire old ports, and set the timer anew."""
        now = self._loop.time()
        self._timer, self._timer_at = None, math.inf
        overdue = [query for query in self._queries if query.deadline <= now]
        for server in {query.forward.server for query in overdue}:
            self._readdress(server)
        for query in overdue:
            if query not in self._queries:  # it has ended, for a try that follows from an earlier one of these
                continue
            del self._queries[query]
            self._late[query] = None
            query.deadline = now + PATIENCE
            self._overdue(query.forward.token, f"did not answer in {query.forward.wait:.1f} s")
        while self._late and (query := next(iter(self._late))).deadline <= now:
            self._end(query)
            self._expire(query.forward.token, "did not answer", False)
        awaited = [query.deadline for query in self._queries] + [query.deadline for query in islice(self._late, 1)]
        if not awaited or now >= self._retired_at + MAX_AGE:
            self._retire_old(now)
        if awaited:
            self._tick_at(max(min(awaited), now + MIN_TICK))
        elif self._pools:
            self._tick_at(now + MAX_AGE)

    def _retire_old(self, now: float) -> None:
        """Ask no more from ports that had their time, of servers that are no longer asked too."""
        self._retired_at = now
        for server, pool in list(self._pools.items()):
            for sock in pool:
                if now >= sock.born + MAX_AGE:
                    self._retire(sock)
            pool[:] = [sock for sock in pool if not sock.retired]
            if not pool:
                del self._pools[server]

    def close(self) -> None:
        """Close all sockets and connections. What is on its way ends without a call of `complete` or `expire`."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        for sock in self._sockets.values():
            sock.sock.close()
        self._epoll.close()
        self.pipelines.close()


class _Socket:
    """A UDP socket connected to one server, on a random port."""

    __slots__ = ("awaited", "born", "number", "retired", "send", "sock", "source", "uses")

    def __init__(self, sock: socket.socket, born: float) -> None:
        self.sock = sock
        self.send = sock.send
        self.number = sock.fileno()
        self.source = str(sock.getsockname()[0])
        self.born = born
        self.uses = 0
        self.awaited: dict[bytes, _UdpQuery] = {}  # by ID
        self.retired = False


class _UdpQuery:
    """A query sent over UDP, whose response is awaited."""

    __slots__ = ("deadline", "forward", "ident", "question", "sock")

    def __init__(self, forward: Forward, sock: _Socket, ident: bytes, deadline: float) -> None:
        self.forward = forward
        self.sock = sock
        self.ident = ident
        self.question = message.own_question(forward.query)
        self.deadline = deadline


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
