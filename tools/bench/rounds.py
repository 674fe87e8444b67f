"""What is measured, when, and on which server.

A round visits every server with every size of list: A B C with the small list, A B C with the next. With the largest one the
server is loaded as well, in an order that lets nothing disturb what follows: what fills caches comes last.
"""

import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tools.bench import data, measure
from tools.bench.servers import SERVERS
from tools.bench.servers.base import NOERROR, NXDOMAIN, BenchError, Probe, Running, Server
from tools.bench.servers.unbound import Upstream

SIZES = (0, 100_000)  # list sizes below the chosen one at which start and memory are looked at
MOST = 120_000  # queries a second that no server here exceeds on one processor when it has to ask upstream
SLACK = 0.02  # by which the share of blocked answers may differ from that of the queries: a run stops anywhere in the file

RELOAD_RATE, RELOAD_SECONDS, RELOAD_AFTER = 20_000, 8.0, 1.5
IDLE_RATE, IDLE_SECONDS = 100, 4.0

GROUPS = ("rate", "use", "latency", "reload", "failed", "idle", "memory", "start")  # in the order they are shown


class Plan(NamedTuple):
    names: int
    seconds: float  # of one load
    rounds: int
    rate: int  # queries a second at which latency is measured

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*(size for size in SIZES if size < self.names), self.names)


class Measure(NamedTuple):
    group: str
    what: str

    @property
    def more_is_better(self) -> bool:
        return self.group in ("rate", "use")


class Results:
    """measure → server → one value a round."""

    def __init__(self) -> None:
        self.values: dict[Measure, dict[str, list[float]]] = {}
        self.remarks: dict[str, str] = {}  # by server, of the last round

    def note(self, measure: Measure, server: str, value: float) -> None:
        self.values.setdefault(measure, {}).setdefault(server, []).append(value)

    def ordered(self) -> list[tuple[Measure, dict[str, list[float]]]]:
        return sorted(self.values.items(), key=lambda item: GROUPS.index(item[0].group))


def rate(kind: str) -> Measure:
    return Measure("rate", f"{kind}, queries per CPU-second")


def run(plan: Plan, directory: Path) -> Results:
    names = data.blocked(plan.names)
    queries = {}
    for size in plan.sizes:
        (directory / f"queries {size}").mkdir()
        queries[size] = data.write(directory / f"queries {size}", names[:size] or names, int(plan.seconds * MOST))
    results = Results()
    upstream = Upstream(_fresh(directory, Upstream))
    upstream.prepare(())
    with upstream.running(probe(())):
        for number in range(1, plan.rounds + 1):
            for size in plan.sizes:
                for make in SERVERS:
                    print(f"round {number} of {plan.rounds}: {make.name}, {size} names", file=sys.stderr)
                    server = make(_fresh(directory, make))
                    _visit(server, names[:size], queries[size], plan, results)
                    shutil.rmtree(server.directory)
    return results


def _fresh(directory: Path, make: type[Server]) -> Path:
    made = directory / make.name
    made.mkdir()
    return made


def probe(names: Sequence[str]) -> Probe:
    """The last name of the list: when it is blocked, all are."""
    return Probe(names[-1], NXDOMAIN) if names else Probe(data.allowed()[0], NOERROR)


def _visit(server: Server, names: Sequence[str], queries: dict[str, Path], plan: Plan, results: Results) -> None:
    server.prepare(names)
    shown, size = probe(names), f"{len(names):,} names".replace(",", " ")
    with server.running(shown) as running:
        results.note(Measure("start", f"first start, {size}, s"), server.name, running.seconds)
        results.note(Measure("memory", f"memory, {size}, MiB"), server.name, measure.memory(running.pid) / 2**20)
        if len(names) < plan.names:
            _few_loads(server, running, queries, plan, size if names else "", results)
        else:
            _loads(server, running, queries, plan, results)
            results.note(Measure("memory", "memory after the loads, MiB"), server.name, measure.memory(running.pid) / 2**20)
    if len(names) == plan.names and (remark := server.remark()):
        results.remarks[server.name] = remark
    with server.running(shown) as running:
        results.note(Measure("start", f"next start, {size}, s"), server.name, running.seconds)


