"""A gateway under mixed load for as long as is asked, with reloads all the while: what it loses, holds up, and grows by.

python -m tools.soak [MINUTES] [--rate QUERIES/S] [--write]. Exit status 1 when a query was lost, a verdict was wrong, or
something grew without end.

A client behind a gateway of namespaces asks for blocked names in any letter case, for cached ones and for names never asked
before, and connects to listed addresses; the configuration changes every second (another switchboard), and every 20 s a list
(everything compiled). A query counts as lost after five seconds.
"""

import argparse
import os
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from embargo import names
from embargo.cli import show
from embargo.daemon.ask import client
from embargo.daemon.host import whole
from embargo.dns import message
from embargo.errors import EmbargoError
from tools.bench import report
from tools.demo import GATEWAY, Demo
from tools.rig import Rig

LOST = 5.0  # seconds after which a query has had no answer
STALL = 0.1  # seconds that a client notices
CACHED = 200  # names
WARM = 0.1  # of the time, before memory and descriptors are compared with the end
GROWN = 1.15  # more than this by the end is growth without end: caches are full long before
BEGIN, END = "<!-- measured: `python -m tools.soak --write` -->\n", "<!-- end of soak -->\n"


@dataclass(slots=True)
class Load:
    """One client's queries, at a rate, and what came of them."""

    sock: socket.socket
    rate: float
    listed: tuple[str, ...]
    sent: int = 0
    answered: int = 0
    lost: int = 0
    stalls: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    rcodes: Counter[int] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)
    _open: dict[int, tuple[float, str, bool]] = field(default_factory=dict)
    _order: deque[tuple[float, int]] = field(default_factory=deque)

    def run(self) -> None:
        """Until `over`, and until the last answer is there or lost."""
        chance, number, due = random.Random(1), 0, time.monotonic()
        self.sock.setblocking(False)
        while not self.over.is_set() or self._open:
            now = time.monotonic()
            while due < now and not self.over.is_set():
                due = max(due + 1 / self.rate, now - 0.05)  # what could not be sent in time is not sent in a burst
                self._send(number, chance, now)
                number = (number + 1) & 0xFFFF
            self._take()
            while self._order and self._order[0][0] < now - LOST:
                _, old = self._order.popleft()
                if old in self._open and self._open[old][0] < now - LOST:
                    self.lost += 1
                    del self._open[old]
            time.sleep(0.0005)

    def _send(self, number: int, chance: random.Random, now: float) -> None:
        if number in self._open:
            return
        draw = chance.random()
        listed = draw < 0.4
        if listed:
            name = "".join(chance.choice((c.upper(), c)) for c in f"a{chance.randrange(50)}.{chance.choice(self.listed)}")
        elif draw < 0.9:
            name = f"n{chance.randrange(CACHED)}.free.example"
        else:
            name = f"u{chance.randrange(1 << 40)}.other.example"
        query = struct.pack("!6H", number, message.RD, 1, 0, 0, 1) + names.from_text(name) + b"\0\1\0\1" + _OPT
        with suppress(BlockingIOError):
            self.sock.send(query)
            self.sent += 1
            self._open[number] = now, name, listed
            self._order.append((now, number))

    def _take(self) -> None:
        while True:
            try:
                reply = self.sock.recv(4096)
            except (BlockingIOError, ConnectionRefusedError):
                return
            found = self._open.pop(int.from_bytes(reply[:2]), None)
            if found is None:
                continue
            sent, name, listed = found
            wait = time.monotonic() - sent
            self.answered += 1
            self.longest = max(self.longest, wait)
            self.stalls += wait > STALL
            rcode = reply[3] & 15
            self.rcodes[rcode] += 1
            if listed != (rcode == message.NXDOMAIN) or rcode not in (message.NOERROR, message.NXDOMAIN, message.SERVFAIL):
                self.wrong.append(f"{name}: rcode {rcode}")


_OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def processes(pid: int) -> list[int]:
    """It and all below it."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


def size(pids: list[int]) -> tuple[float, int]:
    """(MiB of memory that is theirs, descriptors) of those that are there all the time."""
    memory, descriptors = 0.0, 0
    for pid in pids:
        with suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            if found := re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE):
                memory += int(found[1]) / 1024
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    return memory, descriptors


class Soak(Demo):
    """The demo's gateway, kept busy."""

    def soak(self, seconds: float, rate: float) -> tuple[list[list[str]], bool]:
        """(rows, was everything well?)"""
        self.rig.serve_dns("local-ttl=20")
        self.rig.serve_web()
        addresses = [sample.address for sample in self.samples if sample.address]
        self.rig.own(*addresses)
        agent = self._start()
        try:
            return self._soak(agent.pid, addresses, seconds, rate)
        finally:
            agent.terminate()
            agent.wait(20)

    def _soak(self, pid: int, addresses: list[str], seconds: float, rate: float) -> tuple[list[list[str]], bool]:
        root = self.config.parent
        path, text = f"{root}/runtime/control.sock", self.config.read_text()
        listed = tuple(sample.names[0] for sample in self.samples if sample.names[0])
        load = Load(self.rig.socket("client", socket.SOCK_DGRAM, GATEWAY), rate, listed)
        load.sock.connect((GATEWAY, 53))
        thread = threading.Thread(target=load.run)
        thread.start()
        stable = [each for each in processes(pid) if each != os.getpid()]
        start, reloads, slowest, refused, reached = time.monotonic(), 0, 0.0, 0, 0
        sizes: list[tuple[float, float, int]] = []
        try:
            while (now := time.monotonic()) < start + seconds:
                # payment and telemetry are always on: what is listed there is blocked at every moment
                more = '"ads"' if reloads % 2 else '"update"'
                chosen = f'{text}\n[policy]\nfunctions = ["payment", "telemetry", {more}]\n'
                whole.replace({str(self.config): chosen.encode()}, 0o644)
                if reloads % 20 == 0:
                    whole.replace({f"{root}/block.list": f"b{reloads}.block.example\n".encode()}, 0o644)
                try:
                    answer = client.exchange(path, {"verb": "reload"})
                    refused += not answer["ok"]
                except EmbargoError:
                    refused += 1
                reloads += 1
                slowest = max(slowest, time.monotonic() - now)
                reached += self.rig.reach("client", addresses[reloads % len(addresses)]) == "open"
                sizes.append((now - start, *size(stable)))
                time.sleep(max(now + 1.0 - time.monotonic(), 0.0))
            status = client.exchange(path, {"verb": "status"})
        finally:
            load.over.set()
            thread.join(2 * LOST)
            load.sock.close()
        self.rig.run("gateway", "true")
        settled = [(memory, fds) for at, memory, fds in sizes if at >= WARM * seconds]
        early, late = (settled[: len(settled) // 5 + 1], settled[-(len(settled) // 5) - 1 :])
        memory = [sum(m for m, _ in part) / len(part) for part in (early, late)]
        descriptors = [max(fds for _, fds in part) for part in (early, late)]
        gone = len([each for each in stable if not os.path.exists(f"/proc/{each}")])
        rows = [
            ["queries asked", report.number(load.sent)],
            ["lost (no answer in 5 s)", str(load.lost)],
            ["wrong verdicts", str(len(load.wrong))],
            ["answered SERVFAIL", str(load.rcodes[message.SERVFAIL])],
            ["waited longer than 100 ms", str(load.stalls)],
            ["longest wait, ms", report.number(load.longest * 1000)],
            ["reloads, of them refused", f"{reloads}, {refused}"],
            ["longest reload, ms", report.number(slowest * 1000)],
            ["connections to listed addresses, of them open", f"{reloads}, {reached}"],
            ["memory after a tenth of the time and at the end, MiB", f"{memory[0]:.1f}, {memory[1]:.1f}"],
            ["descriptors then", f"{descriptors[0]}, {descriptors[1]}"],
            ["processes that ended", str(gone)],
            ["events lost", str(status["events"]["lost"])],
        ]
        for each in load.wrong[:5]:
            print(f"wrong: {each}", file=sys.stderr)
        grown = memory[1] > memory[0] * GROWN or descriptors[1] > descriptors[0] + 10
        return rows, not (load.lost or load.wrong or refused or reached or gone or grown)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("minutes", type=float, nargs="?", default=10.0)
    words.add_argument("--rate", type=float, default=2000.0, help="queries a second")
    words.add_argument("--write", action="store_true", help="put the figures into docs/performance.md")
    asked = words.parse_args()
    with Rig() as rig:
        rows, well = Soak(rig, rig.directory).soak(asked.minutes * 60, asked.rate)
    text = f"{asked.minutes:g} minutes at {asked.rate:g} queries a second"
    print(text)
    show.table(("WHAT", ""), rows)
    if asked.write:
        table = "\n".join(["|  |  |", "| --- | --: |", *(f"| {what} | {found} |" for what, found in rows)])
        report.write(f"{table}\n\n{text}; {report.machine()}.\n", marks=(BEGIN, END))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
