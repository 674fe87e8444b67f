"""Requests to a running agent over the control socket, and their answers.

A request is one line of JSON with "verb" and the members of its record; the answer is one line with "ok" and the members of its
record. `--json` prints answers as they are, so the names of members must not change.
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
    usage: bool | None = None  # true: the request itself is wrong, whatever the state of the agent
    ok: Literal[False] = False


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PauseStatus:
    """A pause in force."""

    app: str  # empty: everything
    client: str  # an address or network; empty: all clients
    until: str  # RFC 3339
    uid: int  # of the user that paused


@dataclass(frozen=True, slots=True)
class FunctionStatus(FunctionReport):
    """A function with its attempts since the start of the agent."""

    hits: int = 0


@dataclass(frozen=True, slots=True)
class AppStatus(AppReport):
    """An app with its attempts since the start of the agent."""

    functions: Mapping[str, FunctionStatus]
    hits: int = 0
    paused: str | None = None  # end of the pause for all clients, RFC 3339


@dataclass(frozen=True, slots=True)
class ListStatus(ListReport):
    """A list file with its age."""

    age: int  # seconds since it was modified


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The last reload."""

    ok: bool
    errors: tuple[str, ...]
    ago: float  # seconds


@dataclass(frozen=True, slots=True)
class FirewallOff:
    """The firewall is not enabled. The class attributes answer for callers that ask either kind."""

    enabled: Literal[False] = False

    lan: ClassVar[tuple[str, ...]] = ()
    intercept_dns: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class FirewallStatus:
    """The nftables table and the guardian. Counters are since the start of the agent."""

    table: str
    present: bool  # the table is in the kernel
    owned: bool  # only the guardian can change it
    lan: tuple[str, ...]
    intercept_dns: bool
    fail: str
    on_stop: str
    guardian: int  # pid
    guardian_restarts: int
    counters: dict[str, tuple[int, int]]  # chain → packets, octets
    log_lost: int  # drop records that the kernel could not deliver
    noted: int  # drop records received
    restored: int  # times the table was restored after a change by another program
    cut: int  # connections deleted because they were blocked
    learning: Learning | None
    enabled: Literal[True] = True


@dataclass(frozen=True, slots=True)
class EventsStatus:
    """The event log."""

    file: str
    lost: int  # events that could not be written
    trouble: str  # the error of the last write; empty if it succeeded


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to `embargo status`. Times are in seconds."""

    pid: int
    version: str
    uptime: float
    config: str  # path of the file
    generation: int
    since: float  # seconds that the generation has been in force
    names: int
    networks: int
    pauses: tuple[PauseStatus, ...]
    mode: Literal["audit", "block"]
    accelerator: str
    workers: tuple[int, ...]  # pids
    inside: bool  # the resolver runs in the supervisor (workers = 0)
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
    uncovered: tuple[str, ...]  # what the configuration leaves open, as text
    running: Literal[True] = True
    ok: Literal[True] = True


# ── the other answers ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Explained(Verdict):
    """The answer to `why`: the verdict, all matching lines, and the pauses that changed it."""

    lines: tuple[Line, ...] = ()
    paused: tuple[PauseStatus, ...] | None = None
    generation: int = 0
    ok: Literal[True] = True


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The answer to `apps`."""

    apps: tuple[AppStatus, ...]
    generation: int
    ok: Literal[True] = True


@dataclass(frozen=True, slots=True)
class Changed:
    """The result of a change. `ok`: what was asked for is in force; `changed`: it was not before."""

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
    """The state of the agent."""

    verb: ClassVar = "status"


@dataclass(frozen=True, slots=True)
class GetApps(Order[Catalogue]):
    """The apps of the catalogue."""

    verb: ClassVar = "apps"


@dataclass(frozen=True, slots=True)
class Why(Order[Explained]):
    """Why a name or address is blocked or not. `client`: for this client; `type`: query type, "A" by default."""

    verb: ClassVar = "why"
    subject: str
    type: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Reload(Order[Changed]):
    """Read configuration and lists again."""

    verb: ClassVar = "reload"


@dataclass(frozen=True, slots=True)
class Rollback(Order[Changed]):
    """Put the previous generation into effect."""

    verb: ClassVar = "rollback"


@dataclass(frozen=True, slots=True)
class Block(Order[Changed]):
    """Add entries to the agent's own block list."""

    verb: ClassVar = "block"
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Allow(Order[Changed]):
    """Add entries to the agent's own allow list."""

    verb: ClassVar = "allow"
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Forget(Order[Changed]):
    """Remove entries from both of these lists."""

    verb: ClassVar = "forget"
    entries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pause(Order[Changed]):
    """Block nothing, or one app not, for all clients or one, for a duration such as 90s or 2h."""

    verb: ClassVar = "pause"
    duration: str
    app: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Resume(Order[Changed]):
    """End the pauses of an app, of a client, or all."""

    verb: ClassVar = "resume"
    app: str | None = None
    client: str | None = None


REQUESTS = {kind.verb: kind for kind in (GetStatus, GetApps, Why, Reload, Rollback, Block, Allow, Forget, Pause, Resume)}
