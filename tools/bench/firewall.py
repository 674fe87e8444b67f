"""python -m tools.bench.firewall [--quick] [--write]: the address layer beside `nft -f`, and beside mere connection tracking.

Everything happens in network namespaces of its own (tools/rig.py). Ours is the real guardian process, given a compiled image
as the supervisor gives it; nft's is a file with the same networks in one interval set, in the order of a list that nobody
sorted.
"""

import argparse
import ctypes
import ipaddress
import json
import os
import random
import re
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from embargo import names
from embargo.cli import show
from embargo.config import CT_MARK
from embargo.daemon.guard.conntrack import Conntrack
from embargo.daemon.guard.orders import Applied, Apply, Meet
from embargo.daemon.host.nftables import Nftables
from embargo.daemon.process import answered, channel
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Events, Failed
from embargo.daemon.process.outbox import Ledger
from embargo.daemon.process.sightings import TO_RESOLVER, Flushed, Leads, Pass
from embargo.firewall import nft, ruleset, spans
from embargo.firewall.ruleset import Spec
from embargo.firewall.table import TABLE
from embargo.lists import image, lists, policy
from embargo.lists.policy import LOCAL_ALLOW, Action, App, Class, Level, Selection, Source, Switchboard
from embargo.records import Done
from tools.bench import report
from tools.rig import Rig

BEGIN, END = "<!-- measured: `python -m tools.bench.firewall --write` -->\n", "<!-- end of firewall -->\n"
PAY = Class("alipay", "payment")
BLOCKED, ALLOWED = "pay.alipay.example", "good.example"
FIRST = int(ipaddress.ip_address("20.0.0.0"))
MEMORY = 3 << 20  # KiB that nft takes for a million, and twice ours
ROUNDS = 9
Row = list[str]


