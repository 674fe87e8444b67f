"""The upstream of the fairness bench, in a process of its own: python -m tools.bench.scripted

What it answers depends on the end of the name: below `silent.example` nothing, below `failing.example` SERVFAIL, for
`large.example` 501 MX records, which fit no UDP packet, and an address for every other name.
"""

import asyncio
import os
import socket
import struct
from typing import cast

from dnslib import MX, QTYPE, RR, DNSRecord  # type: ignore[import-untyped] # ships no types

from tools.bench.servers.base import ADDRESS, UPSTREAM_PORT

SILENT, FAILING, LARGE = (
    b"".join(bytes([len(part)]) + part for part in (zone, b"example")) for zone in (b"silent", b"failing", b"large")
)
RECORDS = 501
TTL = 3600  # seconds
_ADDRESS_RECORD = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, TTL, 4) + socket.inet_aton("192.0.2.80")
_MAX_UDP = 1232  # octets


def reply(query: bytes, stream: bool) -> bytes | None:
    """The reply to a query; None for silence."""
    end = query.index(b"\0", 12) + 5
    name = query[12 : end - 4].lower()
    if name.endswith(SILENT + b"\0"):
        return None
    counts, records, rcode = b"\0\1\0\1\0\0\0\0", _ADDRESS_RECORD, 0
    if name.endswith(FAILING + b"\0"):
        counts, records, rcode = b"\0\1\0\0\0\0\0\0", b"", 2
    elif name == LARGE + b"\0":
        if stream:
            return query[:2] + _large()[2:]
        return query[:2] + b"\x83\x80\0\1\0\0\0\0\0\0" + query[12:end]
    return query[:2] + bytes([0x81, 0x80 | rcode]) + counts + query[12:end] + records


def _large() -> bytes:
    made = DNSRecord.question("large.example", "MX").reply()
    for number in range(RECORDS):
        made.add_answer(RR("large.example", QTYPE.MX, ttl=TTL, rdata=MX(f"mx{number}.large-provider.example", number)))
    return bytes(made.pack())


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own is no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if (answer := reply(data, stream=False)) is not None:
            self._transport.sendto(answer, addr)


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            if (answer := reply(query, stream=True)) is not None:
                writer.write(len(answer).to_bytes(2) + answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    """Serve until the process is ended."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((ADDRESS, UPSTREAM_PORT))
    await asyncio.get_running_loop().create_datagram_endpoint(_Datagrams, sock=sock)
    async with await asyncio.start_server(_stream, ADDRESS, UPSTREAM_PORT) as server:
        await server.serve_forever()


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # beside the flood, and it must not be what is slow
    asyncio.run(main())
