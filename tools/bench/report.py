"""Results as people and programs read them: medians, and ours as a ratio of the best peer's."""

import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench import servers
from tools.bench.rounds import Measure, Plan, Results
from tools.bench.servers import SERVERS

PAGE = Path(__file__).parent.parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured: `python -m tools.bench --write` -->\n", "<!-- end of what was measured -->\n"

FAIRNESS_BEGIN = "<!-- measured: `python -m tools.bench --fairness --write` -->\n"
FAIRNESS_END = "<!-- end of fairness -->\n"
GROWTH_BEGIN, GROWTH_END = "<!-- measured: `python -m tools.bench --growth --write` -->\n", "<!-- end of growth -->\n"

OURS, PEERS = ([make.name for make in makes] for makes in (servers.OURS, servers.PEERS))


def table(results: Results, *, every: bool = False) -> list[list[str]]:
    """A line for each measure; `every` also those that only explain others."""
    rows = [(measure, values) for measure, values in results.ordered() if every or measure.group != "use"]
    present = {name for _, values in rows for name in values}
    ours, peers = ([name for name in names if name in present] for names in (OURS, PEERS))
    head = ["", *ours, *peers, *(f"{name} / best peer" for name in ours)]
    return [head, *(_row(measure, values, ours, peers) for measure, values in rows)]


def _row(measure: Measure, values: dict[str, list[float]], ours: Sequence[str], peers: Sequence[str]) -> list[str]:
    medians = [number(statistics.median(values[name])) if name in values else "-" for name in (*ours, *peers)]
    return [measure.what, *medians, *(_span(ratios(measure, values, name)) for name in ours)]


def ratios(measure: Measure, values: dict[str, list[float]], ours: str) -> list[float]:
    """Ours to the best peer, round by round. The best peer is who is best by the median; without figures of its own, none."""
    peers = [name for name in PEERS if name in values]
    if not peers or ours not in values:
        return []
    best = (max if measure.more_is_better else min)(peers, key=lambda name: statistics.median(values[name]))
    return [mine / theirs for mine, theirs in zip(values[ours], values[best], strict=True) if theirs]


def _span(found: Sequence[float]) -> str:
    if not found:
        return "-"
    middle, least, most = (
        f"{ratio:.2f}" if ratio < 10 else number(ratio) for ratio in (statistics.median(found), min(found), max(found))
    )
    return middle if len(found) == 1 else f"{middle} ({least} to {most})"


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def as_json(results: Results, plan: Plan, about: Sequence[str]) -> dict[str, Any]:
    return {
        "plan": plan._asdict(),
        "machine": list(about),
        "results": [
            {
                "measure": measure.what,
                "more_is_better": measure.more_is_better,
                "rounds": values,
                "ratios": {name: ratios(measure, values, name) for name in OURS},
            }
            for measure, values in results.ordered()
        ],
    }


def machine() -> str:
    """What the figures were measured on, and when."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    today = time.strftime("%d %B %Y").lstrip("0")
    return f"{os.cpu_count()} processors ({model[1] if model else platform.machine()}), Linux {platform.release()}, {today}"


def software() -> str:
    """What was measured; all of it has to be installed."""
    return f"{', '.join(dict.fromkeys(make.version() for make in SERVERS))}, Python {platform.python_version()}"


def markdown(rows: Sequence[Sequence[str]], plan: Plan, about: Sequence[str]) -> str:
    what = (
        f"{number(plan.names)} names on the list where not said otherwise, {plan.rounds} rounds, loads of {plan.seconds:g} s."
    )
    return "\n".join([lines(rows), what, *(f"{line[0].upper()}{line[1:]}." for line in about), ""])


def lines(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first line the head."""
    head, *body = rows
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---", *("--:" for _ in head[1:])], *body))


def write(text: str, page: Path = PAGE, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put it between the marks of the page."""
    before, begin, rest = page.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{page} has lost the marks that the table stands between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
