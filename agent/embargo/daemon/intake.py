"""UDP in and out: take a batch, offer each packet to the fast path, hand back the rest."""

import socket
import struct
from typing import Any, NamedTuple

from embargo import fastpath
from embargo.cache import Cache
from embargo.fastpath import Blocked, Rules

BATCH = 64  # packets per wake-up, so that a flood on one socket does not starve the others
MAX_QUERY = 4096  # octets; no query needs more
_IP_PKTINFO = 8


class Packet(NamedTuple):
    """A query for the engine, and the way back to who sent it."""

    data: bytes
    client: str
    way: "Way"


class Way(NamedTuple):
    """Back to a UDP client, from the address that was asked."""

    listener: "Listener"
    address: Any
    ancillary: tuple[tuple[int, int, bytes], ...] = ()

    def send(self, wire: bytes) -> None:
        self.listener.send(wire, self.address, self.ancillary)


class Listener:
    """One UDP socket. Bound to a wildcard address it asks the kernel which address each query was sent to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self._wildcard = sock.getsockname()[0] in ("0.0.0.0", "::")
        if self._wildcard and sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        elif self._wildcard:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self.unsent = 0

    def send(self, wire: bytes, address: Any, ancillary: tuple[tuple[int, int, bytes], ...] = ()) -> None:
        try:
            if ancillary:
                self.sock.sendmsg([wire], ancillary, 0, address)
            else:
                self.sock.sendto(wire, address)
        except OSError:  # the client is gone, the buffer is full: UDP may lose it, the client asks again
            self.unsent += 1

    def receive(self) -> tuple[bytes, Any, tuple[tuple[int, int, bytes], ...]]:
        if not self._wildcard:
            data, address = self.sock.recvfrom(MAX_QUERY)
            return data, address, ()
        data, ancillary, _, address = self.sock.recvmsg(MAX_QUERY, 64)
        return data, address, tuple(_answer_from(*item) for item in ancillary)


def _answer_from(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The control message that makes the reply leave from the address the query was sent to (ip(7), ipv6(7))."""
    if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
        _, local, _ = struct.unpack("I4s4s", data)
        return level, kind, struct.pack("I4s4s", 0, local, bytes(4))
    return level, kind, data


def drain(listener: Listener, rules: Rules, cache: Cache, now: float) -> tuple[list[tuple[str, Blocked]], list[Packet], int]:
    """One batch: (blocked attempts, packets the fast path declined, packets taken)."""
    blocked: list[tuple[str, Blocked]] = []
    declined: list[Packet] = []
    receive, send, answer = listener.receive, listener.send, fastpath.answer
    taken = 0
    try:
        while taken < BATCH:
            data, address, ancillary = receive()
            taken += 1
            client = address[0]
            result = answer(data, client, rules, cache, now)
            if result is None:
                declined.append(Packet(data, client, Way(listener, address, ancillary)))
            elif isinstance(result, bytes):
                send(result, address, ancillary)
            else:
                send(data[:2] + result.reply, address, ancillary)
                blocked.append((client, result))
    except BlockingIOError:
        pass
    except OSError:  # an ICMP error of an earlier reply surfaces here; the socket is fine
        pass
    return blocked, declined, taken
