"""One resolver process as the supervisor starts it, with sockets on loopback; and a client that asks it packet by packet."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import dns.message
import dns.rcode

from embargo import accelerator, records
from embargo.daemon.process import channel
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Channel, Events, Failed
from embargo.daemon.process.outbox import Ledger
from embargo.daemon.process.sightings import TO_GUARDIAN, Flush, Ready
from embargo.daemon.resolve import orders
from embargo.daemon.resolve.orders import Adopt, Counted, Flushed, Judged, Judgement, Settings, Start, Stats, Stop
from embargo.records import Done
from support import schema
from support.playbook import compiled, query

R = TypeVar("R")

PATIENCE = 20.0  # seconds until something has gone wrong
LOOPBACK = ("127.0.0.1", "::1")


def bound(addresses: Sequence[str]) -> list[socket.socket]:
    """UDP and TCP sockets on these addresses, all with one port, which no other socket uses."""
    for _ in range(100):
        found: list[socket.socket] = []
        port = 0
        try:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    found.append(sock := socket.socket(family, kind))
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    if kind == socket.SOCK_STREAM:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((address, port))
                    port = sock.getsockname()[1]
                    if kind == socket.SOCK_STREAM:
                        sock.listen(1024)
        except OSError:
            for sock in found:
                sock.close()
        else:
            return found
    raise AssertionError("no port is free over UDP and TCP")


def settings(**changed: Any) -> Settings:
    """What a resolver needs to know: the usual, with these changed. Lists become tuples."""
    usual: dict[str, Any] = {
        "allow_from": ("127.0.0.0/8", "::1/128"), "block_mode": "nxdomain", "block_ttl": 10, "upstream": (), "forward": {},
        "hosts": {}, "local": (), "tls_ca": "", "strip_ech": False, "rebind": False, "rebind_except": (),
        "log_names": "blocked", "learn": False,
    }  # fmt: skip
    return records.decode(Settings, records.encode(usual | changed))


class Worker:
    """`start` and `policy` take entries and options of `playbook.compiled`, and keys of [dns] under `dns`."""

    def __init__(
        self, addresses: Sequence[str] = LOOPBACK, sockets: Sequence[socket.socket] = (), accelerated: str = "native"
    ) -> None:
        sockets = sockets or bound(addresses)
        self.port = int(sockets[0].getsockname()[1])
        self.sockets = [("udp" if sock.type == socket.SOCK_DGRAM else "tcp", sock) for sock in sockets]
        self._channel, theirs = channel.pair((Events, Failed, Done, Counted, Flushed, Judged))
        self._ledger = Ledger.make()
        command = [sys.executable, "-m", "embargo.daemon.resolve.resolver", str(theirs.fileno()), str(self._ledger)]
        with theirs:
            environment = {**os.environ, accelerator.VARIABLE: accelerated}
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno(), self._ledger], env=environment)
        self._number = 0
        self._generation = 0
        self._guardian: Channel | None = None
        self.news: list[Any] = []

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, *entries: str, dns: dict[str, Any] | None = None, **options: Any) -> Self:
        kinds, socks = tuple(kind for kind, _ in self.sockets), [sock.fileno() for _, sock in self.sockets]
        with self._judgement(entries, options) as (judgement, fd):
            assert self.ask(Start(judgement, settings(**dns or {}), kinds, None, inside=False), [fd, *socks]) == Done()
        for _, sock in self.sockets:
            sock.close()
        return self

    def policy(self, *entries: str, dns: dict[str, Any] | None = None, **options: Any) -> Any:
        with self._judgement(entries, options) as (judgement, fd):
            return self.ask(Adopt(judgement, settings(**dns) if dns is not None else None), [fd])

    @contextlib.contextmanager
    def _judgement(self, entries: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[Judgement, int]]:
        """(the next judgement, the descriptor of its image)."""
        octets, board = compiled(*entries, **options)
        self._generation += 1
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(octets)
            yield Judgement(self._generation, board, ()), file.fileno()

    def ask(self, order: Any, fds: Sequence[int] = ()) -> Any:
        """Give an order and wait for the answer; what comes meanwhile is news."""
        self._number += 1
        self._channel.send(order, fds, self._number)
        return self.take(lambda record, number: number == self._number, f"an answer to {order}")

    def take(self, wanted: Callable[[Any, int | None], bool], what: str) -> Any:
        """The next record that is wanted."""
        return self._take(self._channel, wanted, what)

    def _take(self, channel: Channel, wanted: Callable[[Any, int | None], bool], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if select.select([channel.fileno()], [], [], 0.1)[0]:
                received = channel.receive()
                assert received is not None, "the worker is gone"
                if wanted(received.record, received.number):
                    return received.record
                self.news.append(received.record)
        raise AssertionError(f"not within {PATIENCE} s: {what}")

    # ── as a guardian ────────────────────────────────────────────────────────────────────────────────────────────────

    def meet(self) -> Marks:
        """Be a guardian that the worker speaks to; what is set in the page is blocked because of a name."""
        ours, theirs = channel.pair(TO_GUARDIAN)
        if self._guardian is not None:
            self._guardian.close()
        self._guardian = ours
        page = Marks.make()
        reading = Marks.for_reading(page)
        with theirs:
            self.ask(orders.Meet(), [theirs.fileno(), reading])
        marks = Marks(page, write=True)
        os.close(reading)
        os.close(page)
        return marks

    def to_guardian(self, kind: type[R]) -> R:
        """The next record of this type that the worker sends to the guardian."""
        assert self._guardian is not None
        found: R = self._take(self._guardian, lambda record, _: isinstance(record, kind), f"{kind.__name__} for the guardian")
        return found

    def ready(self, number: int) -> None:
        assert self._guardian is not None
        self._guardian.send(Ready(number))

    def flush(self, number: int) -> None:
        """Ask for the addresses that it has answered but not sent yet."""
        assert self._guardian is not None
        self._guardian.send(Flush(number))

    def stats(self) -> dict[str, Any]:
        counted: dict[str, Any] = records.encode(self.ask(Stats()))
        return counted

    def stop(self) -> list[dict[str, Any]]:
        """End it; all events that it handed over."""
        self.ask(Stop())
        assert self.process.wait(PATIENCE) == 0
        return self.events()

    def events(self) -> list[dict[str, Any]]:
        lines = b"".join(record.lines for record in self.news if isinstance(record, Events))
        return [schema.read(line) for line in lines.splitlines()]

    def hang_up(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._channel.close()
        if self._guardian is not None:
            self._guardian.close()
        os.close(self._ledger)
        for _, sock in self.sockets:
            sock.close()

    # ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def udp(self, address: str = "127.0.0.1", source: str = "") -> socket.socket:
        """A client's socket: what it receives comes from the asked address or not at all."""
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE)
        if source:
            sock.bind((source, 0))
        sock.connect((address, self.port))
        return sock

    def tcp(self, address: str = "127.0.0.1") -> socket.socket:
        sock = socket.create_connection((address, self.port), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def asked(self, packet: bytes, address: str = "127.0.0.1") -> dns.message.Message:
        with self.udp(address) as sock:
            sock.send(packet)
            return dns.message.from_wire(sock.recv(4096))

    def dig(self, *words: str, address: str = "127.0.0.1") -> str:
        command = ["dig", f"@{address}", "-p", str(self.port), "+tries=1", "+time=8", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2) + packet


def read(sock: socket.socket) -> bytes:
    """One message of a TCP stream; empty at its end."""
    head = sock.recv(2, socket.MSG_WAITALL)
    return sock.recv(int.from_bytes(head), socket.MSG_WAITALL) if head else b""


def is_closed(sock: socket.socket) -> bool:
    """The other side has closed the connection, and sent nothing before that."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def addresses(found: dns.message.Message) -> list[str]:
    """All records of the answer section, as text."""
    return [str(rdata) for rrset in found.answer for rdata in rrset]


def answered(worker: Worker, name: str = "free.test") -> list[str]:
    """The records that a query for addresses of this name is answered with; the rcode must be NOERROR."""
    found = worker.asked(query(name))
    assert found.rcode() == dns.rcode.NOERROR, found
    return addresses(found)
