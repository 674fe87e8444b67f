"""The rates as bars, for docs/performance.md."""

import importlib
import statistics
from collections.abc import Sequence
from pathlib import Path

from tools.bench.data import KINDS
from tools.bench.rounds import Results, rate
from tools.bench.servers import SERVERS

GROWTH = Path(__file__).parent.parent.parent / "docs" / "growth.png"
PICTURE = Path(__file__).parent.parent.parent / "docs" / "performance.png"


def draw(results: Results, picture: Path = PICTURE) -> None:
    matplotlib = importlib.import_module("matplotlib")  # comes with `bench` only; where types are checked it may be missing
    matplotlib.use("agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(9, 3.6), dpi=110, layout="constrained")
    width = 0.8 / len(SERVERS)
    for place, make in enumerate(SERVERS):
        heights = [_rate(results, kind, make.name) / 1000 for kind in KINDS]
        axes.bar([spot + place * width for spot in range(len(KINDS))], heights, width, label=make.name)
    axes.set_xticks([spot + (len(SERVERS) - 1) * width / 2 for spot in range(len(KINDS))], KINDS)
    axes.set_ylabel("thousand queries per CPU-second")
    axes.legend(frameon=False)
    figure.savefig(picture, metadata={"Software": None})


def draw_growth(rows: Sequence[Sequence[str]], picture: Path = GROWTH) -> None:
    """Memory and start, names on the list from left to right."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    points = [row for row in rows if row[0].endswith("names")]
    names = [int(row[0].removesuffix(" names").replace(" ", "")) for row in points]
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3), dpi=110, layout="constrained")
    for place, (column, label) in zip(
        axes, ((1, "blocked queries per CPU-second"), (2, "memory, MiB"), (3, "first start, s")), strict=True
    ):
        place.plot(names, [float(row[column].replace(" ", "")) for row in points], marker="o")
        place.set_xscale("log")
        place.set_xlabel("names")
        place.set_ylabel(label)
        place.set_ylim(bottom=0)
    figure.savefig(picture, metadata={"Software": None})


def _rate(results: Results, kind: str, name: str) -> float:
    return statistics.median(results.values[rate(kind)][name])
