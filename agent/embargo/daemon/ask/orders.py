"""What a running agent is asked over the control socket, and what it answers.

A request is one line of JSON, {"verb": …} and the members of the request; so is the answer, with "ok" and the members of the
answer. This is what `--json` prints, so members keep their names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from embargo.records import Order
from embargo.report import AppReport, FunctionReport, Learning, Line, ListReport, UpstreamStats, Verdict


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not carried out."""

    error: str
    usage: bool | None = None  # the request itself is wrong, and would be at any time
    ok: Literal[False] = False


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PauseStatus:
    app: str  # empty: everything
    client: str  # an address or network; empty: everybody
    until: str  # RFC 3339
    uid: int


@dataclass(frozen=True, slots=True)
class FunctionStatus(FunctionReport):
    hits: int = 0


@dataclass(frozen=True, slots=True)
class AppStatus(AppReport):
    functions: Mapping[str, FunctionStatus]
    hits: int = 0
    paused: str | None = None  # until when


@dataclass(frozen=True, slots=True)
class ListStatus(ListReport):
    age: int  # seconds


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    ok: bool
    errors: tuple[str, ...]
    ago: float  # seconds


@dataclass(frozen=True, slots=True)
class FirewallOff:
    enabled: Literal[False] = False

    lan: ClassVar[tuple[str, ...]] = ()
    intercept_dns: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class FirewallStatus:
    table: str
    present: bool
    owned: bool
    lan: tuple[str, ...]
    intercept_dns: bool
    fail: str
    on_stop: str
    guardian: int  # pid
    guardian_restarts: int
    counters: dict[str, tuple[int, int]]  # chain → packets, octets
    log_lost: int
    noted: int
    restored: int
    cut: int
    learning: Learning | None
    enabled: Literal[True] = True


@dataclass(frozen=True, slots=True)
class EventsStatus:
    file: str
    lost: int
    trouble: str


@dataclass(frozen=True, slots=True)
class Status:
    """Everything that `embargo status` tells. Times in seconds."""

    pid: int
    version: str
    uptime: float
    config: str
    generation: int
    since: float
    names: int
    networks: int
    pauses: tuple[PauseStatus, ...]
    mode: Literal["audit", "block"]
    accelerator: str
    workers: tuple[int, ...]  # pids
    inside: bool
    worker_restarts: int
    listen: tuple[str, ...]
    lists: tuple[ListStatus, ...]
    problems: tuple[str, ...]
    reload: ReloadStatus
    apps: tuple[AppStatus, ...]
    firewall: FirewallStatus | FirewallOff
    upstreams: tuple[UpstreamStats, ...]
    counters: dict[str, int]
    cache: dict[str, int]
    events: EventsStatus
    uncovered: tuple[str, ...]
    running: Literal[True] = True
    ok: Literal[True] = True


# ── the other answers ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Explained(Verdict):
    """The verdict of `why`, with all lines that match and the pauses that it comes from."""

    lines: tuple[Line, ...] = ()
    paused: tuple[PauseStatus, ...] | None = None
    generation: int = 0
    ok: Literal[True] = True


@dataclass(frozen=True, slots=True)
class Catalogue:
    apps: tuple[AppStatus, ...]
    generation: int
    ok: Literal[True] = True


@dataclass(frozen=True, slots=True)
class Changed:
    """What came of a change; `ok`: it is in force, or was before."""

    ok: bool
    changed: bool
    generation: int
    errors: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    pauses: tuple[PauseStatus, ...] | None = None


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class GetStatus(Order[Status]):
    verb: ClassVar = "status"


@dataclass(frozen=True, slots=True)
class GetApps(Order[Catalogue]):
    verb: ClassVar = "apps"


@dataclass(frozen=True, slots=True)
class Why(Order[Explained]):
    verb: ClassVar = "why"
    subject: str
    type: str | None = None  # "A"
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Reload(Order[Changed]):
    verb: ClassVar = "reload"


@dataclass(frozen=True, slots=True)
class Rollback(Order[Changed]):
    verb: ClassVar = "rollback"


@dataclass(frozen=True, slots=True)
class Block(Order[Changed]):
    verb: ClassVar = "block"
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Allow(Order[Changed]):
    verb: ClassVar = "allow"
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget(Order[Changed]):
    verb: ClassVar = "forget"
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pause(Order[Changed]):
    verb: ClassVar = "pause"
    duration: str
    app: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Resume(Order[Changed]):
    verb: ClassVar = "resume"
    app: str | None = None
    client: str | None = None


REQUESTS = {kind.verb: kind for kind in (GetStatus, GetApps, Why, Reload, Rollback, Block, Allow, Forget, Pause, Resume)}
