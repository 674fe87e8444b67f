"""The asking side of DNS: one question, one answer taken apart, over UDP and TCP, as a client's resolver does it."""

import contextlib
import socket
from collections.abc import Callable
from typing import NamedTuple

import dnslib  # type: ignore[import-untyped] # ships no types

from embargo.dns import message
from embargo.names import Name

SECONDS, TRIES = 1.0, 2  # for one answer; the agent answers in microseconds what it blocks
EDE = 15  # the EDNS option of RFC 8914


class Said(NamedTuple):
    """An answer. `ede` is -1 without one."""

    rcode: int
    answers: tuple[str, ...]
    ede: int
    text: str


class Way(NamedTuple):
    """How a question travels. `foreign`: to a resolver that is not this gateway's, which must be answered here all the same."""

    address: str
    port: int
    transport: str  # udp | tcp
    foreign: bool

    def __str__(self) -> str:
        place = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        return f"{self.transport} {place}"


class Asker:
    """One way of asking. `make` makes a socket where the client lives."""

    def __init__(self, way: Way, make: Callable[[Callable[[], socket.socket]], socket.socket]) -> None:
        self.way = way
        self._make = make
        self._sock: socket.socket | None = None
        self._number = 0

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ask(self, name: bytes, qtype: int) -> Said | None:
        """The answer; None when none comes."""
        for _ in range(TRIES):
            self._number = (self._number + 1) & 0xFFFF
            question = name + qtype.to_bytes(2) + message.IN.to_bytes(2)
            query = _query(self._number, question)
            with contextlib.suppress(OSError):
                return self._exchange(query, question)
            self.close()
        return None

    def _exchange(self, query: bytes, question: bytes) -> Said:
        sock = self._sock = self._sock or self._connected()
        if self.way.transport == "udp":
            sock.send(query)
            while True:
                said = _read(sock.recv(4096), query, question)
                if said is not None:
                    return said
        sock.sendall(len(query).to_bytes(2) + query)
        while True:
            said = _read(_exactly(sock, int.from_bytes(_exactly(sock, 2))), query, question)
            if said is not None:
                return said

    def _connected(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.way.address else socket.AF_INET
        kind = socket.SOCK_DGRAM if self.way.transport == "udp" else socket.SOCK_STREAM
        sock = self._make(lambda: socket.socket(family, kind))
        try:
            sock.settimeout(SECONDS)
            sock.connect((self.way.address, self.way.port))
        except BaseException:
            sock.close()
            raise
        return sock


def _query(number: int, question: bytes) -> bytes:
    """With EDNS (RFC 6891), so that the answer says why."""
    opt = b"\0" + message.RECORD.pack(message.OPT, message.MAX_UDP, 0, 0)
    return message.HEADER.pack(number, message.RD, 1, 0, 0, 1) + question + opt


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise ConnectionError("closed")
        data += chunk
    return data


def _read(packet: bytes, query: bytes, question: bytes) -> Said | None:
    """None for what is no answer to this question, octet by octet: the case of the name too."""
    head = message.HEADER.size
    if packet[:2] != query[:2] or len(packet) < head or not packet[2] & 0x80 or packet[head:][: len(question)] != question:
        return None
    try:
        parsed = dnslib.DNSRecord.parse(packet)
    except dnslib.DNSError:
        return None
    code, text = -1, ""
    for record in parsed.ar:
        if record.rtype == message.OPT:
            for option in record.rdata:
                if option.code == EDE and len(option.data) >= 2:
                    code, text = int.from_bytes(option.data[:2]), option.data[2:].decode(errors="replace")
    answers = tuple(f"{dnslib.QTYPE.get(record.rtype)} {record.rdata}" for record in parsed.rr)
    return Said(int(parsed.header.rcode), answers, code, text)


def mixed_case(name: Name, number: int) -> bytes:
    """The name with some of its letters in upper case, as resolvers with 0x20 send them."""
    wire = bytearray(name)
    at = 0
    while length := name[at]:
        for i in range(at + 1, at + 1 + length):
            if 0x61 <= wire[i] <= 0x7A and number >> i % 8 & 1:
                wire[i] -= 0x20
        at += 1 + length
    return bytes(wire)
