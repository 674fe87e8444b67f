"""A resolver process and whatever a network sends it: it answers or drops, and goes on."""

import contextlib
import random
import socket
from functools import partial
from pathlib import Path

import dns.message
import dns.rcode

from support.playbook import query
from support.upstream import Upstream, right
from support.worker import Worker, framed, read
from tools.rig import until

BLOCKED = "alipay.example"
SEEDS = (
    query(BLOCKED), query(BLOCKED, edns=False), query("www.alipay.example", "HTTPS", do=True), query("free.test", "TXT"),
    query("a" * 63 + ".test", "ANY"), query("localhost"), query("x.resolver.arpa", "SVCB"), query("use-application-dns.net"),
)  # fmt: skip
ODD = (0x00, 0x01, 0x0C, 0x29, 0x3F, 0x40, 0x80, 0xC0, 0xFF)


def mutants(count: int, seed: int) -> list[bytes]:
    """Queries with octets changed, cut out, put in and repeated; the same ones every time."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        packet = bytearray(chance.choice(SEEDS))
        for _ in range(chance.randint(0, 5)):
            at = chance.randrange(len(packet) + 1)
            match chance.randrange(5):
                case 0 if at < len(packet):
                    packet[at] = chance.choice(ODD) if chance.random() < 0.5 else chance.randrange(256)
                case 1:
                    del packet[at : at + chance.randint(1, 8)]
                case 2:
                    packet[at:at] = chance.randbytes(chance.randint(1, 8))
                case 3:
                    packet += packet[at : at + 30] * chance.choice((1, 2, 50))
                case _:
                    del packet[at:]
        found.append(bytes(packet[:4000]))
    return found


def memory(worker: Worker) -> int:
    """KiB."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_mutated_queries_are_survived() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})

        def taken(sent: int) -> bool:
            return bool(worker.stats()["counters"]["queries_udp"] == sent)

        with worker.udp() as sock:
            sock.setblocking(False)
            for sent, packet in enumerate(mutants(12_000, seed=1), start=1):
                sock.send(packet)
                if sent % 100 == 0:  # so that its queue does not overflow
                    until(partial(taken, sent), "all are taken")
                    with contextlib.suppress(BlockingIOError):
                        while sock.recv(4096):
                            pass
                if sent == 4000:
                    level = memory(worker)
        assert worker.asked(query(BLOCKED)).rcode() == dns.rcode.NXDOMAIN
        assert worker.asked(query("free.test")).rcode() == dns.rcode.NOERROR
        assert memory(worker) < level + 16 * 1024
        assert worker.process.poll() is None


def test_mutated_streams_are_survived() -> None:
    with Worker() as worker:
        worker.start(BLOCKED)
        packets = mutants(1200, seed=2)
        for first in range(0, len(packets), 3):
            with worker.tcp() as sock, contextlib.suppress(ConnectionError):
                sock.sendall(b"".join(map(framed, packets[first : first + 3])))
                sock.shutdown(socket.SHUT_WR)
                while read(sock):
                    pass
        with worker.tcp() as sock:
            sock.sendall(framed(query(BLOCKED)))
            assert dns.message.from_wire(read(sock)).rcode() == dns.rcode.NXDOMAIN
