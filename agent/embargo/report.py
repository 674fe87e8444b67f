"""What processes and people are told about a policy and its enforcement, as records (`records`).

`Report` stands beside each compiled image; the guardian describes single addresses and what it has learnt. Texts are shown to
people, so names are in presentation format and addresses in text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from embargo.errors import Problem
from embargo.lists.policy import Switchboard
from embargo.records import Count, Limit, Word


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """A function of an app: whether it is on, and the entries of its lists and of its shared lists."""

    on: bool
    names: int = 0
    networks: int = 0
    shared_names: int = 0
    shared_networks: int = 0


@dataclass(frozen=True, slots=True)
class AppReport:
    """An app of the catalogue or the administrator's own; `on`: at least one function is."""

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
    list: str
    file: str
    entries: int
    problems: int
    modified: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Report:
    """What a generation is made of.

    `fingerprint`: digest of everything the generation was made from; `material`: of what its image was made from.
    """

    VERSION: ClassVar = 1

    digest: str
    fingerprint: str
    material: str
    switchboard: Switchboard  # as the configuration asks for, without pauses
    names: int
    networks: int
    hosts: dict[str, tuple[str, ...]]  # local records: name → addresses
    tls_ca: str  # certificates in PEM that upstreams are checked against; empty: the system's
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
    """The entry that blocks an address because a name led there."""

    app: str
    function: str
    list: str
    line: int
    rule: str
    name: str


@dataclass(frozen=True, slots=True)
class Spared:
    """An address that the blocked `name` leads to and that stays open, because `neighbour` is there too."""

    address: str
    name: str
    neighbour: str


@dataclass(frozen=True, slots=True)
class AboutAddress:
    """What is known of an address beside the lists."""

    passing: bool  # ahead of the block sets: an allowed name led to it
    names: tuple[str, ...]  # answered with it lately
    learnt: LearntReason | None
    spared: Spared | None


@dataclass(frozen=True, slots=True)
class Learning:
    """Addresses behind blocked names: how many are blocked, and how many are remembered."""

    on: bool
    addresses: int
    known: int
    proving: int  # seconds until learnt addresses are blocked and not only recorded
    spared: tuple[Spared, ...]
    counters: dict[str, int]
    trouble: str  # why they cannot be saved


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """What resolvers have counted of a server they ask."""

    server: Word
    asked: Count
    failed: Count
    healthy: bool
    milliseconds: Annotated[float, Limit(least=0)]  # smoothed round-trip time
    last_error: str


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
    """What happens to queries for a name or packets to an address, and why.

    `blocked`, `audited` and `allowed` name the entry that decides; `passed` and `special` give a `reason`.
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
    also: tuple[Claim, ...] = ()  # the other entries that claim it
    client: str | None = None
    client_refused: str | None = None  # why this client gets no answer at all
    learnt: str | None = None  # the blocked name that led to the address
    names: tuple[str, ...] | None = None  # answered with the address lately
    spared: Spared | None = None
    passing: bool | None = None  # the address is ahead of the block sets just now
