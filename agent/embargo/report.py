"""Records about a policy and its enforcement, which several processes exchange and people see (`records`).

`Report` is stored with each compiled image; the guardian reports on single addresses and on learnt addresses. Since people see
them, names are in presentation format and addresses are text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from embargo.errors import Problem
from embargo.lists.policy import Switchboard
from embargo.records import Count, Limit, Word


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """A function of an app: whether it is on, and the number of entries in its lists and in its shared lists."""

    on: bool
    names: int = 0
    networks: int = 0
    shared_names: int = 0
    shared_networks: int = 0


@dataclass(frozen=True, slots=True)
class AppReport:
    """An app of the catalogue or of the administrator. `on`: at least one of its functions is on."""

    id: str
    name: str
    operator: str
    order: str
    summary: str
    homepage: str
    default: bool | None
    on: bool
    shared: bool
    functions: Mapping[str, FunctionReport]


@dataclass(frozen=True, slots=True)
class ListReport:
    """A list file of a generation."""

    list: str
    file: str
    entries: int
    problems: int
    modified: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a generation, apart from its image.

    `digest`: of the image; `fingerprint`: of all input of the generation; `material`: of the input of its image alone.
    """

    VERSION: ClassVar = 1

    digest: str
    fingerprint: str
    material: str
    switchboard: Switchboard  # of the configuration, without pauses
    names: int
    networks: int
    hosts: dict[str, tuple[str, ...]]  # local records: name → addresses
    tls_ca: str  # CA certificates in PEM for upstreams over TLS; empty: those of the system
    apps: tuple[AppReport, ...]
    lists: tuple[ListReport, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a list that matches a name or address."""

    list: str
    line: int
    rule: str
    app: str
    function: str


@dataclass(frozen=True, slots=True)
class LearntReason:
    """The entry that blocks a learnt address, and the blocked name that led to it."""

    app: str
    function: str
    list: str
    line: int
    rule: str
    name: str


@dataclass(frozen=True, slots=True)
class Spared:
    """An address that is not blocked although the blocked `name` leads to it, because the unblocked `neighbour` does too."""

    address: str
    name: str
    neighbour: str


@dataclass(frozen=True, slots=True)
class AboutAddress:
    """What the guardian knows about an address, apart from the lists."""

    passing: bool  # it passes ahead of the block sets, because an allowed name led to it
    names: tuple[str, ...]  # names in whose answers it was in the last days
    learnt: LearntReason | None
    spared: Spared | None


@dataclass(frozen=True, slots=True)
class Learning:
    """Learnt addresses: `addresses` are blocked, `known` are stored."""

    on: bool
    addresses: int
    known: int
    proving: int  # seconds until learnt addresses are not only recorded but blocked
    spared: tuple[Spared, ...]
    counters: dict[str, int]
    trouble: str  # why they cannot be stored on disk; empty if they can


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """Counters of an upstream server."""

    server: Word
    asked: Count
    failed: Count
    healthy: bool
    milliseconds: Annotated[float, Limit(least=0)]  # smoothed round-trip time
    last_error: Word
    plain: bool  # asked without EDNS, because it answers only then


@dataclass(frozen=True, slots=True)
class Claim:
    """An entry that claims a name or address."""

    app: str
    function: str
    list: str
    line: int
    rule: str
    on: bool  # its class is blocked or audited


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about queries for a name or packets to an address, and its reason.

    `blocked`, `audited` and `allowed` have the entry that decides; `passed` and `special` have a `reason`.
    """

    subject: str
    kind: Literal["name", "address"]
    verdict: Literal["blocked", "audited", "allowed", "passed", "special"]
    reason: str | None = None
    app: str | None = None
    function: str | None = None
    list: str | None = None
    line: int | None = None
    rule: str | None = None
    on: bool | None = None
    also: tuple[Claim, ...] = ()  # other entries that claim the subject
    client: str | None = None
    client_refused: str | None = None  # why the client gets no answers at all
    learnt: str | None = None  # the blocked name that led to the address
    names: tuple[str, ...] | None = None  # names in whose answers the address was in the last days
    spared: Spared | None = None
    passing: bool | None = None  # the address passes ahead of the block sets at present