def networks(count: int, seed: int) -> list[tuple[int, int]]:
    """(first, last) of disjoint networks in order: 60 % single addresses, the rest /24 to /31."""
    chance = random.Random(seed)
    found, at = [], FIRST
    for _ in range(count):
        at += chance.randrange(1, 3_000_000_000 // count)
        size = 1 if chance.random() < 0.6 else 1 << chance.randrange(1, 9)
        at = (at + size - 1) // size * size
        found.append((at, at + size - 1))
        at += size
    return found


def text(first: int, last: int) -> str:
    address = ipaddress.ip_address(first)
    return str(address) if first == last else f"{address}/{33 - (last - first + 1).bit_length()}"


def compiled(found: Sequence[tuple[int, int]]) -> tuple[bytes, Switchboard]:
    """An image with these networks, a blocked name and an allowed one, and its switchboard."""
    source = Source("alipay/payment.list", Level.APPS, "alipay", "payment", False)
    blocked = "\n".join((BLOCKED, *(text(*each) for each in found)))
    listed = lists.parse(blocked.encode(), file="", source=source, guard=lists.Guard())
    local = lists.parse(
        ALLOWED.encode(), file="", source=Source("local/allow", Level.ALLOW, *LOCAL_ALLOW, False), guard=lists.Guard()
    )
    apps, chosen = [App("alipay", "", default=True, lists=(listed,))], Selection()
    combined = policy.combine(apps, [local], chosen)
    return image.encode(combined), policy.select(apps, combined.classes, chosen)


class Guardian:
    """The guardian's process in the gateway, and we as its supervisor and as one of its resolvers."""

    def __init__(self, rig: Rig) -> None:
        self._channel, theirs = channel.pair((Events, Failed, Done, Applied))
        self._state = rig.directory / "learnt.jsonl"
        self._state.write_text(json.dumps({"version": 1, "saved": time.time()}) + "\n")
        self._page = Ledger.make()
        fds = [theirs.fileno(), self._page]
        with theirs:
            command = [*rig.prefix("gateway"), sys.executable, "-m", "embargo.daemon.guard.guardian", *map(str, fds)]
            self.process = subprocess.Popen(command, pass_fds=fds)
        self._number = 0
        self._resolver, other = channel.pair(TO_RESOLVER)
        with other:
            self._marks = Marks.make()
            self.tell(Meet(), [other.fileno(), self._marks])
            self.answer()

    def tell(self, order: object, fds: Sequence[int] = ()) -> None:
        self._number += 1
        self._channel.send(order, fds, self._number)

    def answer(self, seconds: float = 120.0) -> None:
        """Wait for the answer to the last order."""
        deadline = time.monotonic() + seconds
        while select.select([self._channel.fileno()], [], [], max(deadline - time.monotonic(), 0))[0]:
            received = self._channel.receive()
            if received is None:
                break
            if received.number == self._number:
                if isinstance(received.record, Failed):
                    raise RuntimeError(received.record.reason)
                return
        raise RuntimeError("the guardian does not answer")

    @property
    def answers(self) -> bool:
        return bool(select.select([self._channel.fileno()], [], [], 0)[0])

    def apply(self, data: bytes, board: Switchboard, *, wait: bool = True, **members: Any) -> float:
        """Seconds until it is in force."""
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(data)
            usual = Apply(
                generation=1, board=board, lan=(), clients=(), excepted=(), exempt=(), protected=(), own=(), system=(),
                clients_by_address={}, intercept_port=0, fail="closed", log_group=8390, ct_mark=CT_MARK, protect=True,
                learn=True, memory=str(self._state),
            )  # fmt: skip
            began = time.perf_counter()
            self.tell(replace(usual, **members), [file.fileno()])
        if wait:
            self.answer()
        return time.perf_counter() - began

    def learnt(self, number: int) -> float:
        """Seconds until the guardian says that an address goes ahead of the block sets: a learnt one's way, and back."""
        began = time.perf_counter()
        self._resolver.send(Pass(number, answered.pack(names.from_text(ALLOWED), [(FIRST + number).to_bytes(4)], 300)))
        if not select.select([self._resolver.fileno()], [], [], 30)[0] or self._resolver.receive() is None:
            raise RuntimeError("the guardian does not answer its resolver")
        return time.perf_counter() - began

    def lead(self, address: bytes) -> None:
        """A blocked name leads there."""
        self._resolver.send(Leads(answered.pack(names.from_text(BLOCKED), [address], 300)))
        if not select.select([self._resolver.fileno()], [], [], 30)[0] or (asked := self._resolver.receive()) is None:
            raise RuntimeError("the guardian does not ask its resolver")
        self._resolver.send(Flushed(asked.record.number))

    @property
    def peak(self) -> int:
        """KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._channel.close()
        self._resolver.close()
        os.close(self._marks)
        os.close(self._page)


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_nft(rig: Rig, before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> tuple[float, int]:
    """(seconds, peak KiB) of `nft -f` that puts other networks into a set in use."""

    def shuffled(found: Sequence[tuple[int, int]]) -> str:
        mixed = [text(*each) for each in found]
        random.Random(0).shuffle(mixed)
        return ",\n".join(mixed)

    first, second = rig.directory / "first.nft", rig.directory / "second.nft"
    chain = "chain f {\ntype filter hook forward priority 0\nip daddr @blocked drop\n}"
    set_ = f"set blocked {{\ntype ipv4_addr\nflags interval\nelements = {{ {shuffled(before)} }}\n}}"
    first.write_text(f"table inet peer {{\n{set_}\n{chain}\n}}\n")
    second.write_text(f"flush set inet peer blocked\nadd element inet peer blocked {{ {shuffled(after)} }}\n")
    rig.run("gateway", "nft", "-f", str(first), seconds=300)
    began = time.perf_counter()
    process = subprocess.Popen([*rig.prefix("gateway"), "nft", "-f", str(second)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    seconds = time.perf_counter() - began
    rig.run("gateway", "nft", "delete", "table", "inet", "peer", seconds=120)
    if status:
        raise RuntimeError(f"nft ended with status {status}")
    return seconds, usage.ru_maxrss


def loading(count: int) -> Iterator[Row]:
    before, after = networks(count, 1), networks(count, 2)
    small, large = compiled(before[: count // 100]), compiled(after)
    old = compiled(before) if count <= 200_000 else small
    with Rig() as rig:
        with Guardian(rig) as guardian:
            guardian.apply(*old)
            ours = guardian.apply(*large)
            peak = guardian.peak
        theirs, most = by_nft(rig, before, after)
    what = f"{report.number(count)} addresses and networks replaced"
    yield [f"{what}, s", report.number(ours), report.number(theirs), f"{ours / theirs:.2f}"]
    yield [f"{what}, peak MiB", report.number(peak >> 10), report.number(most >> 10), f"{peak / most:.2f}"]


# ── one address ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def quantiles(values: Sequence[float], unit: float) -> str:
    ordered = sorted(value * unit for value in values)
    at = [ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99)]
    return f"{report.number(at[0])} / {report.number(at[1])}"


def one_address(count: int) -> Iterator[Row]:
    data, large = compiled(networks(1000, 3)), compiled(networks(count, 4))
    with Rig() as rig:
        kernel = rig.within("gateway", Nftables)
        kernel.replace(ruleset.build(Spec(1, ((PAY, Action.BLOCK),), {}, log_group=8391)))
        times = []
        for number in range(3000):
            began = time.perf_counter()
            kernel.transact(nft.learnt_elements(1, TABLE, [((FIRST + number).to_bytes(4), Action.BLOCK, 300)]))
            times.append(time.perf_counter() - began)
        kernel.remove(TABLE)
        kernel.close()
        yield ["one learnt address in the kernel, p50 / p99, µs", quantiles(times, 1e6), "-", "-"]
        with Guardian(rig) as guardian:
            guardian.apply(*data)
            yield ["the same from a resolver and back, µs", quantiles([guardian.learnt(n) for n in range(2000)], 1e6), "-", "-"]
            guardian.apply(*large, wait=False, generation=2)
            under_load: list[float] = []
            while not guardian.answers and len(under_load) < 100_000:
                under_load.append(guardian.learnt(len(under_load)))
                time.sleep(0.002)
            guardian.answer()
            what = f"the same while {report.number(count)} are loaded, ms"
            yield [what, f"{quantiles(under_load, 1e3)} of {len(under_load)}", "-", "-"]


def open_flows() -> Iterator[Row]:
    """From the moment that an address is learnt until an open flow to it has ended; connections deleted."""
    data = compiled(networks(1000, 5))
    times = []
    with Rig() as rig:
        rig.serve_web()
        with Guardian(rig) as guardian:
            guardian.apply(*data, lan=("lan0",), intercept_port=53)  # connections are tracked, and flows judged once
            for number in range(20):
                address = f"203.0.113.{10 + number}"
                with rig.socket("client", socket.SOCK_STREAM, address) as flow:
                    flow.settimeout(5)
                    flow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else it waits for the answer of a cut flow
                    flow.connect((address, 443))
                    flow.sendall(b"before")
                    flow.recv(64)
                    began = time.perf_counter()
                    guardian.lead(socket.inet_aton(address))
                    try:
                        while time.perf_counter() < began + 5:  # a client that waits for an answer learns of it later
                            flow.sendall(b"after")
                            time.sleep(0.001)
                    except OSError:
                        times.append(time.perf_counter() - began)
                time.sleep(0.3)
        yield ["an open flow to a learnt address ends after, ms, median / most of 20",
               f"{report.number(statistics.median(times) * 1e3)} / {report.number(max(times) * 1e3)}", "-", "-"]  # fmt: skip
        yield from deleted(rig)


def deleted(rig: Rig) -> Iterator[Row]:
    table = rig.within("gateway", Conntrack)
    sender = Sender(rig, 230, 440)
    rig.run("gateway", "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=600")
    rig.run("gateway", "nft", "table inet track { chain f { type filter hook forward priority 0; ct state new; }; }")
    sender.send(230 * 440)
    sender.close()
    began = time.perf_counter()
    flows = [flow for flow in table.flows() if flow.destination[:1] == bytes([203])]
    gone = table.delete(flows)
    seconds = time.perf_counter() - began
    table.close()
    yield [f"{report.number(gone)} connections found and deleted, s", report.number(seconds), "-", "-"]


# ── forwarding ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct mmsghdr; the integers at its ends are followed by padding, so long is as good as int."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p), ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_long), ("sent", ctypes.c_long),
    )  # fmt: skip


class Sender:
    """Datagrams from the client to so many destinations, from so many ports in turn, with one call for all destinations."""

    def __init__(self, rig: Rig, destinations: int, ports: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._content = ctypes.create_string_buffer(18)
        self._part = _Iovec(ctypes.addressof(self._content), 18)
        self._names = [
            ctypes.create_string_buffer(struct.pack("!4sI", struct.pack("=HH", socket.AF_INET, socket.htons(9000)), 0), 16)
            for _ in range(destinations)
        ]
        self._headers = (_Header * destinations)()
        for number, name in enumerate(self._names):
            name.raw = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(9000), bytes([203, 0, 113, 20 + number % 230]))
            self._headers[number] = _Header(ctypes.addressof(name), 16, ctypes.addressof(self._part), 1, None, 0, 0, 0)
        self._socks = [rig.socket("client", socket.SOCK_DGRAM, "203.0.113.1") for _ in range(ports)]
        quiet = "type filter hook ingress device eth0 priority 0; policy drop;\nether type arp accept\nether type ip6 accept"
        rig.run("internet", "nft", f"table netdev quiet {{ chain in {{ {quiet}\n}}\n}}")

    def send(self, count: int) -> None:
        sent, number = 0, 0
        while sent < count:
            sock = self._socks[number % len(self._socks)]
            done = self._libc.sendmmsg(sock.fileno(), self._headers, len(self._headers), 0)
            if done <= 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent, number = sent + done, number + 1

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def forwarding(counts: Sequence[int], packets: int) -> Iterator[Row]:
    """Time of a packet's whole way, sent by the same processor that forwards it: few long flows."""
    with Rig() as rig:
        kernel = rig.within("gateway", Nftables)
        sender = Sender(rig, 230, 4)
        track = "table inet track { chain f { type filter hook forward priority 0; ct state established,related accept; }; }"

        def timed() -> float:
            began = time.perf_counter()
            sender.send(packets)
            return (time.perf_counter() - began) / packets

        def alone() -> float:
            rig.run("gateway", "nft", track)
            sender.send(packets // 10)
            taken = timed()
            rig.run("gateway", "nft", "delete table inet track")
            return taken

        specs = {count: spans.gather((4, first, last, PAY) for first, last in networks(count, 6)) for count in counts}
        ours: dict[int, list[float]] = {count: [] for count in counts}
        base: dict[int, list[float]] = {count: [] for count in counts}
        generation = 0
        for count, ranges in specs.items():
            for _ in range(ROUNDS):
                base[count].append(alone())
                generation += 1
                rig.run("gateway", "nft", track)
                classes = ((PAY, Action.BLOCK),)
                kernel.replace(ruleset.build(Spec(generation, classes, ranges, log_group=8392, ct_mark=CT_MARK, lan=("lan0",))))
                sender.send(packets // 10)
                ours[count].append(timed())
                kernel.remove(TABLE)
                rig.run("gateway", "nft", "delete table inet track")
        sender.close()
        kernel.close()
        for count in counts:
            ratios = [mine / theirs for mine, theirs in zip(ours[count], base[count], strict=True)]
            what = f"a packet of an open flow forwarded, {report.number(count)} entries, ns beside tracking alone"
            mine, theirs = min(ours[count]), min(base[count])
            shown = f"{mine / theirs:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            yield [what, report.number(mine * 1e9), report.number(theirs * 1e9), shown]


def options(words: list[str] | None = None) -> argparse.Namespace:
    known = argparse.ArgumentParser(prog="tools.bench.firewall", description="The address layer beside nft -f.")
    known.add_argument("--quick", action="store_true", help="a minute instead of six: shows that it works")
    known.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    return known.parse_args(words)


def free_memory() -> int:
    """KiB that are to be had."""
    return int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0])


def main() -> int:
    given = options()
    if os.geteuid() != 0:
        print("tools.bench.firewall makes network namespaces: run it as root", file=sys.stderr)
        return 2
    many = 50_000 if given.quick else 1_000_000
    if not given.quick and free_memory() < MEMORY:
        print(f"less than {MEMORY >> 20} GiB are free: half a million instead", file=sys.stderr)
        many = 500_000
    parts: list[Callable[[], Iterator[Row]]] = [
        lambda: loading(10_000 if given.quick else 100_000), lambda: loading(many), lambda: one_address(many), open_flows,
        lambda: forwarding((10_000,) if given.quick else (100_000, 1_000_000), 200_000 if given.quick else 1_000_000),
    ]  # fmt: skip
    head = ["", "Embargo", "beside it", "ratio"]
    rows = [row for part in parts for row in part()]
    show.table(head, rows)
    if given.write:
        about = f"{report.machine()}."
        report.write(f"{report.lines([head, *rows])}\n{about}\n", marks=(BEGIN, END))
    return 0


if __name__ == "__main__":
    sys.exit(main())
