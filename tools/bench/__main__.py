"""python -m tools.bench [--quick | --growth | --fairness] [--names N] [--seconds S] [--rounds R] [--json FILE] [--write]"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from embargo.cli import show
from tools.bench import fairness, growth, measure, plot, report, rounds
from tools.bench.rounds import Plan
from tools.bench.servers.base import LOAD_CPU, BenchError

PREFIX = "embargo-bench-"  # of the directory of a run; the number of its process follows
INSIDE = "EMBARGO_BENCH"  # the directory itself, in the environment of its inner half
REPORT = Path(__file__).parent.parent.parent / "build" / "bench.json"
RATE = 5_000  # queries a second at which latency is measured: below what the slowest server can do

# Everything below it ends with it, however it ends; `lo` is the only interface.
NAMESPACE = (
    "setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
    "sh", "-c", 'ip link set lo up && exec "$@"', "sh",
)  # fmt: skip


def options(words: list[str] | None = None) -> argparse.Namespace:
    known = argparse.ArgumentParser(prog="tools.bench", description="Embargo beside five other resolvers, in one run.")
    known.add_argument("--names", type=int, help="blocked names (1000000; 10000 with --quick)")
    known.add_argument("--seconds", type=float, help="length of one load (2; 0.7 with --quick)")
    known.add_argument("--rounds", type=int, help="how often every server is visited (2; 1 with --quick)")
    known.add_argument("--quick", action="store_true", help="two minutes instead of twelve: shows that it works")
    known.add_argument("--growth", action="store_true", help="Embargo alone, as names, clients and workers grow")
    known.add_argument("--fairness", action="store_true", help="what one client's floods cost another client, on each server")
    known.add_argument("--json", type=Path, default=REPORT, metavar="FILE", help="every single value (build/bench.json)")
    known.add_argument("--write", action="store_true", help="put table and plot into docs/performance.md")
    known.set_defaults(names=1_000_000, seconds=2.0, rounds=2)
    if known.parse_args(words).fairness:
        known.set_defaults(names=fairness.NAMES, seconds=4.0, rounds=3)
    if known.parse_args(words).quick:
        known.set_defaults(names=10_000, seconds=0.7, rounds=1)
    return known.parse_args(words)


def plan(given: argparse.Namespace) -> Plan:
    chosen = Plan(given.names, given.seconds, given.rounds, RATE)
    if not (0 < chosen.names <= 2_000_000 and 0 < chosen.seconds <= 60 and 0 < chosen.rounds <= 20):
        raise SystemExit("at most 2000000 names, 60 seconds and 20 rounds, and more than none of each")
    return chosen


def main() -> int:
    given = options()
    chosen = plan(given)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    if INSIDE not in os.environ:
        return _outside()
    os.sched_setaffinity(0, {LOAD_CPU})  # inherited by dnsperf; the servers are put elsewhere
    began, others = time.monotonic(), measure.others_seconds()
    if given.growth:
        rows = growth.run(Path(os.environ[INSIDE]), given.names if given.names != 1_000_000 else growth.NAMES[-1])
        show.table(growth.HEAD, rows)
        if given.write:
            report.write(report.lines([growth.HEAD, *rows]), marks=(report.GROWTH_BEGIN, report.GROWTH_END))
            plot.draw_growth(rows)
        return 0
    marks = (report.FAIRNESS_BEGIN, report.FAIRNESS_END) if given.fairness else (report.BEGIN, report.END)
    try:
        if given.fairness:
            results = fairness.run(Path(os.environ[INSIDE]), chosen.seconds, chosen.rounds)
        else:
            results = rounds.run(chosen, Path(os.environ[INSIDE]))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    share = (measure.others_seconds() - others) / (time.monotonic() - began) / (os.cpu_count() or 1)
    others_used = f"background load during the run: {share:.0%} of the processors"
    about = [report.machine(), report.software(), others_used, *results.remarks.values()]
    rows = report.table(results, every=True)
    show.table(rows[0], rows[1:])
    show.lines(about)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(report.as_json(results, chosen, about), indent=1) + "\n")
    if given.write:
        report.write(report.markdown(report.table(results), chosen, about), marks=marks)
        if not given.fairness:
            plot.draw(results)
    return 0


def _outside() -> int:
    """The same command again, in namespaces of its own; and its directory removed afterwards."""
    if os.geteuid() != 0:
        print("tools.bench makes network namespaces: run it as root", file=sys.stderr)
        return 2
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as directory:
        return subprocess.call([*NAMESPACE, sys.executable, *sys.orig_argv[1:]], env={**os.environ, INSIDE: directory})


def _sweep() -> None:
    """Remove the directories of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        if not os.path.exists(f"/proc/{path.name.removeprefix(PREFIX).partition('-')[0]}"):
            shutil.rmtree(path, ignore_errors=True)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # and clean up on the way


if __name__ == "__main__":
    sys.exit(main())
