"""Questions to upstreams over TCP and TLS: connections that are kept, many questions on each, answers in any order (RFC 7766).

A server has one connection, and another one while many questions wait on the first. Questions of one turn of the loop leave
together. When a connection that was of use breaks, what waits on it is asked once more on the next one: servers close what
is idle, and a question may cross that. When none can be made, the questions fail, and for a moment all others to that
server fail with them. Over TLS nothing is sent before the server has proven who it is, and nothing is ever sent otherwise.
"""

import asyncio
import os
import secrets
import ssl
from collections.abc import Callable
from typing import cast

from embargo.daemon.resolve.tls import Layer, Trust, words
from embargo.dns import message, response
from embargo.dns.questions import Forward
from embargo.dns.upstream import Server

CONNECTIONS = 2  # to one server, of each worker: servers grant a gateway a handful (Unbound has ten for everybody)
SHARE = 64  # questions on one before there is another: some servers answer one after the other
IN_FLIGHT = 1000  # questions on one, at most
SETUP = 4.0  # seconds for a connection with all that comes before the first question
IDLE = 20.0  # seconds that one without a question is kept; Unbound keeps it for 30, dnsdist for 2
PAUSE = 0.5  # seconds after a connection could not be made
UNSENT = 1 << 18  # octets a server may leave unread


