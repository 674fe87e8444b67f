"""What it costs as the work grows: names on the list, clients, workers. Embargo alone, compiled; nobody to compare with."""

import contextlib
import random
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from tools.bench import data, measure
from tools.bench.rounds import probe
from tools.bench.servers.base import ADDRESS, Running
from tools.bench.servers.embargo import Embargo
from tools.bench.servers.unbound import Upstream

NAMES = (10_000, 100_000, 1_000_000, 10_000_000)
CLIENTS = (1, 10, 100, 1_000, 10_000)
WORKERS = (1, 2)
SECONDS = 3.0
BURST = 64  # packets on their way from our own clients

Row = list[str]


class Two(Embargo):
    """Two workers, on every processor, which they share with the load."""

    name = "Embargo, two workers"
    config: ClassVar[tuple[str, str]] = ("workers = 1", "workers = 2")

    def prepare(self, names: Sequence[str]) -> None:
        super().prepare(names)
        path = self.directory / "embargo.toml"
        path.write_text(path.read_text().replace(*self.config))

    def command(self) -> list[str]:
        return ["taskset", "-a", "-c", "0-1023", *super().command()]


def run(directory: Path, most: int) -> list[Row]:
    """The table's lines. `most`: names on the longest list."""
    upstream = Upstream(_fresh(directory, "upstream"))
    upstream.prepare(())
    rows: list[Row] = []
    with upstream.running(probe(())):
        for count in (each for each in NAMES if each <= most):
            print(f"{count} names", file=sys.stderr)
            rows.append(_names(directory, data.blocked(count)))
        names = data.blocked(100_000)
        with _server(Embargo, directory, names) as (server, running):
            for clients in CLIENTS:
                print(f"{clients} clients", file=sys.stderr)
                rows.append(_clients(server, running, names, clients))
        for count, make in zip(WORKERS, (Embargo, Two), strict=True):
            print(f"{count} workers", file=sys.stderr)
            rows.append(_workers(directory, make, names, count))
    return rows


def _fresh(directory: Path, name: str) -> Path:
    made = directory / name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    return made


@contextlib.contextmanager
def _server(make: type[Embargo], directory: Path, names: Sequence[str]) -> Iterator[tuple[Embargo, Running]]:
    server = make(_fresh(directory, "server"))
    server.prepare(names)
    with server.running(probe(names)) as running:
        yield server, running


def _row(what: str, rate: float, memory: float, start: float = 0.0, again: float = 0.0) -> Row:
    return [
        what,
        f"{rate:,.0f}".replace(",", " "),
        f"{memory:.0f}",
        f"{start:.2f}" if start else "",
        f"{again:.2f}" if again else "",
    ]


def _names(directory: Path, names: Sequence[str]) -> Row:
    queries = data.write(_fresh(directory, "queries"), names, 1)
    with _server(Embargo, directory, names) as (server, running):
        first, memory = running.seconds, measure.memory(running.pid) / 2**20
        load = measure.load(running.pid, server.port, queries["blocked"], [], SECONDS)
    with server.running(probe(names)) as running:
        return _row(f"{len(names):,} names".replace(",", " "), load.per_cpu, memory, first, running.seconds)


def _workers(directory: Path, make: type[Embargo], names: Sequence[str], count: int) -> Row:
    queries = data.write(_fresh(directory, "queries"), names, 1)
    with _server(make, directory, names) as (server, running):
        load = measure.load(running.pid, server.port, queries["blocked"], [], SECONDS)
        return _row(f"{count} worker{'s' * (count > 1)}", load.per_cpu, measure.memory(running.pid) / 2**20)


def _clients(server: Embargo, running: Running, names: Sequence[str], clients: int) -> Row:
    """Blocked queries from so many addresses, each its own kind of attempt in the log."""
    draw = random.Random(f"clients {clients}")
    packets = [bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + _wire(name) + b"\0\1\0\1" for name in draw.sample(names, 200)]
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (clients + 200, max(clients + 200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(clients):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((f"127.1.{number >> 8}.{number & 255}", 0))
            sock.connect((ADDRESS, server.port))
            sock.settimeout(1.0)
            socks.append(sock)
        before, ends, answered = measure.cpu_seconds(running.pid), time.monotonic() + SECONDS, 0
        while time.monotonic() < ends:
            asking = [draw.choice(socks) for _ in range(BURST)]
            for sock in asking:
                sock.send(draw.choice(packets))
            for sock in asking:
                answered += len(sock.recv(2048)) > 0
        spent = measure.cpu_seconds(running.pid) - before
    return _row(f"{clients:,} clients".replace(",", " "), answered / max(spent, 0.01), measure.memory(running.pid) / 2**20)


def _wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0"


HEAD = ["", "blocked queries per CPU-second", "memory, MiB", "first start, s", "next start, s"]
