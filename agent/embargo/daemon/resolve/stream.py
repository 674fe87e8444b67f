"""DNS over TCP to clients (RFC 7766): many queries on a connection, replies in the order they are ready, everything bounded."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable

IDLE = 10.0  # seconds for one query to be taken (RFC 7766 section 6.2.3 asks for "a few" between two)
STALL = 5.0  # seconds a client has to take its last replies
TOTAL, PER_CLIENT, IN_FLIGHT = 1000, 50, 100  # connections, and queries of one that are not answered yet
UNSENT = 1 << 20  # octets a client may leave unread


class Connection:
    """Back to a TCP client."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self.in_flight = 0
        self._answered = asyncio.Event()
        self._finishing = False

    async def room(self) -> None:
        """Until another query may be on its way. What comes meanwhile waits in a bounded buffer, then with the client."""
        while self.in_flight >= IN_FLIGHT:
            self._answered.clear()
            await self._answered.wait()

    def send(self, wire: bytes) -> None:
        self.in_flight -= 1
        self._answered.set()
        if self._transport.is_closing():
            return
        self._transport.write(len(wire).to_bytes(2) + wire)
        if self._transport.get_write_buffer_size() > UNSENT:
            self._transport.abort()
        elif self._finishing:
            self.finish()

    def finish(self) -> None:
        """The client sends no more: close when the last answer is out."""
        self._finishing = True
        if self.in_flight <= 0:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(STALL, self._transport.abort)


class Streams:
    """All TCP clients. `query` takes (packet, client, connection) and says whether the client may go on."""

    def __init__(self, allows: Callable[[str], bool], query: Callable[[bytes, str, Connection], bool]) -> None:
        self._allows = allows
        self._query = query
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: Counter[str] = Counter()
        self.turned_away = 0

    async def listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._servers.append(await asyncio.start_server(self._connected, sock=sock, backlog=1024))

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = str((writer.get_extra_info("peername") or ("",))[0])  # empty: it is gone already
        full = self._clients.total() >= TOTAL or self._clients[client] >= PER_CLIENT
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
                await self._converse(reader, connection, client)
            connection.finish()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def _converse(self, reader: asyncio.StreamReader, connection: Connection, client: str) -> None:
        going = True
        while going:
            async with asyncio.timeout(IDLE):
                await connection.room()
                packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            connection.in_flight += 1
            going = self._query(packet, client, connection)
        if not going:  # it gets no answer
            connection.in_flight -= 1

    def stop_listening(self) -> None:
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """End what is still open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
