"""Requests to a running agent over the control socket, and their answers.

A request is one line of JSON with "verb" and the members of its record; the answer is one line with "ok" and the members of its
record. `--json` prints answers as they are, so the names of members must not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from embargo.records import Order
from embargo.report import AppReport, Claim, FunctionReport, Learning, Line, ListReport, UpstreamStats, Verdict


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
    uid: int  # of the user who paused


@dataclass(frozen=True, slots=True)
class FunctionStatus(FunctionReport):
    """A function with its attempts since the start of the agent."""

    hits: int | None = None  # attempts since the start of the agent; absent if no agent runs
    inactive: str | None = None  # why it blocks nothing although it is on


@dataclass(frozen=True, slots=True)
class AppStatus(AppReport):
    """An app with its attempts since the start of the agent."""

    functions: Mapping[str, FunctionStatus]  # name → function
    hits: int | None = None  # attempts since the start of the agent; absent if no agent runs
    paused: str | None = None  # end of the pause for all clients, RFC 3339


@dataclass(frozen=True, slots=True)
class ListStatus(ListReport):
    """A list file with its age."""

    age: int | None  # seconds since it was modified; absent if that is later than the clock says it is now


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The last reload or rollback."""

    ok: bool  # it succeeded
    errors: tuple[str, ...]  # why it failed; then the previous policy stays in force
    ago: float  # seconds since then
    rolled_back: bool = False  # an earlier generation is in force, and not the present files


@dataclass(frozen=True, slots=True)
class FirewallOff:
    """The firewall is not enabled. The class attributes answer for callers that ask either kind."""

    enabled: Literal[False] = False

    lan: ClassVar[tuple[str, ...]] = ()
    intercept_dns: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class FirewallStatus:
    """The nftables table and the guardian. Counters are since the start of the agent."""

    table: str  # family and name of the table
    present: bool  # the table is in the kernel
    owned: bool  # only the guardian can change it
    lan: tuple[str, ...]  # [firewall] lan; empty: all forwarded traffic is filtered
    intercept_dns: bool  # port 53 of the clients on lan is redirected to this resolver
    fail: str  # [firewall] fail: what happens to port 53 of clients if no resolver runs
    on_stop: str  # [firewall] on_stop: what happens to the rules if the agent stops
    guardian: int  # pid of the guardian
    guardian_restarts: int  # since the start of the agent
    counters: dict[str, tuple[int, int]]  # chain → packets, octets
    log_lost: int  # drop records that the kernel could not deliver
    noted: int  # drop records received
    restored: int  # times the table was restored after a change by another program
    cut: int  # connections deleted because they were blocked
    learning: Learning | None  # learnt addresses; absent if the guardian does not answer
    enabled: Literal[True] = True  # [firewall] enabled; if it is false, the other keys are absent


@dataclass(frozen=True, slots=True)
class EventsStatus:
    """The event log."""

    file: str  # path of the log
    lost: int  # events that could not be written
    trouble: str  # the error of the last write; empty if it succeeded


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to `embargo status`. Times are in seconds."""

    pid: int  # of the supervisor, the agent's main process
    version: str  # of the agent
    uptime: float  # seconds since the start of the agent
    config: str  # path of the configuration file
    generation: int  # number of the compilation of the lists that is in force
    since: float  # seconds that the generation has been in force
    names: int  # domain names in all lists, blocked or not; a name in several lists is counted once
    networks: int  # ranges of addresses in all lists, blocked or not, after overlapping ones are merged
    pauses: tuple[PauseStatus, ...]  # the pauses in force
    mode: Literal["audit", "block"]  # [policy] mode
    accelerator: str  # whether the hot functions are compiled
    workers: tuple[int, ...]  # pids of the resolver processes
    inside: bool  # the resolver runs in the supervisor ([dns] workers = 0)
    worker_restarts: int  # restarts of resolver processes since the start of the agent
    listen: tuple[str, ...]  # addresses and ports that are answered on
    lists: tuple[ListStatus, ...]  # every list file
    problems: tuple[str, ...]  # lines of the lists that cannot be used, as text
    reload: ReloadStatus  # the last reload
    apps: tuple[AppStatus, ...]  # every app of the catalogue and of the administrator
    firewall: FirewallStatus | FirewallOff  # the nftables table
    upstreams: tuple[UpstreamStats, ...]  # every upstream server
    counters: dict[str, int]  # queries and answers by kind, since the start of the agent
    cache: dict[str, int]  # entries and octets at present; hits and misses since the start of the agent
    events: EventsStatus  # the event log
    uncovered: tuple[str, ...]  # what the configuration leaves open, as text
    running: Literal[True] = True  # false, with a `reason` and no other keys, if no agent runs
    ok: Literal[True] = True  # the request was carried out


# ── the other answers ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Explained(Verdict):
    """The answer to `why`: the verdict, all matching lines, and the pauses that changed it."""

    lines: tuple[Line, ...] = ()
    paused: tuple[PauseStatus, ...] | None = None
    unless_paused: Claim | None = None  # the entry that would block it without these pauses
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


@dataclass(frozen=True, slots=True)
class Flushed:
    """The answer to `flush`."""

    answers: int  # cached answers that were forgotten, in all resolvers
    ok: Literal[True] = True


@dataclass(frozen=True, slots=True)
class Flush(Order[Flushed]):
    """Forget what upstreams said about a name and all names below it, or about all names."""

    verb: ClassVar = "flush"
    name: str | None = None


REQUESTS = {kind.verb: kind for kind in (GetStatus, GetApps, Why, Reload, Rollback, Block, Allow, Forget, Pause, Resume, Flush)}
