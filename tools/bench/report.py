"""Results as people and programs read them: medians, and ours as a ratio of the best peer's."""

import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.rounds import Measure, Plan, Results
from tools.bench.servers import SERVERS

PAGE = Path(__file__).parent.parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured: `python -m tools.bench --write` -->\n", "<!-- end of what was measured -->\n"

OURS, *PEERS = (make.name for make in SERVERS)


def table(results: Results, *, every: bool = False) -> list[list[str]]:
    """A line for each measure; `every` also those that only explain others."""
    head = ["", OURS, *PEERS, f"{OURS} / best peer"]
    return [head, *(_row(measure, values) for measure, values in results.ordered() if every or measure.group != "use")]


def _row(measure: Measure, values: dict[str, list[float]]) -> list[str]:
    medians = [number(statistics.median(values[name])) for name in (OURS, *PEERS)]
    return [measure.what, *medians, _span(ratios(measure, values))]


def ratios(measure: Measure, values: dict[str, list[float]]) -> list[float]:
    """Ours to the best peer, round by round. The best peer is who is best by the median; without figures of its own, none."""
    best = (max if measure.more_is_better else min)(PEERS, key=lambda name: statistics.median(values[name]))
    return [mine / theirs for mine, theirs in zip(values[OURS], values[best], strict=True) if theirs]


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
                "ratios": ratios(measure, values),
            }
            for measure, values in results.ordered()
        ],
    }


def machine() -> list[str]:
    """What the figures were measured on and with."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return [
        f"{os.cpu_count()} processors ({model[1] if model else platform.machine()}), Linux {platform.release()}",
        f"{', '.join(make.version() for make in SERVERS)}, Python {platform.python_version()}",
    ]


def markdown(rows: Sequence[Sequence[str]], plan: Plan, about: Sequence[str]) -> str:
    head, *body = rows
    lines = [head, ["---", *("--:" for _ in head[1:])], *body]
    what = (
        f"{number(plan.names)} names on the list where not said otherwise, {plan.rounds} rounds, loads of {plan.seconds:g} s."
    )
    return "\n".join(
        [*(f"| {' | '.join(line)} |" for line in lines), "", what, *(f"{line[0].upper()}{line[1:]}." for line in about), ""]
    )


def write(text: str, page: Path = PAGE) -> None:
    """Put it between the marks of the page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has lost the marks that the table stands between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
