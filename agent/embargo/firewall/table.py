"""An nftables table as values: sets, chains, rules, and the expressions that rules are made of.

Nothing here knows what is enforced. `ruleset` builds one of these, `listing` shows it, `nft` says it to the kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from embargo.firewall import spans
from embargo.firewall.spans import Labelled

TABLE = "embargo"


class Meta(NamedTuple):
    key: str  # nfproto | l4proto | iifname | oifname
    value: str  # ipv4, ipv6, tcp, udp; "@name" for a set


class Address(NamedTuple):
    """`inside`: the IPv4 address that begins at this octet of an IPv6 one; 0 for the address itself.

    `prefix`: so many of its first bits, the others as zero; 0 for all of them.
    """

    family: int
    side: str  # saddr | daddr
    set_: str
    vmap: bool = False
    inside: int = 0
    prefix: int = 0


class Port(NamedTuple):
    proto: str
    port: int
    side: str = "dport"  # sport | dport


class Owner(NamedTuple):
    """A packet of this machine's own, sent by a process of this user."""

    uid: int


class Begins(NamedTuple):
    """What a TCP segment carries begins like this, any digit standing for "0"; 64 octets at most."""

    octets: bytes


class Judged(NamedTuple):
    """The flow's conntrack mark, in the bits of `mask`, is looked up in a map of verdicts."""

    mask: int
    set_: str


class Mark(NamedTuple):
    """Write that into the flow's conntrack mark."""

    mask: int
    value: int


class Counter(NamedTuple):
    name: str


class Log(NamedTuple):
    prefix: str
    group: int


class Reject(NamedTuple):
    kind: str  # reset | admin | port


class Refusal(NamedTuple):
    """The packet is itself a refusal: a reset (tcp), or says that a destination is unreachable (icmp, icmpv6)."""

    proto: str


class Redirect(NamedTuple):
    port: int


class Jump(NamedTuple):
    chain: str


class Return(NamedTuple):
    pass


class Accept(NamedTuple):
    """This chain's hook has seen enough of the packet. It does not overrule a drop in somebody else's table."""


Expression = (
    Meta
    | Address
    | Port
    | Owner
    | Begins
    | Judged
    | Mark
    | Counter
    | Log
    | Reject
    | Refusal
    | Redirect
    | Jump
    | Return
    | Accept
)


class Rule(NamedTuple):
    expressions: tuple[Expression, ...]
    comment: str = ""


class Hook(NamedTuple):
    kind: str  # filter | nat
    name: str
    priority: int


class Chain(NamedTuple):
    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


ACCEPT = "accept"  # in place of a chain


class Element(NamedTuple):
    """Keys first to last (equal in hash sets); the chain it leads to in a verdict map, or ACCEPT."""

    first: int
    last: int
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a verdict map. `type`: ipv4_addr, ipv6_addr, mark or ifname; ifname elements are in `words`.

    `spans`: the keys by the chain that they lead to, "" in a set. `elements` are for people and tests: one object each.
    """

    name: str
    type: str
    spans: Labelled[str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    interval: bool = False
    timeout: bool = False
    vmap: bool = False
    keep: bool = False  # its content is the kernel's: not replaced with a generation
    fixed: bool = False  # the same in every ruleset
    learnt: bool = False  # filled while the ruleset is in force

    @property
    def size(self) -> int:
        return len(self.words) + spans.count(self.spans)

    @property
    def elements(self) -> tuple[Element, ...]:
        """Sorted."""
        return tuple(sorted(Element(*ends, chain) for chain, found in self.spans.items() for ends in found.rows()))


@dataclass(frozen=True, slots=True)
class Ruleset:
    generation: int
    counters: tuple[str, ...]
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    table: str = TABLE

    @property
    def elements(self) -> int:
        """Addresses and networks."""
        return sum(spans.count(each.spans) for each in self.sets if not each.fixed)


def bare(ruleset: Ruleset, table: str) -> Ruleset:
    """The same rules under another name, and nothing in their sets: for a dry run."""
    return replace(ruleset, table=table, sets=tuple(replace(each, spans={}) for each in ruleset.sets))


#: where the address begins in an IP header, by family and side
OFFSETS = {(4, "saddr"): 12, (4, "daddr"): 16, (6, "saddr"): 8, (6, "daddr"): 24}


def mask_of(family: int, prefix: int) -> bytes:
    """The octets of a network mask."""
    bits = 32 if family == 4 else 128
    return ((1 << bits) - (1 << bits - prefix)).to_bytes(bits // 8)


def pattern(octets: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(place, octets, mask if there is one) of what is compared, 16 octets at once: 0x30 to 0x3F stand for "0"."""
    for at in range(0, len(octets), 16):
        part = octets[at : at + 16]
        mask = bytes(0xF0 if octet == 0x30 else 0xFF for octet in part)
        yield at, part, mask if mask.strip(b"\xff") else b""
