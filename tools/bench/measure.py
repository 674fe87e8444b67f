"""dnsperf against a server, and what the server used: processor time and memory of all its processes."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.bench.servers.base import ADDRESS

CLIENTS, OUTSTANDING = 8, 200  # sockets, and queries on the way: fewer than the kernel queues for one socket
TIMEOUT = 2  # seconds after which a query counts as lost
LEAST_CPU = 0.1  # seconds; /proc counts in hundredths

_TICKS = os.sysconf("SC_CLK_TCK")


class Said(NamedTuple):
    """What dnsperf reported."""

    rcodes: dict[str, int]
    lost: int
    seconds: float
    latencies: tuple[float, ...]  # in ascending order, in seconds; empty unless it was verbose

    @property
    def answered(self) -> int:
        """Answers that say something. A SERVFAIL is cheap and helps nobody."""
        return self.rcodes.get("NOERROR", 0) + self.rcodes.get("NXDOMAIN", 0)

    @property
    def failed(self) -> int:
        return self.lost + sum(self.rcodes.values()) - self.answered


class Load(NamedTuple):
    said: Said
    cpu_seconds: float

    @property
    def per_cpu(self) -> float:
        return self.said.answered / max(self.cpu_seconds, LEAST_CPU)

    @property
    def busy(self) -> float:
        """How much of its processor the server used; far below 1 it waited for somebody else."""
        return self.cpu_seconds / self.said.seconds if self.said.seconds else 0.0


def load(pid: int, port: int, queries: Path, options: Sequence[str], seconds: float, outstanding: int = OUTSTANDING) -> Load:
    """Ask, and see what that cost the server. dnsperf ends after `seconds` and what is still on the way."""
    command = [
        "dnsperf", "-s", ADDRESS, "-p", str(port), "-d", str(queries), "-l", f"{seconds:g}", "-c", str(CLIENTS),
        "-q", str(outstanding), "-t", str(TIMEOUT), *options,
    ]  # fmt: skip
    output = queries.with_suffix(".dnsperf")
    before = cpu_seconds(pid)
    with output.open("wb") as file:  # a pipe would want a reader, which would want a processor
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True, timeout=seconds + TIMEOUT + 30)
    return Load(parse(output.read_text()), cpu_seconds(pid) - before)


def parse(text: str) -> Said:
    """dnsperf's output, verbose or not."""
    rcodes = re.search(r"^  Response codes:(.*)$", text, re.MULTILINE)
    lost = re.search(r"^  Queries lost: +(\d+)", text, re.MULTILINE)
    seconds = re.search(r"^  Run time \(s\): +([\d.]+)", text, re.MULTILINE)
    if not (rcodes and lost and seconds):
        raise ValueError(f"not what dnsperf prints: {text[-500:]}")
    latencies = sorted(map(float, re.findall(r"^> [A-Z0-9]+ \S+ \S+ ([\d.]+)$", text, re.MULTILINE)))
    counted = {rcode: int(count) for rcode, count in re.findall(r"(\w+) (\d+) \(", rcodes[1])}
    return Said(counted, int(lost[1]), float(seconds[1]), tuple(latencies))


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value that this part of them does not exceed (nearest rank)."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(-int(-len(ordered) * part // 1), 1) - 1]


# ── what the kernel knows ────────────────────────────────────────────────────────────────────────────────────────────────


def tree(pid: int) -> Iterator[int]:
    """This process and all that descend from it."""
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a child may end while we look
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from tree(int(child))


def _each(pid: int, name: str) -> Iterator[str]:
    for one in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield Path(f"/proc/{one}/{name}").read_text()


def others_seconds() -> float:
    """Processor time since the boot that went to none of our processes: to other programs, or other guests of the host."""
    ours = os.times()
    mine = ours.user + ours.system + ours.children_user + ours.children_system
    return busy(Path("/proc/stat").read_text()) / _TICKS - mine


def busy(stat: str) -> int:
    """user, nice, system, irq, softirq and steal of all processors (proc(5)), in ticks; not idle, not waiting for a disk."""
    fields = list(map(int, stat.partition("\n")[0].split()[1:]))
    return sum(fields[:3]) + sum(fields[5:8])


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its descendants, living and ended, have used."""
    return sum(map(ticks, _each(pid, "stat"))) / _TICKS


def ticks(stat: str) -> int:
    """utime, stime, cutime and cstime (proc(5)): its own, and that of children that ended and were waited for."""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return sum(map(int, fields[11:15]))


def exact_seconds(pid: int) -> float:
    """Processor time of the living threads of a process and its descendants, to the nanosecond (sched-stats(5))."""
    found = 0
    for one in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9


def memory(pid: int) -> int:
    """Octets; a page that several processes share counts for each in its part."""
    return sum(map(pss, _each(pid, "smaps_rollup")))


def pss(rollup: str) -> int:
    found = re.search(r"^Pss: +(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) << 10 if found else 0  # a process that ended has none
