"""The rates as bars, for docs/performance.md."""

import importlib
import statistics
from pathlib import Path

from tools.bench.data import KINDS
from tools.bench.rounds import Results, rate
from tools.bench.servers import SERVERS

PICTURE = Path(__file__).parent.parent.parent / "docs" / "performance.svg"


def draw(results: Results, picture: Path = PICTURE) -> None:
    matplotlib = importlib.import_module("matplotlib")  # comes with `bench` only; where types are checked it may be missing
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "embargo", "svg.fonttype": "none"})  # the same figures, the same picture
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    width = 0.8 / len(SERVERS)
    for place, make in enumerate(SERVERS):
        heights = [_rate(results, kind, make.name) / 1000 for kind in KINDS]
        axes.bar([spot + place * width for spot in range(len(KINDS))], heights, width, label=make.name)
    axes.set_xticks([spot + (len(SERVERS) - 1) * width / 2 for spot in range(len(KINDS))], KINDS)
    axes.set_ylabel("thousand queries per CPU-second")
    axes.legend(frameon=False)
    figure.savefig(picture, metadata={"Date": None})


def _rate(results: Results, kind: str, name: str) -> float:
    return statistics.median(results.values[rate(kind)][name])
