"""Carrying out a Forward: a random ID from a random port per attempt, a deadline, and patience with forgeries.

What goes over connections goes through `pipeline`; the rest of this is about datagrams.

Each server has a pool of sockets, whose ports the kernel has drawn. They are connected, so the kernel accepts datagrams from
the asked address and port alone; what arrives must match in ID and question too, and whatever does not, or cannot be read,
is ignored until the deadline (RFC 5452 section 9). A socket is used for a while and then replaced by one with another port.
"""

import asyncio
import errno
import math
import os
import select
import socket
from collections.abc import Callable, Iterable

from embargo.daemon.resolve.pipeline import Pipelines
from embargo.dns import message, response
from embargo.dns.questions import Forward
from embargo.dns.upstream import Server

MAX_DATAGRAM = 65_535
SOCKETS = 256  # to one server, a power of two: ports that a forger has to guess beside the IDs
USES = 64  # questions from one port, and
AGE = 10.0  # seconds, before it is given up
BATCH = 64  # responses taken at once, so that clients are not kept waiting
TICK = 0.02  # seconds between two looks for questions whose time is over, at least
CHANCE = 4096  # octets drawn at once
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})  # no room for one more socket


class Forwarder:
    """Asks upstreams. Each Forward ends once: when `complete(token, packet)` has use for a response, or by
    `expire(token, reason, network)`.
    """

    def __init__(self, complete: Callable[[int, bytes], bool], expire: Callable[[int, str, bool], None]) -> None:
        self._complete = complete
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Server, list[_Socket]] = {}
        self._sockets: dict[int, _Socket] = {}  # by descriptor, those given up too as long as something is awaited there
        self._flights: dict[_Flight, None] = {}
        self._epoll = select.epoll()  # one reader of the loop for all sockets: a turn of the loop for each would cost more
        self._loop.add_reader(self._epoll.fileno(), self._readable)
        self._buffer = memoryview(bytearray(MAX_DATAGRAM))
        self._chance, self._drawn = b"", 0
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = math.inf  # when the timer is over
        self._mismatched = 0
        self.pipelines = Pipelines(complete, expire)

    @property
    def mismatched(self) -> int:
        """What came and was no answer to anything asked."""
        return self._mismatched + self.pipelines.mismatched

    def start(self, forward: Forward) -> None:
        if forward.tcp:
            self.pipelines.start(forward)
            return
        now = self._loop.time()
        try:
            sock = self._socket(forward.server, now)
            ident = self._ident(sock)
            self._send(sock, message.ask(forward.query, int.from_bytes(ident), edns=forward.edns))
        except OSError as error:
            self._loop.call_soon(self._expire, forward.token, _reason(error), True)
            return
        sock.uses += 1
        deadline = now + forward.timeout
        flight = sock.flights[ident] = _Flight(forward, sock, ident, deadline)
        self._flights[flight] = None
        if deadline < self._look_at:
            self._look(deadline)

    def _send(self, sock: "_Socket", query: bytes) -> None:
        try:
            sock.send(query)
        except OSError as error:
            sock.send(query)  # it was about what was sent before: the kernel tells it to whoever comes next
            self._loop.call_soon(self._lost, list(sock.flights.values()), _reason(error))

    # ── sockets ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _socket(self, server: Server, now: float) -> "_Socket":
        """A random one of the server's. OSError when there is none and none can be had."""
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = []
        place = int.from_bytes(self._draw()) * SOCKETS >> 16
        old: _Socket | None = None
        if place < len(pool):
            old = pool[place]
            if old.uses < USES and now < old.born + AGE:
                return old
            pool[place] = pool[-1]
            pool.pop()
            if not old.flights:  # before the next is opened, which may need its descriptor
                self._give_up(old)
                old = None
        try:
            opened = self._open(server, now)
        except OSError as error:
            if error.errno not in _FULL or not (old or pool):
                raise
            opened = old or pool.pop(place % len(pool))  # fewer ports are better than no answer
        else:
            if old is not None:
                self._give_up(old)
        pool.append(opened)
        return opened

    def _open(self, server: Server, now: float) -> "_Socket":
        try:
            sock = _connected(server)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            for pool in self._pools.values():  # those of other servers, perhaps
                idle = [each for each in pool if not each.flights]
                pool[:] = [each for each in pool if each.flights]
                for each in idle:
                    self._give_up(each)
            sock = _connected(server)
        opened = _Socket(sock, now)
        self._sockets[opened.number] = opened
        self._epoll.register(opened.number, select.EPOLLIN)
        return opened

    def _give_up(self, sock: "_Socket") -> None:
        """Ask no more from this port. It is closed when nothing is awaited there."""
        sock.given_up = True
        if not sock.flights:
            del self._sockets[sock.number]
            sock.sock.close()  # which takes it out of the epoll set

    def _ident(self, sock: "_Socket") -> bytes:
        """An ID that is not on its way from this port."""
        while (ident := self._draw()) in sock.flights:
            pass
        return ident

    def _draw(self) -> bytes:
        """Two octets that nobody can guess."""
        self._drawn += 2
        if self._drawn >= len(self._chance):
            self._chance, self._drawn = os.urandom(CHANCE), 0
        return self._chance[self._drawn : self._drawn + 2]

    # ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self) -> None:
        for number, _ in self._epoll.poll(0, BATCH):
            sock = self._sockets.get(number)
            if sock is None:  # closed by what came before it
                continue
            try:
                packet = bytes(self._buffer[: sock.sock.recv_into(self._buffer)])
            except BlockingIOError:
                continue
            except OSError as error:  # ECONNREFUSED: nobody listens there, for any of these questions
                self._lost(list(sock.flights.values()), _reason(error))
                continue
            awaited = sock.flights.get(packet[:2])
            if (
                awaited is not None
                and response.matches(packet, int.from_bytes(awaited.ident), awaited.question)
                and self._complete(awaited.forward.token, packet)
            ):
                self._end(awaited)
            else:
                self._mismatched += 1

    def _lost(self, flights: "Iterable[_Flight]", reason: str) -> None:
        for flight in flights:
            if flight in self._flights:
                self._end(flight)
                self._expire(flight.forward.token, reason, True)

    def _end(self, flight: "_Flight") -> None:
        del self._flights[flight]
        sock = flight.sock
        del sock.flights[flight.ident]
        if sock.given_up and not sock.flights:
            del self._sockets[sock.number]
            sock.sock.close()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_at = when
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        """End what has waited long enough, give up old ports; come again when there will be something to do."""
        now = self._loop.time()
        self._timer, self._look_at = None, math.inf
        for flight in [each for each in self._flights if each.deadline <= now]:
            self._end(flight)
            self._expire(flight.forward.token, f"did not answer in {flight.forward.timeout:.1f} s", False)
        if self._flights:
            self._look(max(min(each.deadline for each in self._flights), now + TICK))
            return
        for server, pool in list(self._pools.items()):  # while there are questions, they find those that are too old
            for sock in pool:
                if now >= sock.born + AGE:
                    self._give_up(sock)
            pool[:] = [sock for sock in pool if not sock.given_up]
            if not pool:
                del self._pools[server]
        if self._pools:
            self._look(now + AGE)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        for sock in self._sockets.values():
            sock.sock.close()
        self._epoll.close()
        self.pipelines.close()


class _Socket:
    """A UDP socket that talks to one server alone; the kernel has given it a random port."""

    __slots__ = ("born", "flights", "given_up", "number", "send", "sock", "uses")

    def __init__(self, sock: socket.socket, born: float) -> None:
        self.sock = sock
        self.send = sock.send
        self.number = sock.fileno()
        self.born = born
        self.uses = 0
        self.flights: dict[bytes, _Flight] = {}  # by ID
        self.given_up = False


class _Flight:
    """One attempt over UDP."""

    __slots__ = ("deadline", "forward", "ident", "question", "sock")

    def __init__(self, forward: Forward, sock: _Socket, ident: bytes, deadline: float) -> None:
        self.forward = forward
        self.sock = sock
        self.ident = ident
        self.question = message.own_question(forward.query)
        self.deadline = deadline


def _connected(server: Server) -> socket.socket:
    """A UDP socket that talks to one server alone; the kernel gives it a random port."""
    address, _, scope = server.address.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.connect((address, server.port, 0, socket.if_nametoindex(scope) if scope else 0))
        else:
            sock.connect((address, server.port))
    except OSError:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
