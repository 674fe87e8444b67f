"""What the supervisor asks of a resolver, and what a resolver answers.

A resolver parses packets of strangers, so what it counts is decoded within bounds: `Count` and `Word`.
"""

from dataclasses import dataclass

from embargo.lists.pauses import Exempt
from embargo.lists.policy import Switchboard
from embargo.records import Count, Done, Order, Word
from embargo.report import UpstreamStats

#: the events that it may send
TELLS = ("dns",)

#: names in `cache` and `counters` whose values go up and down; all others only grow
LEVELS = ("pending", "entries", "octets")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a resolver needs to know of the configuration; addresses, networks, servers and names as text."""

    allow_from: tuple[str, ...]
    block_mode: str | tuple[str, ...]  # tuple: the addresses to answer with
    block_ttl: int  # seconds
    upstream: tuple[str, ...]
    forward: dict[str, tuple[str, ...]]  # zone → servers
    hosts: dict[str, tuple[str, ...]]  # name → addresses
    local: tuple[str, ...]  # zones that no upstream is asked about
    tls_ca: str  # certificates in PEM; empty: the authorities of the system
    strip_ech: bool
    rebind: bool
    rebind_except: tuple[str, ...]  # zones
    log_names: str  # "blocked", "all" or "none"
    learn: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """How queries are judged; the policy image comes beside the order as a descriptor."""

    generation: int
    board: Switchboard
    exempt: tuple[Exempt, ...]  # clients with a switchboard of their own


@dataclass(frozen=True, slots=True)
class Start(Order[Done]):
    """The first order. Descriptors: the image, then the sockets."""

    judgement: Judgement
    settings: Settings
    sockets: tuple[str, ...]  # "udp" or "tcp" each
    user: tuple[int, int] | None  # (user, group) to become; None: stay
    inside: bool  # inside the supervisor: keep its powers and limits


@dataclass(frozen=True, slots=True)
class Adopt(Order[Done]):
    """Judge by this from the next packet on. Descriptor: the image."""

    judgement: Judgement
    settings: Settings | None  # None: as before


@dataclass(frozen=True, slots=True)
class Meet(Order[Done]):
    """Speak to the guardian. Descriptors: one end of a channel, the page of marks to read."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a resolver has counted since it started; `hits` by class."""

    counters: dict[Word, Count]
    hits: dict[Word, Count]
    cache: dict[Word, Count]
    upstreams: tuple[UpstreamStats, ...]


@dataclass(frozen=True, slots=True)
class Stats(Order[Counted]):
    """Tell what was counted."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """How many cached answers a resolver has forgotten."""

    answers: Count


@dataclass(frozen=True, slots=True)
class Flush(Order[Flushed]):
    """Forget what upstreams said about a name and all names below it; "." is all names."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop(Order[Done]):
    """Answer what is held for a second at most, hand over the events, and end."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the policy claims of the answer for a name."""

    answer: Word = ""  # the name or address in it that the entry claims; empty: nothing
    audit: bool = False  # it is logged only
    generation: Count = 0
    source: Count = 0  # number of the list in the image of that generation
    line: Count = 0
    rule: Word = ""


@dataclass(frozen=True, slots=True)
class Judge(Order[Judged]):
    """Resolve a name and judge the answer, as for a query of this client. The answer comes when that is known."""

    name: str
    qtype: int
    client: str


ORDERS = (Start, Adopt, Meet, Stats, Flush, Judge, Stop)
