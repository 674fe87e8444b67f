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

    on: bool  # it is blocked, or logged with mode = "audit"
    names: int = 0  # entries that are domain names; each covers the names below it, unless it begins with =
    networks: int = 0  # entries that are addresses or networks
    shared_names: int = 0  # names that other services use too; blocked only with [policy] shared
    shared_networks: int = 0  # networks that other services use too; blocked only with [policy] shared


@dataclass(frozen=True, slots=True)
class AppReport:
    """An app of the catalogue or of the administrator. `on`: at least one of its functions is on."""

    id: str  # the name of its directory, and what the configuration calls it
    name: str  # for people
    operator: str  # the company behind it
    order: str  # the legal basis and its present status
    summary: str  # what it is
    homepage: str  # its address
    default: bool | None  # selected by [policy] apps = "default"; absent if its app.toml does not say
    on: bool  # at least one of its functions is on
    shared: bool  # its shared lists are on too
    functions: Mapping[str, FunctionReport]  # name → function

    @property
    def blocked_names(self) -> int:
        """The number of entries with names in the lists that are on."""
        return sum(f.names + self.shared * f.shared_names for f in self.functions.values() if f.on)

    @property
    def blocked_networks(self) -> int:
        """The number of entries with addresses or networks in the lists that are on."""
        return sum(f.networks + self.shared * f.shared_networks for f in self.functions.values() if f.on)


@dataclass(frozen=True, slots=True)
class ListReport:
    """A list file of a generation."""

    list: str  # its short name, as in events: alipay/payment.list
    file: str  # its path
    entries: int  # lines that are entries, exceptions included
    problems: int  # lines that cannot be used
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
    off: bool = (
        False  # a line of a shared list that is off: it blocks nothing, and no shorter line of its app blocks what it matches
    )


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

    address: str  # the address
    name: str  # a blocked name that leads to it
    neighbour: str  # an unblocked name that leads to it


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

    on: bool  # [firewall] learn
    addresses: int  # addresses that are blocked
    known: int  # addresses that are stored
    proving: int  # seconds until learnt addresses are not only recorded but blocked
    spared: tuple[Spared, ...]  # addresses that are not blocked because unblocked names use them too
    counters: dict[str, int]  # since the start of the agent; shared: not blocked for that reason, freed: unblocked later
    trouble: str  # why they cannot be stored on disk; empty if they can


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """Counters of an upstream server."""

    server: Word  # scheme, address, port and certificate name
    asked: Count  # queries since the start of the agent
    failed: Count  # queries without a usable answer
    healthy: bool  # at least one worker considers it usable
    milliseconds: Annotated[float, Limit(least=0)]  # smoothed round-trip time
    last_error: Word  # empty if there was none
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
    answer: str | None = (
        None  # the name or address in the answer for the subject that the entry claims, in place of the subject
    )
    learnt: str | None = None  # the blocked name that led to the address
    names: tuple[str, ...] | None = None  # names in whose answers the address was in the last days
    spared: Spared | None = None
    passing: bool | None = None  # the address passes ahead of the block sets at present