def _few_loads(server: Server, running: Running, queries: dict[str, Path], plan: Plan, size: str, results: Results) -> None:
    """What a shorter list changes."""
    measure.load(running.pid, server.port, queries["warm"], ["-n", "1"], 5.0)
    for kind in ("blocked", "cached") if size else ("cached",):
        found = measure.load(running.pid, server.port, queries[kind], [], plan.seconds)
        check(server.name, kind, found.said)
        results.note(Measure("rate", f"{kind}, {size or '0 names'}, queries per CPU-second"), server.name, found.per_cpu)


def _loads(server: Server, running: Running, queries: dict[str, Path], plan: Plan, results: Results) -> None:
    def ask(kind: str, *options: str, seconds: float = plan.seconds) -> measure.Load:
        return measure.load(running.pid, server.port, queries[kind], options, seconds)

    ask("warm", "-n", "1", seconds=5.0)
    _idle(server, running, queries["mixed"], results)  # first: what a load leaves to be written down is no idle gateway's
    failed = 0
    for kind in data.KINDS:
        found = ask(kind, *(["-n", "1"] if kind == "miss" else []))
        check(server.name, kind, found.said)
        results.note(rate(kind), server.name, found.per_cpu)
        results.note(Measure("use", f"{kind}, processor in use, %"), server.name, 100 * found.busy)
        failed += found.said.failed
        if kind == "mixed":
            _latency(server.name, ask("mixed", "-Q", str(plan.rate), "-v").said, plan, results)
            _reload(server, running, queries["mixed"], results)
    results.note(Measure("failed", "queries without an answer, full load"), server.name, failed)


def _latency(name: str, said: measure.Said, plan: Plan, results: Results) -> None:
    for label, part in (("p50", 0.5), ("p99", 0.99)):
        measured = Measure("latency", f"latency {label} at {plan.rate} queries/s, ms")
        results.note(measured, name, 1000 * measure.quantile(said.latencies, part))
    results.note(Measure("failed", f"queries without an answer at {plan.rate} queries/s"), name, said.failed)


def _idle(server: Server, running: Running, queries: Path, results: Results) -> None:
    """What a query costs when there are few: most gateways are idle most of the time."""
    before = measure.exact_seconds(running.pid)
    found = measure.load(running.pid, server.port, queries, ["-Q", str(IDLE_RATE)], IDLE_SECONDS)
    spent = measure.exact_seconds(running.pid) - before
    what = f"processor time a query at {IDLE_RATE} queries/s, us"
    results.note(Measure("idle", what), server.name, 1e6 * spent / max(found.said.answered, 1))


def _reload(server: Server, running: Running, queries: Path, results: Results) -> None:
    """The list is read again under load: who waits how long, and who waits in vain. Who must be started anew has no figure."""
    done: list[bool] = []
    timer = threading.Timer(RELOAD_AFTER, lambda: done.append(server.reload(running)))
    timer.start()
    options = ["-Q", str(RELOAD_RATE), "-v"]
    said = measure.load(running.pid, server.port, queries, options, RELOAD_SECONDS, outstanding=2 * RELOAD_RATE).said
    timer.join()
    server.settle()
    if done == [True]:
        what = f"in a reload at {RELOAD_RATE} queries/s"
        results.note(Measure("reload", f"longest wait {what}, ms"), server.name, 1000 * said.latencies[-1])
        results.note(Measure("reload", f"queries lost {what}"), server.name, said.failed)


def check(name: str, kind: str, said: measure.Said) -> None:
    """A server that passes blocked names or blocks others is fast for nothing."""
    share = said.rcodes.get("NXDOMAIN", 0) / max(said.answered, 1)
    if not said.answered or abs(share - data.BLOCKED_SHARE[kind]) > SLACK:
        raise BenchError(f"{name} answers {kind} queries wrongly: {said.rcodes}, {said.lost} lost")
