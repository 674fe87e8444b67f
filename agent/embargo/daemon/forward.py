"""Carrying out a Forward: a socket with a random port and a random ID per attempt, a deadline, and patience with forgeries.

The socket is connected, so the kernel accepts datagrams from the asked address and port alone; what arrives must match in
ID and question too, and whatever does not, or cannot be read, is ignored until the deadline (RFC 5452 section 9).
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from typing import Any

from embargo import message, response
from embargo.engine import Forward
from embargo.upstream import Server

MAX_DATAGRAM = 65_535


class Forwarder:
    """Asks upstreams. Each Forward ends once: when `complete(token, packet)` has use for a response, or by
    `expire(token, reason, network)`.
    """

    def __init__(self, complete: Callable[[int, bytes], bool], expire: Callable[[int, str, bool], None]) -> None:
        self._complete = complete
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._flights: dict[int, _Datagram] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.mismatched = 0

    def start(self, forward: Forward) -> None:
        if forward.tcp:
            task = self._loop.create_task(self._tcp(forward), name=f"upstream-tcp-{forward.token}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._udp(forward)

    def _udp(self, forward: Forward) -> None:
        try:
            sock = _connected(forward.server)
        except OSError as error:
            self._loop.call_soon(self._expire, forward.token, _reason(error), True)
            return
        ident = secrets.randbelow(1 << 16)
        flight = _Datagram(self, forward, sock, ident)
        self._flights[sock.fileno()] = flight
        try:
            sock.send(message.ask(forward.query, ident, edns=forward.edns))
        except OSError as error:
            self._loop.call_soon(flight.end, self._expire, forward.token, _reason(error), True)
            return
        self._loop.add_reader(
            sock.fileno(), flight.readable
        )  # by number: a selector that misses a socket describes it at length
        flight.timer = self._loop.call_later(
            forward.timeout, flight.end, self._expire, forward.token, f"did not answer in {forward.timeout:.1f} s", False
        )

    async def _tcp(self, forward: Forward) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(forward.timeout):
                reader, writer = await asyncio.open_connection(forward.server.address, forward.server.port)
                ident = secrets.randbelow(1 << 16)
                query = message.ask(forward.query, ident, edns=forward.edns)
                writer.write(len(query).to_bytes(2) + query)
                while True:
                    packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                    if response.matches(packet, ident, message.asked(forward.query)):
                        break
                    self.mismatched += 1
        except TimeoutError:
            self._expire(forward.token, f"did not answer over TCP in {forward.timeout:.1f} s", False)
        except asyncio.IncompleteReadError:
            self._expire(forward.token, "closed the TCP connection without an answer", True)
        except OSError as error:
            self._expire(forward.token, f"over TCP: {_reason(error)}", True)
        else:
            self._complete(forward.token, packet)
        finally:
            if writer is not None:
                writer.close()

    def forget(self, flight: "_Datagram") -> None:
        number = flight.sock.fileno()
        self._flights.pop(number, None)
        self._loop.remove_reader(number)

    def close(self) -> None:
        for flight in list(self._flights.values()):
            flight.end(lambda: None)
        for task in self._tasks:
            task.cancel()


class _Datagram:
    """One attempt over UDP."""

    __slots__ = ("forward", "forwarder", "ident", "question", "sock", "timer")

    def __init__(self, forwarder: Forwarder, forward: Forward, sock: socket.socket, ident: int) -> None:
        self.forwarder = forwarder
        self.forward = forward
        self.sock = sock
        self.ident = ident
        self.question = message.asked(forward.query)
        self.timer: asyncio.TimerHandle | None = None

    def readable(self) -> None:
        try:
            packet = self.sock.recv(MAX_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:  # ECONNREFUSED: nobody listens there
            self.end(self.forwarder._expire, self.forward.token, _reason(error), True)
            return
        if response.matches(packet, self.ident, self.question) and self.forwarder._complete(self.forward.token, packet):
            self.end(lambda: None)
        else:
            self.forwarder.mismatched += 1

    def end(self, then: Callable[..., None], *args: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.forwarder.forget(self)
        self.sock.close()
        then(*args)


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
