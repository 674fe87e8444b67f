"""DNS over TCP to clients (RFC 7766): many queries on a connection, replies in the order they are ready, everything bounded."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

QUERY_SECONDS = 10.0  # within which the next query must be complete (RFC 7766 section 6.2.3: idle for "a few seconds")
LAST_REPLY_SECONDS = 5.0  # that a client has to read its last replies
MAX_CONNECTIONS, PER_CLIENT = 1000, 50
IN_FLIGHT = 100  # queries of one connection that are not answered yet
MAX_UNSENT = 1 << 20  # octets a client may leave unread


class Connection:
    """A TCP client's connection, as replies see it."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self.in_flight = 0  # queries that are not answered yet
        self._answered = asyncio.Event()
        self._finishing = False

    async def room(self) -> None:
        """Wait until another query may be taken. What comes meanwhile stays in a bounded buffer, then with the client."""
        while self.in_flight >= IN_FLIGHT:
            self._answered.clear()
            await self._answered.wait()

    def send(self, wire: bytes) -> None:
        """Send a reply. A client that does not read is disconnected."""
        self.in_flight -= 1
        self._answered.set()
        if self._transport.is_closing():
            return
        self._transport.write(len(wire).to_bytes(2) + wire)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._transport.abort()
        elif self._finishing:
            self.finish()

    def finish(self) -> None:
        """The client sends no more queries: close when the last reply is sent."""
        self._finishing = True
        if self.in_flight <= 0:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(LAST_REPLY_SECONDS, self._transport.abort)


class Streams:
    """All TCP clients. `query` takes (packet, client, connection); False means that the client gets no answers."""

    def __init__(self, allows: Callable[[str], bool], query: Callable[[bytes, str, Connection], bool]) -> None:
        self._allows = allows
        self._query = query
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: Counter[str] = Counter()
        self.turned_away = 0  # connections refused: too many, or clients that are not answered

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on this socket, which is bound and not listening yet."""
        sock.setblocking(False)
        self._servers.append(await asyncio.start_server(self._connected, sock=sock, backlog=1024))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = str((writer.get_extra_info("peername") or ("",))[0])  # empty: the client has closed already
        full = self._clients.total() >= MAX_CONNECTIONS or self._clients[client] >= PER_CLIENT
        if not client or full or not self._allows(client):
            self.turned_away += 1
            writer.transport.abort()
            return
        self._clients[client] += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, client), name=f"tcp client {client}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: str) -> None:
        connection = Connection(writer.transport)
        try:
            with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                await self._take_queries(reader, connection, client)
            connection.finish()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def _take_queries(self, reader: asyncio.StreamReader, connection: Connection, client: str) -> None:
        """Take queries until the client is idle (TimeoutError), closes (IncompleteReadError), or gets no answers."""
        answered = True
        while answered:
            async with asyncio.timeout(QUERY_SECONDS):
                await connection.room()
                packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            connection.in_flight += 1
            answered = self._query(packet, client, connection)
        connection.in_flight -= 1  # the last one

    def stop_listening(self) -> None:
        """Accept no more connections."""
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """Close all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