class Pipelines:
    """Asks upstreams over connections. `complete` and `expire` are those of the Forwarder."""

    def __init__(self, complete: Callable[[int, bytes], bool], expire: Callable[[int, str, bool], None]) -> None:
        self._complete = complete
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Server, _Pool] = {}
        self._connections: set[_Connection] = set()  # those too that take no more questions
        self._tasks: set[asyncio.Task[None]] = set()
        self.trust = Trust()
        self.mismatched = 0

    def believe(self, authorities: str) -> None:
        """From now on these vouch for servers; what waits on connections that others vouched for is asked again."""
        if authorities == self.trust.authorities:
            return
        self.trust = Trust(authorities)
        for server, pool in self._pools.items():
            if server.tls:
                pool.failed = None
                pool.connections.clear()  # what waits on the first that goes is not to be asked on the second
        for connection in [each for each in self._connections if each.server.tls]:  # those too that take no more questions
            connection.abort()

    def start(self, forward: Forward) -> None:
        flight = _Flight(forward)
        flight.timer = self._loop.call_later(forward.timeout, self._late, flight)
        self._place(flight)

    def _place(self, flight: "_Flight") -> None:
        server = flight.forward.server
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = _Pool()
        if pool.failed is not None:
            until, reason, network = pool.failed
            if self._loop.time() < until:
                self._loop.call_soon(self.fail, flight, reason, network)
                return
            pool.failed = None
        usable = [each for each in pool.connections if not each.full]
        best = min(usable, key=lambda each: len(each.flights), default=None)
        if (best is None or len(best.flights) >= SHARE) and len(pool.connections) < CONNECTIONS:
            best = self._connect(server, pool)
        if best is None:
            self._loop.call_soon(self.fail, flight, "has left too many questions unanswered", False)
            return
        best.ask(flight)

    def _connect(self, server: Server, pool: "_Pool") -> "_Connection":
        layer = self.trust.open(server, self._loop.time()) if server.tls else None
        connection = _Connection(self, server, pool, layer)
        pool.connections.append(connection)
        self._connections.add(connection)
        task = self._loop.create_task(self._reach(connection), name=f"connection to {server}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection

    async def _reach(self, connection: "_Connection") -> None:
        address, port = connection.server.address, connection.server.port
        try:
            async with asyncio.timeout(SETUP):
                await self._loop.create_connection(lambda: connection, address, port)
                await connection.opened
        except TimeoutError:
            connection.broken(f"{connection.missing} in {SETUP:.1f} s", network=False)
        except OSError as error:
            connection.broken(_reason(error, connection.way))

    # ── the end of a question ────────────────────────────────────────────────────────────────────────────────────────

    def heard(self, connection: "_Connection", packet: bytes) -> None:
        flight = connection.flights.get(packet[:2])
        if flight is None or not response.matches(packet, int.from_bytes(packet[:2]), flight.question):
            self.mismatched += 1
            return
        connection.of_use = True
        flight.end()
        self._complete(flight.forward.token, packet)

    def fail(self, flight: "_Flight", reason: str, network: bool) -> None:
        if not flight.ended:
            flight.end()
            self._expire(flight.forward.token, reason, network)

    def _late(self, flight: "_Flight") -> None:
        connection = flight.connection
        if connection is None:  # it is about to fail
            return
        said = "did not answer over " + connection.way if connection.opened.done() else connection.missing
        if connection.opened.done() and connection.last < flight.asked:
            connection.retire()  # nothing at all has come since: perhaps nothing arrives there any more
        self.fail(flight, f"{said} in {flight.forward.timeout:.1f} s", False)  # it may be asked again at once

    def lost(self, connection: "_Connection", reason: str, network: bool) -> None:
        """It takes no part any longer. What waits on it is asked again, or fails."""
        self._connections.discard(connection)
        if connection in connection.pool.connections:
            connection.pool.connections.remove(connection)
        if not connection.opened.done():
            connection.opened.cancel()
            if reason:
                connection.pool.failed = (self._loop.time() + PAUSE, reason, network)
        for flight in list(connection.flights.values()):
            if not reason or (connection.of_use and not flight.again):
                flight.leave()
                flight.again = True
                self._place(flight)
            else:
                self.fail(flight, reason, network)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            for flight in list(connection.flights.values()):
                flight.end()
            connection.abort()


class _Pool:
    """What there is to one server."""

    __slots__ = ("connections", "failed")

    def __init__(self) -> None:
        self.connections: list[_Connection] = []  # those that take questions
        self.failed: tuple[float, str, bool] | None = None  # until when none is tried, why, was it the network


class _Flight:
    """One attempt over a connection."""

    __slots__ = ("again", "asked", "connection", "ended", "forward", "ident", "question", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.question = message.own_question(forward.query)
        self.connection: _Connection | None = None
        self.ident = b""
        self.asked = 0.0
        self.again = False
        self.ended = False

    def leave(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            del connection.flights[self.ident]
            connection.left()

    def end(self) -> None:
        self.ended = True
        self.timer.cancel()
        self.leave()


class _Connection(asyncio.Protocol):
    def __init__(self, owner: Pipelines, server: Server, pool: _Pool, layer: Layer | None) -> None:
        self.server = server
        self.pool = pool
        self.way = "TLS" if layer else "TCP"
        self.flights: dict[bytes, _Flight] = {}  # by ID
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done when questions may be sent
        self.last = 0.0  # when something came
        self.of_use = False  # it has brought an answer
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._layer = layer
        self._transport: asyncio.Transport | None = None
        self._waiting: list[_Flight] = []  # to be sent
        self._flushing = False
        self._buffer = bytearray()
        self._retired = False
        self._gone = False
        self._used = 0.0  # when the last question left it
        self._idle: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        unsent = self._transport.get_write_buffer_size() if self._transport else 0
        return len(self.flights) >= IN_FLIGHT or len(self._waiting) >= 2 * IN_FLIGHT or unsent > UNSENT

    @property
    def missing(self) -> str:
        """What has not happened yet."""
        return "did not finish the TLS handshake" if self._transport else "did not accept a connection"

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, flight: _Flight) -> None:
        while (ident := secrets.token_bytes(2)) in self.flights:
            pass
        flight.connection, flight.ident, flight.asked = self, ident, self._loop.time()
        self.flights[ident] = flight
        self._waiting.append(flight)
        if self.opened.done():
            self._soon()

    def _soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        waiting, self._waiting = self._waiting, []
        if self._gone or self._transport is None:
            return
        data = bytearray()
        for flight in waiting:
            if flight.connection is self:
                forward = flight.forward
                ask = message.ask_in_private if self._layer else message.ask
                wire = ask(forward.query, int.from_bytes(flight.ident), edns=forward.edns)
                data += len(wire).to_bytes(2) + wire
        if data and self._layer is not None:
            self._layer.send(bytes(data))
            self._transport.write(self._layer.take())
        elif data:
            self._transport.write(data)

    def left(self) -> None:
        """A question is not here any more."""
        if self.flights or self._gone:
            return
        self._used = self._loop.time()
        if self._retired:
            self._finish()
        elif self._idle is None:
            self._idle = self._loop.call_later(IDLE, self._look)

    def _look(self) -> None:
        """Has it been idle for long enough?"""
        self._idle = None
        left = self._used + IDLE - self._loop.time()
        if self.flights:
            return
        if left > 0:
            self._idle = self._loop.call_later(left, self._look)
        else:
            self.retire()

    # ── its life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def retire(self) -> None:
        """Take no more questions; end when those that are here have."""
        self._retired = True
        if self in self.pool.connections:
            self.pool.connections.remove(self)
        if not self.flights:
            self._finish()

    def _finish(self) -> None:
        if self._transport is not None and self._layer is not None and self._layer.ready:
            self._layer.end()
            self._transport.write(self._layer.take())
        self.broken("")

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.broken("")

    def broken(self, reason: str, *, network: bool = True) -> None:
        """It is of no use any longer; without a reason: nobody needs it."""
        if self._gone:
            return
        self._gone = True
        if self._idle is not None:
            self._idle.cancel()
        if self._transport is not None:
            self._transport.close()
        self._owner.lost(self, reason, network)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._gone:
            self._transport.abort()
        elif self._layer is None:
            self._ready()
        else:
            self._layer.begin(self._loop.time())
            self._transport.write(self._layer.take())

    def _ready(self) -> None:
        self.opened.set_result(None)
        self._soon()

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        self.last = self._loop.time()
        if self._layer is not None:
            data = self._decrypted(self._layer, data)
        self._buffer += data
        at, end = 0, len(self._buffer)
        while end - at >= 2 and not self._gone:
            size = int.from_bytes(self._buffer[at : at + 2])
            if end - at - 2 < size:
                break
            packet = bytes(self._buffer[at + 2 : at + 2 + size])
            at += 2 + size
            self._owner.heard(self, packet)
        del self._buffer[:at]
        if self._layer is not None and self._layer.ended:
            self.eof_received()

    def _decrypted(self, layer: Layer, data: bytes) -> bytes:
        """What was said, with what TLS itself has to say sent back."""
        assert self._transport is not None
        try:
            data = layer.received(data, self.last)
        except ssl.SSLError as error:
            self._transport.write(layer.take())
            self.broken(words(error, self.server))
            return b""
        if sent := layer.take():
            self._transport.write(sent)
        if layer.ready and not self.opened.done():
            self._ready()
        return data

    def eof_received(self) -> None:
        what = "without an answer" if self.opened.done() else "during the handshake"
        self.broken(f"closed the {self.way} connection {what}")

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, OSError):
            self.broken(_reason(error, self.way))
        else:
            self.eof_received()
        if self._layer is not None and self._layer.ready:
            self._owner.trust.remember(self.server, self._layer)


def _reason(error: OSError, way: str) -> str:
    """asyncio has words of its own for the kernel's errors."""
    return f"over {way}: {(os.strerror(error.errno) if error.errno else str(error)).lower()}"
