"""Questions to upstreams over TCP and TLS: connections that are kept, many questions on each, answers in any order (RFC 7766).

A server has one connection, and a second one while many questions wait on the first. What was not answered on a connection
that ends is asked again on another one (RFC 7766 section 6.2.4), as long as the server answers anything. From such ends it is
learnt how many questions a server answers on a connection, and how many connections it takes: one that closes after each
answer gets many connections with one question each. A connection where nothing comes any more is asked nothing else. When no
connection can be made, its questions fail, and so do all others to that server for a moment.
"""

import asyncio
import math
from collections.abc import Callable, Iterator

from embargo.daemon.resolve.connection import MAX_QUESTIONS, Connection, StreamQuery, error_text
from embargo.daemon.resolve.source import source
from embargo.daemon.resolve.tls import Layer, Trust
from embargo.dns import response
from embargo.dns.questions import Forward
from embargo.dns.upstream import PATIENCE, Server

CONNECTIONS = 2  # to one server, of each worker: servers grant a client a handful (Unbound ten to all together)
MOST_CONNECTIONS = 32  # to a server that closes each after a few answers
SHARE = 64  # questions on one connection before a second is made: some servers answer one after the other
SETUP_SECONDS = 4.0  # for a connection and its TLS handshake
RETRY_SECONDS = 0.5  # without a new attempt after a connection could not be made
LEARNT_SECONDS = 300.0  # for which is remembered how many questions and connections a server takes
MOST_AGAIN = 5  # connections on which one question may be left unanswered


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
        self._tasks: set[asyncio.Task[None]] = set()
        self.trust = Trust()
        self.mismatched = 0

    def trust_authorities(self, authorities: str) -> None:
        """Check certificates by these authorities (PEM). Questions on connections checked by others are asked again."""
        if authorities == self.trust.authorities:
            return
        self.trust = Trust(authorities)
        for pool in [pool for server, pool in self._pools.items() if server.tls]:
            pool.failed = None
            self._abandon(list(pool.connections))

    def readdress(self) -> None:
        """Addresses or routes of this machine may have changed: leave connections from an address that is no longer used."""
        for server, pool in list(self._pools.items()):  # questions that fail may be asked elsewhere
            self._readdress(server, pool)

    def _readdress(self, server: Server, pool: "_Pool") -> None:
        if pool.connections and (now_from := source(server)):
            self._abandon([each for each in pool.connections if each.source != now_from])

    def _abandon(self, connections: list[Connection]) -> None:
        """Close connections at once; their questions are asked again on others."""
        for connection in connections:
            connection.retired = True  # so that no question of a closed one goes to another old one
        for connection in connections:
            connection.abort()

    def start(self, forward: Forward) -> None:
        """Ask. Does not raise: an error of the network comes by `expire`."""
        query = StreamQuery(forward)
        query.timer = self._loop.call_later(forward.wait, self._late, query)
        self._place(query)

    def _pool(self, server: Server) -> "_Pool":
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = _Pool()
        return pool

    def _place(self, query: StreamQuery) -> None:
        """Ask on the connection with the fewest questions or on a new one, or queue the query, or fail."""
        server = query.forward.server
        pool = self._pool(server)
        now = self._loop.time()
        if pool.failed is not None:
            until, reason, network = pool.failed
            if now < until:
                self._loop.call_soon(self.fail, query, reason, network)
                return
            pool.failed = None
        best = min(pool.usable(now), key=lambda each: len(each.queries), default=None)
        if (best is None or len(best.queries) >= SHARE) and pool.has_room(now):
            best = self._connect(server, pool)
        if best is not None:
            best.ask(query)
            self._retire_exhausted(pool)
        elif len(pool.queue) < MAX_QUESTIONS:
            self._queue(pool, query)
        else:
            self._loop.call_soon(self.fail, query, _TOO_MANY, False)

    def _queue(self, pool: "_Pool", query: StreamQuery) -> None:
        """Have a query wait for a connection, in place of an earlier try of the same question."""
        other = pool.queue.pop(id(query.forward.query), query)
        earlier, later = sorted((other, query), key=lambda each: each.forward.token)
        pool.queue[id(query.forward.query)] = later
        if earlier is not later:
            self.replaced(earlier, _TOO_MANY)

    def _retire_exhausted(self, pool: "_Pool") -> None:
        """Close the connections on which the server answers no more questions, as soon as those on them are answered."""
        for connection in pool.exhausted():
            connection.retire()

    def _place_queued(self, pool: "_Pool") -> None:
        now = self._loop.time()
        while pool.queue and (pool.has_room(now) or any(pool.usable(now))):
            query = pool.queue.pop(next(iter(pool.queue)))
            if not query.ended:
                self._place(query)

    def _connect(self, server: Server, pool: "_Pool") -> Connection:
        layer = self.trust.open(server, self._loop.time()) if server.tls else None
        connection = Connection(self, server, layer, source(server))
        pool.connections.append(connection)
        task = self._loop.create_task(self._open(connection), name=f"connection to {server}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection

    async def _open(self, connection: Connection) -> None:
        """Connect, and wait for the TLS handshake. What fails ends the connection."""
        address, port = connection.server.address, connection.server.port
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                await self._loop.create_connection(lambda: connection, address, port)
                await connection.opened
        except TimeoutError:
            connection.broken(f"{connection.missing} in {SETUP_SECONDS:.1f} s", network=False)
        except OSError as error:
            connection.broken(error_text(error, connection.protocol))

    # ── the end of a question ──────────────────────────────────────────────────────────────────────────────────────────

    def received(self, connection: Connection, packet: bytes) -> None:
        """A whole message came on a connection."""
        query = connection.queries.get(packet[:2])
        if query is None or not response.matches(packet, int.from_bytes(packet[:2]), query.question):
            self.mismatched += 1
            return
        connection.answered += 1
        query.end()
        self._complete(query.forward.token, packet)
        if (pool := self._pool(connection.server)).queue:
            self._place_queued(pool)

    def fail(self, query: StreamQuery, reason: str, network: bool) -> None:
        """End a query without a response."""
        if not query.ended:
            query.end()
            self._expire(query.forward.token, reason, network)

    def replaced(self, query: StreamQuery, reason: str) -> None:
        """End a query that was not sent, because a later try of the same question took its place."""
        self.fail(query, reason, network=False)

    def _late(self, query: StreamQuery) -> None:
        """No response came in time. It is still awaited, but where nothing comes any more nothing else is asked."""
        query.overdue = True
        self._readdress(query.forward.server, self._pool(query.forward.server))
        if query.ended:  # for another try of its question, or with its connection
            return
        connection, wait = query.connection, query.forward.wait
        if connection is None:
            text = _TOO_MANY
        elif connection.opened.done():
            text = f"did not answer over {connection.protocol} in {wait:.1f} s"
            if max(connection.last, query.asked) <= self._loop.time() - wait / 2:
                connection.stalled = True
                connection.retire()
        else:
            text = f"{connection.missing} in {wait:.1f} s"
        query.timer = self._loop.call_later(PATIENCE, self.fail, query, text, False)
        self._overdue(query.forward.token, text)

    # ── the end of a connection ────────────────────────────────────────────────────────────────────────────────────────

    def lost(self, connection: Connection, reason: str, network: bool) -> None:
        """A connection has ended: its questions are asked again, or fail. An empty reason: it was no longer needed."""
        pool = self._pool(connection.server)
        pool.connections.remove(connection)
        others = sum(each.opened.done() and not each.stalled for each in pool.connections)
        unanswered, opened = list(connection.queries.values()), connection.opened.done()
        # a question that crosses the end of an idle connection says nothing about the server
        crossed = connection.answered and all(query.asked > connection.last for query in unanswered)
        if reason and unanswered and not crossed and (opened or others):
            pool.learn(connection, others, self._loop.time())
            self._retire_exhausted(pool)
        if not opened:
            connection.opened.cancel()
            if reason and not others:
                pool.failed = (self._loop.time() + RETRY_SECONDS, reason, network)
        hopeful = connection.answered or others or (opened and len(unanswered) > 1)
        for query in unanswered:
            query.again += bool(reason)
            if not reason or (hopeful and query.again <= MOST_AGAIN):
                query.leave()
                self._place(query)
            else:
                self.fail(query, reason, network)
        self._place_queued(pool)

    def proven(self, connection: Connection, layer: Layer) -> None:
        """The next connection to this server may resume the session of this one."""
        self.trust.remember(connection.server, layer)

    def close(self) -> None:
        """Close all connections. What is on its way ends without a call of `complete` or `expire`."""
        for task in self._tasks:
            task.cancel()
        for pool in self._pools.values():
            for query in [*pool.queue.values(), *[query for each in pool.connections for query in each.queries.values()]]:
                query.end()
            for connection in list(pool.connections):
                connection.abort()


_TOO_MANY = "has left too many questions unanswered"


class _Pool:
    """The connections to one server, and what is known of how it uses them."""

    __slots__ = ("_learnt_until", "_per_connection", "_width", "connections", "failed", "queue")

    def __init__(self) -> None:
        self.connections: list[Connection] = []  # retired ones too
        self.queue: dict[int, StreamQuery] = {}  # to be asked when a connection takes them, by the identity of their Query
        #: a connection could not be made: until when none is tried, why, and whether because of an error of the network
        self.failed: tuple[float, str, bool] | None = None
        self._per_connection: float = math.inf  # questions
        self._width = MOST_CONNECTIONS
        self._learnt_until = math.inf

    def usable(self, now: float) -> Iterator[Connection]:
        """The connections that take another question."""
        self._forget(now)
        for each in self.connections:
            if not (each.retired or each.full):
                yield each

    def exhausted(self) -> list[Connection]:
        """The connections that have had as many questions as the server answers on one."""
        if self._per_connection == math.inf:  # nearly always
            return []
        return [each for each in self.connections if each.asked >= self._per_connection and not each.retired]

    def has_room(self, now: float) -> bool:
        """Whether another connection may be made."""
        self._forget(now)
        if self._per_connection < math.inf:
            return sum(not each.stalled for each in self.connections) < self._width
        return sum(not each.retired for each in self.connections) < min(CONNECTIONS, self._width)

    def learn(self, ended: Connection, others: int, now: float) -> None:
        """The server has ended a connection with unanswered questions, while it had so many others."""
        if ended.answered or not others:
            self._per_connection = min(self._per_connection, max(ended.answered, 1))
        else:
            self._width = min(self._width, others)
        self._learnt_until = now + LEARNT_SECONDS

    def _forget(self, now: float) -> None:
        if now >= self._learnt_until:
            self._per_connection, self._width, self._learnt_until = math.inf, MOST_CONNECTIONS, math.inf
