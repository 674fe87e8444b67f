"""An nftables table as values: sets, chains, rules, and the expressions that rules are made of.

Nothing here knows what is enforced. `ruleset` builds a table, `listing` shows it in the syntax of nft(8), `nft` encodes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from embargo.firewall import spans
from embargo.firewall.spans import Labelled

TABLE = "embargo"


class Meta(NamedTuple):
    """A property of the packet has this value."""

    key: str  # nfproto | l4proto | iifname | oifname
    value: str  # ipv4, ipv6, tcp, udp; "@name" for a set


class Address(NamedTuple):
    """The source or destination address is in a set; with `vmap` the set is a verdict map, which says what happens.

    `inside`: the IPv4 address that begins at this octet of an IPv6 address is meant; 0 for the address itself.
    `prefix`: only so many first bits are looked up, the others as zero; 0 for all.
    """

    family: int
    side: str  # saddr | daddr
    set_: str
    vmap: bool = False
    inside: int = 0
    prefix: int = 0


class Port(NamedTuple):
    """The source or destination port of this protocol (tcp or udp)."""

    proto: str
    port: int
    side: str = "dport"  # sport | dport


class Owner(NamedTuple):
    """The packet was sent by a process of this user on this machine."""

    uid: int


class Begins(NamedTuple):
    """The content of a TCP segment begins with these octets, 64 at most; a "0" among them matches any digit."""

    octets: bytes


class Judged(NamedTuple):
    """The flow's conntrack mark, in the bits of `mask`, is looked up in a map of verdicts."""

    mask: int
    set_: str


class Mark(NamedTuple):
    """Write this value into these bits of the flow's conntrack mark."""

    mask: int
    value: int


class Counter(NamedTuple):
    """Count the packet in a counter of the table."""

    name: str


class Log(NamedTuple):
    """Log the packet to this group (NFLOG), at a limited rate."""

    prefix: str
    group: int


class Reject(NamedTuple):
    """Drop the packet and tell its sender: by a TCP reset, or ICMP administratively prohibited or port unreachable."""

    kind: str  # reset | admin | port


class Refusal(NamedTuple):
    """The packet is itself a refusal: a TCP reset (tcp), or ICMP destination unreachable (icmp, icmpv6)."""

    proto: str


class Redirect(NamedTuple):
    """Send the packet to this port of this machine instead."""

    port: int


class Jump(NamedTuple):
    """Go on in another chain; if it comes to no verdict, behind this rule."""

    chain: str


class Return(NamedTuple):
    """Leave this chain without a verdict."""


class Accept(NamedTuple):
    """No further rule of this table's hook is asked. A drop in another table still drops the packet."""


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
    """Expressions from left to right; one that does not match ends the rule."""

    expressions: tuple[Expression, ...]
    comment: str = ""


class Hook(NamedTuple):
    """Where packets enter a base chain (nft(8), "ADDRESS FAMILIES")."""

    kind: str  # filter | nat
    name: str
    priority: int


class Chain(NamedTuple):
    """Rules by name; with a hook it is a base chain, else a chain that others jump to."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


ACCEPT = "accept"  # in an element of a verdict map, in place of a chain's name


class Element(NamedTuple):
    """Keys from first to last (equal in hash sets); in a verdict map the chain that they lead to, or ACCEPT."""

    first: int
    last: int
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a verdict map. `type`: ipv4_addr, ipv6_addr, mark or ifname; the elements of an ifname set are in `words`.

    `spans`: the keys, by the chain that they lead to; "" in a set. `elements` has an object for each, for listings and tests.
    """

    name: str
    type: str
    spans: Labelled[str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    interval: bool = False
    timeout: bool = False
    vmap: bool = False
    keep: bool = False  # the kernel keeps its content when the ruleset is replaced
    fixed: bool = False  # not counted among the elements of the ruleset
    learnt: bool = False  # filled while the ruleset is in force

    @property
    def size(self) -> int:
        """The number of elements that the kernel reserves space for."""
        return len(self.words) + spans.count(self.spans)

    @property
    def elements(self) -> tuple[Element, ...]:
        """All of them, sorted by key."""
        return tuple(sorted(Element(*ends, chain) for chain, found in self.spans.items() for ends in found.rows()))


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One table of the family inet. `counters`: their names."""

    generation: int
    counters: tuple[str, ...]
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    table: str = TABLE

    @property
    def elements(self) -> int:
        """How many addresses and networks of lists are in it."""
        return sum(spans.count(each.spans) for each in self.sets if not each.fixed)


def bare(ruleset: Ruleset, table: str) -> Ruleset:
    """The same rules in a table of another name, with empty sets: for a dry run."""
    return replace(ruleset, table=table, sets=tuple(replace(each, spans={}) for each in ruleset.sets))


#: the octet of an IP header where the address begins, by family and side (RFC 791, 8200)
OFFSETS = {(4, "saddr"): 12, (4, "daddr"): 16, (6, "saddr"): 8, (6, "daddr"): 24}


def mask_of(family: int, prefix: int) -> bytes:
    """The network mask of this prefix length."""
    bits = 32 if family == 4 else 128
    return ((1 << bits) - (1 << bits - prefix)).to_bytes(bits // 8)


def pattern(octets: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(offset, octets, mask) of the comparisons that a Begins makes, 16 octets each; an empty mask for none.

    A "0" is compared by its upper half alone, which digits (0x30 to 0x39) have in common with six other characters.
    """
    for at in range(0, len(octets), 16):
        part = octets[at : at + 16]
        mask = bytes(0xF0 if octet == 0x30 else 0xFF for octet in part)
        yield at, part, mask if mask.strip(b"\xff") else b""
