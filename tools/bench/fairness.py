"""What another client notices while one client floods the server: its slowest answers, and those that never come.

Per server and flood, one visit: the server is started, another client asks as many queries a second as a busy household, and
the flood begins. A third of its queries is for blocked names, a third for cached ones, a third for new ones. Beside the idle
TCP connections it asks over TCP, a connection per query.
"""

import os
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.bench import data, floods, measure
from tools.bench.rounds import Measure, Results, probe
from tools.bench.servers import PEERS
from tools.bench.servers.base import ADDRESS, LOAD_CPU, BenchError, Server
from tools.bench.servers.dnsmasq import Dnsmasq
from tools.bench.servers.embargo import Embargo

SERVERS: tuple[type[Server], ...] = (Embargo, *(make for make in PEERS if make is not Dnsmasq))
NAMES = 10_000  # on the list
SOURCE = "127.0.2.1"  # of the other client
RATE = 100  # its queries per second
TIMEOUT = 2.0  # seconds after which its query counts as failed
SETTLE = 1.0  # seconds of flood before it is watched
OVER_TCP = "1,000 idle TCP connections"


class Seen(NamedTuple):
    """What the other client saw: seconds of the answers, in ascending order, and the share of queries without a useful one."""

    seconds: list[float]
    failed: float


def run(directory: Path, seconds: float, rounds: int) -> Results:
    """Visit every server with every flood, in turn."""
    # what is measured is the server, not how this process, the flood and the upstream share their processor
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(2))
    names = data.blocked(NAMES)
    results = Results()
    upstream = subprocess.Popen(["taskset", "-c", str(LOAD_CPU), sys.executable, "-m", "tools.bench.scripted"])
    try:
        for number in range(1, rounds + 1):
            for flood in floods.FLOODS:
                for make in SERVERS:
                    print(f"round {number} of {rounds}: {flood}, {make.name}", file=sys.stderr)
                    seen = _visit(make, directory, names, flood, seconds)
                    slow = 1000 * measure.quantile(seen.seconds, 0.99) if seen.seconds else float("inf")
                    results.note(Measure("latency", f"p99 beside {flood}, ms"), make.name, slow)
                    results.note(Measure("failed", f"failed beside {flood}, %"), make.name, 100 * seen.failed)
    finally:
        upstream.kill()
        upstream.wait()
    return results


def _visit(make: type[Server], directory: Path, names: Sequence[str], flood: str, seconds: float) -> Seen:
    path = directory / make.name
    path.mkdir()
    server = make(path)
    server.prepare(names)
    with server.running(probe(names)):
        ask = _over_tcp if flood == OVER_TCP else _over_udp
        calm = ask(make.port, names, 1.0)  # caches are filled, and all is well without the flood
        if calm.failed:
            raise BenchError(f"{make.name} fails {calm.failed:.0%} of the queries without any flood")
        ask(make.port, names, 0.1)
        command = ["taskset", "-c", str(LOAD_CPU), sys.executable, "-m", "tools.bench.floods", flood, str(make.port), names[0]]
        with subprocess.Popen(command) as flooding:
            try:
                time.sleep(SETTLE)
                seen = ask(make.port, names, seconds)
                if flooding.poll() is not None:
                    raise BenchError(f"the flood of {flood} ended by itself")
            finally:
                flooding.kill()
    shutil.rmtree(path)
    return seen


def _queries(names: Sequence[str], count: int) -> Iterator[tuple[bytes, int]]:
    """Queries and the rcode of a useful answer."""
    tag = os.urandom(4).hex()
    for number in range(count):
        match number % 3:
            case 0:
                yield floods.query(names[number % 97]), 3
            case 1:
                yield floods.query(f"cached{number % 7}.example"), 0
            case _:
                yield floods.query(f"n{number}.{tag}.example"), 0


def _over_udp(port: int, names: Sequence[str], seconds: float) -> Seen:
    waiting: dict[bytes, tuple[float, int]] = {}
    took: list[float] = []
    asked = int(seconds * RATE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, selectors.DefaultSelector() as selector:
        sock.bind((SOURCE, 0))
        sock.connect((ADDRESS, port))
        selector.register(sock, selectors.EVENT_READ)
        began = time.monotonic()
        todo = _queries(names, asked)
        sent = 0
        while sent < asked or (waiting and time.monotonic() < began + seconds + TIMEOUT):
            due = began + sent / RATE if sent < asked else began + seconds + TIMEOUT
            if selector.select(max(due - time.monotonic(), 0)):
                reply = sock.recv(65535)
                at, rcode = waiting.pop(reply[:2], (0.0, -1))
                if reply[3] & 15 == rcode and time.monotonic() - at < TIMEOUT:
                    took.append(time.monotonic() - at)
            elif sent < asked:
                query, rcode = next(todo)
                waiting[query[:2]] = time.monotonic(), rcode
                sock.send(query)
                sent += 1
    return Seen(sorted(took), 1 - len(took) / asked)


def _over_tcp(port: int, names: Sequence[str], seconds: float) -> Seen:
    took: list[float] = []
    asked = 0
    end = time.monotonic() + seconds
    for query, rcode in _queries(names, int(seconds * RATE)):
        if time.monotonic() > end:
            break
        asked += 1
        began = time.monotonic()
        try:
            with socket.create_connection((ADDRESS, port), TIMEOUT, (SOURCE, 0)) as sock:
                sock.settimeout(TIMEOUT)
                sock.sendall(len(query).to_bytes(2) + query)
                reply = sock.recv(65535)
        except OSError:
            continue
        if len(reply) > 5 and reply[5] & 15 == rcode:
            took.append(time.monotonic() - began)
        time.sleep(max(began + 1 / RATE - time.monotonic(), 0))
    return Seen(sorted(took), 1 - len(took) / max(asked, 1))
