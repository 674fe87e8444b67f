"""One connection to an upstream over TCP or TLS: questions out, messages in, from its handshake to its end (RFC 7766).

Questions of one turn of the loop leave together. Over TLS no question is sent before the server has proven its name, and each
question is a record of its own: dnsdist up to 1.7 answers some of the questions in a record and forgets the rest. What follows
from an answer or from the end of a connection is decided by its owner (`pipeline`).
"""

import asyncio
import os
import secrets
import ssl
from typing import Protocol, cast

from embargo.daemon.resolve.tls import Layer, words
from embargo.dns import message
from embargo.dns.questions import Forward
from embargo.dns.upstream import Server

MAX_QUESTIONS = 1000  # on one connection
IDLE_SECONDS = 20.0  # for which a connection without a question is kept; Unbound keeps it for 30, dnsdist for 2
MAX_UNSENT = 1 << 18  # octets a server may leave unread


class Owner(Protocol):
    """What a connection reports to."""

    def received(self, connection: "Connection", packet: bytes) -> None:
        """A whole message came."""

    def replaced(self, query: "StreamQuery", reason: str) -> None:
        """A later try of the same question took the place of this one, which was not sent."""

    def lost(self, connection: "Connection", reason: str, network: bool) -> None:
        """It has ended; its queries are still in `queries`. An empty reason: it was no longer needed."""

    def proven(self, connection: "Connection", layer: Layer) -> None:
        """It ended after a complete handshake: the next one may resume its session."""


class StreamQuery:
    """A query sent, or to be sent, over a connection."""

    __slots__ = ("again", "asked", "connection", "ended", "forward", "ident", "overdue", "question", "timer")

    timer: asyncio.TimerHandle

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.question = message.own_question(forward.query)
        self.connection: Connection | None = None
        self.ident = b""
        self.asked = 0.0  # when
        self.again = 0  # times it was asked again, because its connection had ended
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


class Connection(asyncio.Protocol):
    """One connection to a server, TLS included."""

    def __init__(self, owner: Owner, server: Server, layer: Layer | None, source: str) -> None:
        self.server = server
        self.source = source  # the address of this machine
        self.protocol = "TLS" if layer else "TCP"
        self.queries: dict[bytes, StreamQuery] = {}  # by ID
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done when questions may be sent
        self.last = 0.0  # when octets came
        self.asked = 0  # questions
        self.answered = 0
        self.stalled = False  # a question is overdue, and nothing has come for long
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._layer = layer
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, StreamQuery] = {}  # to be sent, by the identity of their Query
        self._flushing = False
        self._buffer = bytearray()
        self.retired = False  # it takes no more questions
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

    def ask(self, query: StreamQuery) -> None:
        """Send a query with the others of this turn of the loop, as soon as the connection is made."""
        other = self._waiting.get(id(query.forward.query))  # another try of the same question
        if other is not None and other.forward.token > query.forward.token:  # which comes from a connection that has ended
            self._owner.replaced(query, self.missing)
            return
        if other is not None:
            del self._waiting[id(query.forward.query)]
            self._owner.replaced(other, self.missing)
        while (ident := secrets.token_bytes(2)) in self.queries:
            pass
        query.connection, query.ident, query.asked = self, ident, self._loop.time()
        self.queries[ident] = query
        self._waiting[id(query.forward.query)] = query
        self.asked += 1
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
        ask = message.ask_in_private if self._layer else message.ask
        data = bytearray()
        for query in waiting.values():
            if query.connection is self:
                wire = ask(query.forward.query, int.from_bytes(query.ident), edns=query.forward.edns)
                data += self._encrypted(len(wire).to_bytes(2) + wire)
        if data:
            self._transport.write(data)

    def _encrypted(self, data: bytes) -> bytes:
        """Octets as they are sent: over TLS as a record of their own."""
        if self._layer is None:
            return data
        self._layer.send(data)
        return self._layer.take()

    def query_left(self) -> None:
        """A query no longer waits here. A connection without one is closed when it is retired or has been idle for long."""
        if self.queries or self._ended:
            return
        self._idle_since = self._loop.time()
        if self.retired:
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
        self.retired = True
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
        """Begin the TLS handshake, or send the waiting queries (asyncio.Protocol)."""
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
        """Decrypt the octets and hand over each complete response (RFC 7766 section 8)."""
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
        """The server closed the connection: it is broken (asyncio.Protocol)."""
        when = "without an answer" if self.opened.done() else "during the handshake"
        self.broken(f"closed the {self.protocol} connection {when}")

    def connection_lost(self, error: Exception | None) -> None:
        """Free what the connection held; an error breaks it (asyncio.Protocol)."""
        if isinstance(error, OSError):
            self.broken(error_text(error, self.protocol))
        else:
            self.eof_received()
        if self._layer is not None and self._layer.ready:
            self._owner.proven(self, self._layer)


def error_text(error: OSError, protocol: str) -> str:
    """The kernel's text for an error: asyncio puts words of its own around it."""
    return f"over {protocol}: {(os.strerror(error.errno) if error.errno else str(error)).lower()}"
