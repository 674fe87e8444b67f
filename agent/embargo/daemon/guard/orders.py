"""What the supervisor asks of the guardian, and what the guardian answers."""

from dataclasses import dataclass
from typing import Literal

from embargo.firewall.ruleset import Own
from embargo.lists.policy import Class, Switchboard
from embargo.records import Done, Order
from embargo.report import AboutAddress, Learning

#: what becomes of the rules at the end: keep them, keep the block sets without the redirect, or remove everything
Rules = Literal["keep", "unredirect", "remove"]

#: the events that it may send
TELLS = ("drop", "firewall")


@dataclass(frozen=True, slots=True)
class Applied:
    elements: int  # of the sets in force


@dataclass(frozen=True, slots=True)
class Apply(Order[Applied]):
    """Put a generation in force. Descriptor: the policy image. Interfaces by name, addresses and networks as text."""

    generation: int
    board: Switchboard
    lan: tuple[str, ...]
    clients: tuple[str, ...]  # networks of the lan interfaces
    excepted: tuple[str, ...]  # clients that are never filtered
    exempt: tuple[tuple[str, tuple[Class, ...]], ...]  # clients (networks), and the classes that are paused for them
    protected: tuple[str, ...]  # networks that are never blocked because of a name
    own: tuple[Own, ...]  # questions of our resolvers, which pass
    system: tuple[str, ...]  # the machine's resolvers, which its other processes may ask
    clients_by_address: dict[str, str]  # names of clients, from local records
    intercept_port: int  # 0: nothing is intercepted
    fail: str  # "closed" or "open"
    log_group: int
    ct_mark: int
    protect: bool
    learn: bool
    memory: str  # the file of learnt addresses


@dataclass(frozen=True, slots=True)
class Use(Order[Done]):
    """Speak to the kernel by this netlink socket. Descriptor: the socket, which the supervisor keeps too."""


@dataclass(frozen=True, slots=True)
class Meet(Order[Done]):
    """A resolver to listen to. Descriptors: one end of a channel, the page of marks to write."""


@dataclass(frozen=True, slots=True)
class Alive(Order[Done]):
    """Resolvers answer: port 53 may be redirected for the next seconds."""


@dataclass(frozen=True, slots=True)
class Intactness:
    intact: bool


@dataclass(frozen=True, slots=True)
class Intact(Order[Intactness]):
    """Whether the kernel shows our rules."""


@dataclass(frozen=True, slots=True)
class About(Order[AboutAddress]):
    """What is known of this address (4 or 16 octets) beside the lists."""

    address: bytes


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the firewall shows and has counted."""

    counters: dict[str, tuple[int, int]]  # chain → packets, octets
    present: bool
    owned: bool  # the kernel keeps other processes from changing the table
    restored: int  # times that the table was laid down again after others changed it
    cut: int  # connections deleted
    flowtables: tuple[str, ...]  # of others, whose flows pass our rules by
    patterns: bool  # the kernel can look into packets
    hits: dict[str, int]  # by class
    noted: int  # packets that the kernel logged
    lost: int  # records that the kernel dropped
    learning: Learning


@dataclass(frozen=True, slots=True)
class Stats(Order[Guarded]):
    """Tell what is in force and was counted."""


@dataclass(frozen=True, slots=True)
class Stop(Order[Done]):
    """End."""

    rules: Rules


ORDERS = (Apply, Use, Meet, Alive, Intact, About, Stats, Stop)
