"""dnsperf against a server, and what it cost the server: processor seconds and memory of all its processes."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.bench.servers import ADDRESS, LOAD_CPU, Server

TICKS = os.sysconf("SC_CLK_TCK")


class Load(NamedTuple):
    """One run of dnsperf. Latencies in milliseconds; `per_cpu` is queries per processor second of the server."""

    completed: int
    lost: int
    seconds: float
    per_cpu: float
    p50: float
    p99: float


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes used so far (proc(5), stat: utime and stime)."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def pss(pids: Sequence[int]) -> int:
    """Memory in octets, what is shared counted in parts (proc(5), smaps_rollup)."""
    return sum(_pss(Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in pids)


def _pss(text: str) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def load(server: Server, queries: Path, seconds: float, rate: int = 0) -> Load:
    """Ask as fast as it answers, or at `rate` queries a second."""
    command = [
        "taskset", "-c", str(LOAD_CPU), "dnsperf", "-s", ADDRESS, "-p", str(server.port), "-d", str(queries),
        "-l", str(seconds), "-c", "8", "-q", "200", "-t", "2", *(["-Q", str(rate), "-v"] if rate else []),
    ]  # fmt: skip
    pids = server.pids()
    before = cpu_seconds(pids)
    text = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    used = cpu_seconds(pids) - before
    return parse(text, used)


def parse(text: str, used: float) -> Load:
    """What dnsperf printed; latencies only with its -v."""

    def number(label: str) -> float:
        found = re.search(rf"{label}:\s+([\d.]+)", text)
        return float(found[1]) if found else 0.0

    latencies = sorted(float(each) * 1000 for each in re.findall(r"^> \S+ \S+ \S+ ([\d.]+)$", text, re.MULTILINE))
    completed = int(number("Queries completed"))
    return Load(
        completed, int(number("Queries lost")), number(r"Run time \(s\)"), completed / used if used else 0.0,
        quantile(latencies, 0.5), quantile(latencies, 0.99),
    )  # fmt: skip


def quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] if ordered else 0.0
