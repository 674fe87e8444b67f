"""Questions to upstreams over TCP and TLS: connections that are kept, many questions on each, answers in any order (RFC 7766).

A server has one connection, and a second one while many questions wait on the first. Questions of one turn of the loop leave
together. When a connection breaks that has brought an answer, the questions on it are asked once more on the next one:
servers close idle connections, and a question may cross that. When no connection can be made, its questions fail, and so do
all others to that server for a moment. Over TLS no question is sent before the server has proven its name.
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
from embargo.dns.upstream import PATIENCE, Server

CONNECTIONS = 2  # to one server, of each worker: servers grant a client a handful (Unbound ten to all together)
SHARE = 64  # questions on one connection before a second is made: some servers answer one after the other
MAX_QUESTIONS = 1000  # on one connection
SETUP_SECONDS = 4.0  # for a connection and its TLS handshake
IDLE_SECONDS = 20.0  # for which a connection without a question is kept; Unbound keeps it for 30, dnsdist for 2
RETRY_SECONDS = 0.5  # without a new attempt after a connection could not be made
MAX_UNSENT = 1 << 18  # octets a server may leave unread


class Pipelines:
    """Asks upstreams over connections. `complete`, `overdue` and `expire`: see `forward.Forwarder`."""

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
        self._pools: dict[Server, _Pool] = {}
        self._connections: set[_Connection] = set()  # retired ones too
        self._tasks: set[asyncio.Task[None]] = set()
        self.trust = Trust()
        self.mismatched = 0

    def trust_authorities(self, authorities: str) -> None:
        """Check certificates by these authorities (PEM). Questions on connections checked by others are asked again."""
        if authorities == self.trust.authorities:
            return
        self.trust = Trust(authorities)
        for server, pool in self._pools.items():
            if server.tls:
                pool.failed = None
                pool.connections.clear()  # so that no question of a closed one goes to another old one
        for connection in [each for each in self._connections if each.server.tls]:  # retired ones too
            connection.abort()

    def start(self, forward: Forward) -> None:
        """Ask. Does not raise: an error of the network comes by `expire`."""
        query = _StreamQuery(forward)
        query.timer = self._loop.call_later(forward.wait, self._late, query)
        self._place(query)

    def _place(self, query: "_StreamQuery") -> None:
        """Ask on the connection with the fewest questions, on a new one, or fail."""
        server = query.forward.server
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = _Pool()
        if pool.failed is not None:
            until, reason, network = pool.failed
            if self._loop.time() < until:
                self._loop.call_soon(self.fail, query, reason, network)
                return
            pool.failed = None
        usable = [each for each in pool.connections if not each.full]
        best = min(usable, key=lambda each: len(each.queries), default=None)
        if (best is None or len(best.queries) >= SHARE) and len(pool.connections) < CONNECTIONS:
            best = self._connect(server, pool)
        if best is None:
            self._loop.call_soon(self.fail, query, "has left too many questions unanswered", False)
            return
        best.ask(query)

    def _connect(self, server: Server, pool: "_Pool") -> "_Connection":
        layer = self.trust.open(server, self._loop.time()) if server.tls else None
        connection = _Connection(self, server, pool, layer)
        pool.connections.append(connection)
        self._connections.add(connection)
        task = self._loop.create_task(self._open(connection), name=f"connection to {server}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection

    async def _open(self, connection: "_Connection") -> None:
        """Connect, and wait for the TLS handshake. What fails ends the connection."""
        address, port = connection.server.address, connection.server.port
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                await self._loop.create_connection(lambda: connection, address, port)
                await connection.opened
        except TimeoutError:
            connection.broken(f"{connection.missing} in {SETUP_SECONDS:.1f} s", network=False)
        except OSError as error:
            connection.broken(_reason(error, connection.protocol))

    # ── the end of a question ──────────────────────────────────────────────────────────────────────────────────────────

    def received(self, connection: "_Connection", packet: bytes) -> None:
        """A whole message came on a connection."""
        query = connection.queries.get(packet[:2])
        if query is None or not response.matches(packet, int.from_bytes(packet[:2]), query.question):
            self.mismatched += 1
            return
        connection.of_use = True
        query.end()
        self._complete(query.forward.token, packet)

    def fail(self, query: "_StreamQuery", reason: str, network: bool) -> None:
        """End a query without a response."""
        if not query.ended:
            query.end()
            self._expire(query.forward.token, reason, network)

    def _late(self, query: "_StreamQuery") -> None:
        """No response came in time. It is still awaited, but where nothing comes any more nothing else is asked."""
        connection = query.connection
        if connection is None:  # `fail` is called already
            return
        query.overdue = True
        query.timer = self._loop.call_later(PATIENCE, self.fail, query, "did not answer over " + connection.protocol, False)
        reason = "did not answer over " + connection.protocol if connection.opened.done() else connection.missing
        wait = query.forward.wait
        if connection.opened.done() and max(connection.last, query.asked) <= self._loop.time() - wait / 2:
            connection.retire()
        self._overdue(query.forward.token, f"{reason} in {wait:.1f} s")

    def lost(self, connection: "_Connection", reason: str, network: bool) -> None:
        """A connection has ended: its questions are asked again, or fail. An empty reason: it was no longer needed."""
        self._connections.discard(connection)
        if connection in connection.pool.connections:
            connection.pool.connections.remove(connection)
        if not connection.opened.done():
            connection.opened.cancel()
            if reason:
                connection.pool.failed = (self._loop.time() + RETRY_SECONDS, reason, network)
        for query in list(connection.queries.values()):
            if not reason or (connection.of_use and not query.again):
                query.leave()
                query.again = True
                self._place(query)
            else:
                self.fail(query, reason, network)

    def close(self) -> None:
        """Close all connections. What is on its way ends without a call of `complete` or `expire`."""
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            for query in list(connection.queries.values()):
                query.end()
            connection.abort()


class _Pool:
    """The connections to one server."""

    __slots__ = ("connections", "failed")

    def __init__(self) -> None:
        self.connections: list[_Connection] = []  # those that take questions
        #: a connection could not be made: until when none is tried, why, and whether because of an error of the network
        self.failed: tuple[float, str, bool] | None = None


class _StreamQuery:
    """A query sent, or to be sent, over a connection."""

    __slots__ = ("again", "asked", "connection", "ended", "forward", "ident", "overdue", "question", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.question = message.own_question(forward.query)
        self.connection: _Connection | None = None
        self.ident = b""
        self.asked = 0.0  # when
        self.again = False  # asked once more, after the first connection broke
        self.overdue = False
        self.ended = False

    def leave(self) -> None:
        """Wait on its connection no longer."""
        connection, self.connection = self.connection, None
        if connection is not None:
            del connection.queries[self.ident]
            connection.query_left()

    def end(self) -> None:
        """Wait no longer at all."""
        self.ended = True
        self.timer.cancel()
        self.leave()


class _Connection(asyncio.Protocol):
    """One connection to a server, TLS included."""

    def __init__(self, owner: Pipelines, server: Server, pool: _Pool, layer: Layer | None) -> None:
        self.server = server
        self.pool = pool
        self.protocol = "TLS" if layer else "TCP"
        self.queries: dict[bytes, _StreamQuery] = {}  # by ID
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done when questions may be sent
        self.last = 0.0  # when octets came
        self.of_use = False  # it has brought an answer
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._layer = layer
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, _StreamQuery] = {}  # to be sent, by the identity of their Query
        self._flushing = False
        self._buffer = bytearray()
        self._retired = False  # it takes no more questions
        self._ended = False
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether it takes no more questions for now."""
        unsent = self._transport.get_write_buffer_size() if self._transport else 0
        return len(self.queries) >= MAX_QUESTIONS or len(self._waiting) >= 2 * MAX_QUESTIONS or unsent > MAX_UNSENT

    @property
    def missing(self) -> str:
        """What the server has not done, while the connection is being made."""
        return "did not finish the TLS handshake" if self._transport else "did not accept a connection"

    # ── questions ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, query: _StreamQuery) -> None:
        """Send a query with the others of this turn of the loop, as soon as the connection is made."""
        if (overdue := self._waiting.pop(id(query.forward.query), None)) is not None:  # an earlier try of the same question
            self._owner.fail(overdue, self.missing, network=False)
        while (ident := secrets.token_bytes(2)) in self.queries:
            pass
        query.connection, query.ident, query.asked = self, ident, self._loop.time()
        self.queries[ident] = query
        self._waiting[id(query.forward.query)] = query
        if self.opened.done():
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        waiting, self._waiting = self._waiting, {}
        if self._ended or self._transport is None:
            return
        data = bytearray()
        for query in waiting.values():
            if query.connection is self:
                forward = query.forward
                ask = message.ask_in_private if self._layer else message.ask
                wire = ask(forward.query, int.from_bytes(query.ident), edns=forward.edns)
                data += len(wire).to_bytes(2) + wire
        if data and self._layer is not None:
            self._layer.send(bytes(data))
            self._transport.write(self._layer.take())
        elif data:
            self._transport.write(data)

    def query_left(self) -> None:
        """A query no longer waits here. A connection without one is closed when it is retired or has been idle for long."""
        if self.queries or self._ended:
            return
        self._idle_since = self._loop.time()
        if self._retired:
            self._finish()
        elif self._idle_timer is None:
            self._idle_timer = self._loop.call_later(IDLE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        self._idle_timer = None
        remaining = self._idle_since + IDLE_SECONDS - self._loop.time()
        if self.queries:
            return
        if remaining > 0:
            self._idle_timer = self._loop.call_later(remaining, self._close_idle)
        else:
            self.retire()

    # ── beginning and end ──────────────────────────────────────────────────────────────────────────────────────────────

    def retire(self) -> None:
        """Take no more questions; close when those on it have ended."""
        self._retired = True
        if self in self.pool.connections:
            self.pool.connections.remove(self)
        if not self.queries:
            self._finish()

    def _finish(self) -> None:
        """Close in order: TLS announces that no more comes."""
        if self._transport is not None and self._layer is not None and self._layer.ready:
            self._layer.end()
            self._transport.write(self._layer.take())
        self.broken("")

    def abort(self) -> None:
        """Close at once; its questions are asked on another connection."""
        if self._transport is not None:
            self._transport.abort()
        self.broken("")

    def broken(self, reason: str, *, network: bool = True) -> None:
        """End. `reason`: what the server did wrong, with it as the subject of the sentence; empty when it did nothing wrong."""
        if self._ended:
            return
        self._ended = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._transport is not None:
            self._transport.close()
        self._owner.lost(self, reason, network)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._ended:
            self._transport.abort()
        elif self._layer is None:
            self._ready()
        else:
            self._layer.begin(self._loop.time())
            self._transport.write(self._layer.take())

    def _ready(self) -> None:
        self.opened.set_result(None)
        self._flush_soon()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self.last = self._loop.time()
        if self._layer is not None:
            data = self._decrypted(self._layer, data)
        self._buffer += data
        at, end = 0, len(self._buffer)
        while end - at >= 2 and not self._ended:
            size = int.from_bytes(self._buffer[at : at + 2])
            if end - at - 2 < size:
                break
            packet = bytes(self._buffer[at + 2 : at + 2 + size])
            at += 2 + size
            self._owner.received(self, packet)
        del self._buffer[:at]
        if self._layer is not None and self._layer.ended:
            self.eof_received()

    def _decrypted(self, layer: Layer, data: bytes) -> bytes:
        """The octets in clear text. What TLS itself has to answer is sent."""
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
        when = "without an answer" if self.opened.done() else "during the handshake"
        self.broken(f"closed the {self.protocol} connection {when}")

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(error, OSError):
            self.broken(_reason(error, self.protocol))
        else:
            self.eof_received()
        if self._layer is not None and self._layer.ready:
            self._owner.trust.remember(self.server, self._layer)


def _reason(error: OSError, protocol: str) -> str:
    """The kernel's text for an error: asyncio puts words of its own around it."""
    return f"over {protocol}: {(os.strerror(error.errno) if error.errno else str(error)).lower()}"
