"""The clients of a worker: their sockets, and turns of the engine for queries that the fast path declines.

The fast path answers as fast as queries come. A query that needs the engine costs a hundred times as much, so the engine works
for TURN_SECONDS in a turn of the event loop, for one client after the other (`shares.Turns`), and the fast path has the next
turn. A client that sends more than its part fills its own queue, and the rest of its queries over UDP is dropped.
"""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable

from embargo.daemon.resolve.intake import BATCH, Drained, Intake, Listener, Packet
from embargo.daemon.resolve.selector import Selector
from embargo.daemon.resolve.stream import Connection, Streams
from embargo.dns import shares

TURN_SECONDS = 0.002  # of the engine, in a turn of the event loop
MAX_WAITING = 2048  # queries over UDP that wait for the engine, which answers them in some tenth of a second
LAST_BATCHES = 64  # of queries taken from each socket when the worker stops; in a flood the next worker takes the rest

Handle = Callable[[bytes, str, object, bool], bool]  # packet, client, peer, whether it came over UDP: whether it gets a reply


class Clients:
    """All clients. `handle` has the engine answer a query; `allows` tells which clients are answered at all."""

    def __init__(
        self, intake: Intake, selector: Selector | None, allows: Callable[[str], bool], handle: Handle, counters: Counter[str]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._intake = intake
        self._selector = selector  # the loop's, if it takes queries by itself
        self._handle = handle
        self._counters = counters
        self._listeners: list[Listener] = []
        self._turns: shares.Turns[Packet | Connection] = shares.Turns(MAX_WAITING)
        self._turn: asyncio.Handle | None = None  # the next one, if the event loop is to begin it
        self.streams = Streams(allows, self._add_turn)
        intake.watch_streams(self.streams)

    def __len__(self) -> int:
        """Queries that wait for a turn."""
        return len(self._turns)

    @property
    def unsent(self) -> int:
        """Replies over UDP that could not be sent."""
        return sum(listener.unsent for listener in self._listeners)

    def listen(self, udp: list[socket.socket], tcp: list[socket.socket]) -> None:
        """Answer clients at these sockets, which are bound."""
        for sock in udp:
            listener = Listener(sock)
            self._listeners.append(listener)
            if self._selector is None:
                self._loop.add_reader(sock, self._readable, listener)
        if self._selector is not None:
            self._selector.listen(self._listeners, self.streams, self._intake, self._taken)
        else:
            self._loop.add_reader(self.streams.epoll.fileno(), self._streams_readable)
        for sock in tcp:
            self.streams.listen(sock)

    def _readable(self, listener: Listener) -> int:
        """Take a batch of queries, and return how many."""
        drained = self._intake.drain(listener, self._loop.time(), time.time())
        self._taken(drained)
        return drained.packets

    def _streams_readable(self) -> None:
        self._taken(self._intake.take_streams(self._loop.time(), time.time()))

    def _taken(self, drained: Drained) -> None:
        """Do what the fast path has left of a batch."""
        self._counters["queries_udp"] += drained.packets
        self._counters["queries_tcp"] += drained.streamed
        self._counters["fast"] += drained.packets + drained.streamed - len(drained.declined)
        for packet in drained.declined:
            if not self._turns.add(packet.client, packet):
                self._counters["dropped_busy"] += 1
        for connection in drained.stirred:
            self.streams.settle(connection)
        self._take_turns()

    # ── turns of the engine ──────────────────────────────────────────────────────────────────────────────────────────

    def _add_turn(self, connection: Connection) -> None:
        """A connection has a query for the engine. It has one turn at a time, so connections need no limit here."""
        self._turns.add(connection.client, connection, always=True)
        if self._turn is None:
            self._turn = self._loop.call_soon(self._take_turns)

    def _take_turns(self) -> None:
        """Have the engine answer queries, of one client after the other, until its time is over; then again."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        deadline = self._loop.time() + TURN_SECONDS
        try:
            while (item := self._turns.next()) is not None:
                if isinstance(item, Connection):
                    self._converse(item)
                else:
                    self._handle(item.data, item.client, item.peer, True)
                if self._loop.time() >= deadline:
                    break
        finally:  # an error ends the turn of one query, not those of others
            if self._turns and self._turn is None:
                self._turn = self._loop.call_soon(self._take_turns)

    def _converse(self, connection: Connection) -> None:
        """The turn of a connection: the query that the fast path declined, and those behind it until the next such query."""
        now = self._loop.time()
        if connection.complete and not connection.lost:
            self._counters["queries_tcp"] += 1
            connection.since = now
            if not self._answered(connection):
                connection.in_flight -= 1
                connection.end()
        stirred: list[Connection] = []
        answered = self._intake.converse(connection, now, time.time(), stirred)
        self._counters["queries_tcp"] += answered
        self._counters["fast"] += answered
        connection.waiting = False
        self.streams.settle(connection)

    def _answered(self, connection: Connection) -> bool:
        """Have the engine answer the next query of a connection, which ends if that raises. Whether it gets a reply."""
        try:
            return self._handle(connection.next_query(), connection.client, connection, False)
        except BaseException:
            connection.lost, connection.waiting = True, False
            self.streams.settle(connection)
            raise

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def stop_listening(self) -> None:
        """Take the queries that have come, and no more."""
        if self._selector is not None:
            self._selector.leave()
        else:
            self._loop.remove_reader(self.streams.epoll.fileno())
        for listener in self._listeners:
            if self._selector is None:
                self._loop.remove_reader(listener.sock)
            for _ in range(LAST_BATCHES):
                if self._readable(listener) < BATCH:
                    break
        self.streams.stop_listening()

    def close(self) -> None:
        """Close all sockets."""
        if self._turn is not None:
            self._turn.cancel()
        self.streams.close()
        for listener in self._listeners:
            listener.sock.close()
