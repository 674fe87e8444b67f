"""python -m tools.bench [--names N] [--seconds S] [--rounds R] [--quick] [--write]

Runs in a network namespace of its own. The servers run one at a time on one processor, in turn, several rounds, so that the
machine's moods meet all of them; figures are medians, and what counts is their ratio.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from embargo import show
from tools.bench import data, measure
from tools.bench.servers import LOAD_CPU, SERVERS, Server, Upstream

KINDS = ("blocked", "cached", "mixed", "miss")
RATE = 5_000  # queries a second at which latency is measured
PAGE = Path(__file__).parent.parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->"

Results = dict[str, dict[str, list[float]]]  # measure → server → one value a round


def main() -> None:
    words = argparse.ArgumentParser(prog="tools.bench", description=__doc__)
    words.add_argument("--names", type=int, default=100_000, help="blocked names")
    words.add_argument("--seconds", type=float, default=4.0, help="length of one load")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--quick", action="store_true", help="one short round")
    words.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = words.parse_args()
    if "EMBARGO_BENCH" not in os.environ:  # all of it on the loopback of a namespace that dies with it
        inside = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        sys.exit(subprocess.call([*inside, sys.executable, *sys.orig_argv[1:]], env={**os.environ, "EMBARGO_BENCH": "1"}))
    if options.quick:
        options.seconds, options.rounds = 1.0, 1
    results, versions = run(options.names, options.seconds, options.rounds)
    table = rows(results)
    show.table(table[0], table[1:])
    print(json.dumps({"names": options.names, "results": results, "versions": versions}), file=sys.stderr)
    if options.write:
        write(markdown(table, options.names, options.rounds, options.seconds, versions))


def run(count: int, seconds: float, rounds: int) -> tuple[Results, dict[str, str]]:
    results: Results = defaultdict(lambda: defaultdict(list))
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="embargo-bench-") as root:
        directory = Path(root)
        names = list(data.blocked(count))
        queries = {kind: data.write(directory / kind, kind, names, 200_000 if kind != "miss" else 2_000_000) for kind in KINDS}
        upstream = Upstream(directory, ())
        upstream.start(LOAD_CPU)
        try:
            for number in range(rounds):
                for make in SERVERS:
                    server = make(directory / str(number), names)
                    versions[server.name] = server.version()
                    try:
                        server.start()
                        one(server, queries, seconds, results)
                    finally:
                        server.stop()
        finally:
            upstream.stop()
    return {key: dict(value) for key, value in results.items()}, versions


def one(server: Server, queries: dict[str, Path], seconds: float, results: Results) -> None:
    """All measures of one server in one round."""
    results["start, s"][server.name].append(server.start_seconds)
    lost = 0
    for kind in KINDS:
        if kind == "cached":
            measure.load(server, queries[kind], 1.0)  # warm
        found = measure.load(server, queries[kind], seconds)
        results[f"{kind}, queries per CPU-second"][server.name].append(found.per_cpu)
        lost += found.lost
    timed = measure.load(server, queries["mixed"], seconds, RATE)
    results[f"p50 at {RATE} q/s, ms"][server.name].append(timed.p50)
    results[f"p99 at {RATE} q/s, ms"][server.name].append(timed.p99)
    results["memory, MiB"][server.name].append(measure.pss(server.pids()) / 2**20)
    results["lost queries"][server.name].append(lost)


def rows(results: Results) -> list[list[str]]:
    """A table of medians; behind each figure of the peers, ours as a ratio of it."""
    names = [make.name for make in SERVERS]
    table = [["", *names, *(f"embargo / {name}" for name in names[1:])]]
    for label, by_server in results.items():
        medians = {name: statistics.median(values) for name, values in by_server.items()}
        ratios = [f"{medians['embargo'] / medians[name]:.2f}" if medians[name] else "-" for name in names[1:]]
        table.append([label, *(_number(medians[name]) for name in names), *ratios])
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def markdown(table: list[list[str]], count: int, rounds: int, seconds: float, versions: dict[str, str]) -> str:
    head, *body = table
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in body)]
    machine = f"{os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}"
    about = [
        f"{count} blocked names; medians of {rounds} rounds of {seconds:g} s; {machine};",
        "; ".join(versions.values()) + ".",
    ]
    return "\n".join([*lines, "", *about, ""])


def write(text: str) -> None:
    """Put the table between the marks in docs/performance.md."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
