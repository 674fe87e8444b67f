"""The table that a run produces: for each app, function and kind of probe, how many were held and how many leaked.

A probe is held if it is rejected and nothing of it reaches the sink. It is unproven if it does not get through, but possibly
for another reason: an allowed control does not get through either, or the packet vanishes without a rejection.
"""

from dataclasses import dataclass, field
from typing import Any

HELD, LEAK, UNPROVEN, SKIPPED = "held", "LEAK", "unproven", "skipped"
DETAILS = 3  # details that a row shows


@dataclass(slots=True)
class ResultRow:
    """The results of one app, function and kind of probe."""

    app: str
    function: str
    kind: str
    probes: int = 0
    held: int = 0
    leaks: int = 0
    unproven: int = 0
    skipped: str = ""  # why nothing was tried
    details: list[str] = field(default_factory=list)  # leaks first

    @property
    def verdict(self) -> str:
        """The verdict about the whole row: the worst of its probes."""
        if self.leaks:
            return LEAK
        if self.unproven:
            return UNPROVEN
        return HELD if self.probes else SKIPPED

    @property
    def detail(self) -> str:
        """The first details of what was not held, or why nothing was tried."""
        return "; ".join(dict.fromkeys(self.details[:DETAILS])) if self.probes else self.skipped

    def count(self, verdict: str, detail: str = "") -> None:
        """Count a probe. `detail`: what is worth showing about one that was not held."""
        self.probes += 1
        if verdict == HELD:
            self.held += 1
        elif verdict == LEAK:
            self.leaks += 1
            self.details.insert(self.leaks - 1, detail)
        else:
            self.unproven += 1
            self.details.append(detail)

    def as_data(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "app": self.app, "function": self.function, "kind": self.kind, "verdict": self.verdict, "probes": self.probes,
            "held": self.held, "leaks": self.leaks, "unproven": self.unproven, "detail": self.detail,
        }  # fmt: skip


class Results:
    """All rows of a run."""

    def __init__(self) -> None:
        self._rows: list[ResultRow] = []

    def row(self, app: str, function: str, kind: str, skipped: str = "") -> ResultRow:
        """A new row. `skipped`: why, in case no probe is counted."""
        row = ResultRow(app, function, kind, skipped=skipped)
        self._rows.append(row)
        return row

    @property
    def rows(self) -> list[ResultRow]:
        """Controls first, then by app and function."""
        return sorted(self._rows, key=lambda row: (row.app != "control", row.app, row.function))
