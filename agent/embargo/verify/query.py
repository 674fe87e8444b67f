"""DNS queries as a client's resolver sends them: one question, one parsed response, over UDP or TCP."""

import contextlib
import socket
from collections.abc import Callable
from typing import NamedTuple

import dnslib  # type: ignore[import-untyped] # ships no types

from embargo.dns import message
from embargo.names import Name

TIMEOUT, TRIES = 1.0, 2  # seconds for one response; the agent answers blocked names in microseconds
EDE = 15  # the EDNS option Extended DNS Error (RFC 8914)


class Response(NamedTuple):
    """What a resolver answers. `ede`: the info code of its Extended DNS Error, -1 without one; `text`: its extra text."""

    rcode: int
    answers: tuple[str, ...]  # as in "A 192.0.2.1"
    ede: int
    text: str


class Resolver(NamedTuple):
    """Where queries are sent. `foreign`: not a resolver of this gateway, so the gateway must intercept them and answer."""

    address: str
    port: int
    transport: str  # udp | tcp
    foreign: bool

    def __str__(self) -> str:
        place = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        return f"{self.transport} {place}"


class Querier:
    """Sends queries to one resolver. `make` calls a function that makes a socket in the client's network namespace."""

    def __init__(self, resolver: Resolver, make: Callable[[Callable[[], socket.socket]], socket.socket]) -> None:
        self.resolver = resolver
        self._make = make
        self._sock: socket.socket | None = None
        self._number = 0

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def query(self, name: bytes, qtype: int) -> Response | None:
        """The response to a question, or None if none arrives. `name`: in wire form, in the case that is sent."""
        for _ in range(TRIES):
            self._number = (self._number + 1) & 0xFFFF
            question = name + qtype.to_bytes(2) + message.IN.to_bytes(2)
            query = _query(self._number, question)
            with contextlib.suppress(OSError):
                return self._exchange(query, question)
            self.close()
        return None

    def _exchange(self, query: bytes, question: bytes) -> Response:
        sock = self._sock = self._sock or self._connected()
        if self.resolver.transport == "udp":
            sock.send(query)
            while True:
                response = _read(sock.recv(4096), query, question)
                if response is not None:
                    return response
        sock.sendall(len(query).to_bytes(2) + query)
        while True:
            response = _read(_exactly(sock, int.from_bytes(_exactly(sock, 2))), query, question)
            if response is not None:
                return response

    def _connected(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.resolver.address else socket.AF_INET
        kind = socket.SOCK_DGRAM if self.resolver.transport == "udp" else socket.SOCK_STREAM
        sock = self._make(lambda: socket.socket(family, kind))
        try:
            sock.settimeout(TIMEOUT)
            sock.connect((self.resolver.address, self.resolver.port))
        except BaseException:
            sock.close()
            raise
        return sock


def _query(number: int, question: bytes) -> bytes:
    """A query with EDNS (RFC 6891): only then may the response contain an Extended DNS Error."""
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


def _read(packet: bytes, query: bytes, question: bytes) -> Response | None:
    """Parse a response. None if it does not answer this question, compared octet by octet, with the case of the name."""
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
    return Response(int(parsed.header.rcode), answers, code, text)


def mixed_case(name: Name, number: int) -> bytes:
    """The name with the letters selected by the bits of `number` in upper case, as resolvers with 0x20 encoding send it."""
    wire = bytearray(name)
    at = 0
    while length := name[at]:
        for i in range(at + 1, at + 1 + length):
            if 0x61 <= wire[i] <= 0x7A and number >> i % 8 & 1:
                wire[i] -= 0x20
        at += 1 + length
    return bytes(wire)
