"""An upstream on loopback that does what a script says: late, wrong, truncated, silent, torn. Real sockets."""

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset


class Asked(NamedTuple):
    """One query as it came."""

    message: dns.message.Message
    wire: bytes
    port: int  # the asker's
    tcp: bool
    address: str = ""  # the asker's


class Late(NamedTuple):
    """Sent after so many seconds, over UDP."""

    seconds: float
    wire: bytes


class Elsewhere(NamedTuple):
    """Sent from another port than the asked one."""

    wire: bytes


Script = Callable[[Asked], "Sequence[bytes | Late | Elsewhere]"]  # what is sent back, in this order


def right(asked: Asked, address: str = "192.0.2.80", ttl: int = 300) -> bytes:
    """The answer that a good server gives: every name has one address, and nothing else."""
    made = dns.message.make_response(asked.message)
    made.flags |= dns.flags.RA
    if asked.message.question[0].rdtype == dns.rdatatype.A:
        made.answer.append(dns.rrset.from_text(asked.message.question[0].name, ttl, "IN", "A", address))
    return made.to_wire()


def good(asked: Asked) -> list[bytes]:
    """The script of a good server."""
    return [right(asked)]


def _one_port(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A TCP and a UDP socket on one port, which nobody else may have for either."""
    for _ in range(100):
        tcp, udp = socket.create_server((address, port)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind((address, tcp.getsockname()[1]))
        except OSError:
            tcp.close()
            udp.close()
        else:
            return tcp, udp
    raise AssertionError("no port is free over UDP and TCP")


class Upstream:
    """UDP and TCP on one port, any if none is named; `script` decides."""

    def __init__(self, script: Script, port: int = 0, address: str = "127.0.0.1") -> None:
        self.script = script
        self.asked: list[Asked] = []
        self._tcp, self._udp = _one_port(address, port)
        self.port = int(self._tcp.getsockname()[1])
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sock in (self._udp, self._tcp):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _note(self, wire: bytes, peer: tuple[str, int], tcp: bool) -> Sequence[bytes | Late | Elsewhere]:
        asked = Asked(dns.message.from_wire(wire), wire, peer[1], tcp, peer[0])
        self.asked.append(asked)
        return self.script(asked)

    def _serve_udp(self) -> None:
        with suppress(OSError):
            while True:
                wire, peer = self._udp.recvfrom(4096)
                if not wire:
                    return
                for reply in self._note(wire, peer, tcp=False):
                    self._send(reply, peer)

    def _send(self, reply: bytes | Late | Elsewhere, peer: tuple[str, int]) -> None:
        match reply:
            case Late(seconds, wire):
                timer = threading.Timer(seconds, self._send, (wire, peer))
                timer.daemon = True
                timer.start()
            case Elsewhere(wire):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(wire, peer)
            case bytes():
                with suppress(OSError):  # it may be closed by now
                    self._udp.sendto(reply, peer)

    def _serve_tcp(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._tcp.accept()
                with connection, suppress(OSError):
                    length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL))
                    for reply in self._note(connection.recv(length, socket.MSG_WAITALL), peer, tcp=True):
                        assert isinstance(reply, bytes)
                        connection.sendall(len(reply).to_bytes(2) + reply)
