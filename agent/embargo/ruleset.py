"""The nftables side of a policy, as values.

`spec` works out what is to be enforced (addresses by class, interfaces, ports); `build` lays it down as one table of sets,
chains and rules; `render` shows it as `nft` would, for people and golden files. `daemon.netlink` says it to the kernel.

The layout. A packet is looked up, not walked: verdict maps lead from an address to the chain of its class, so the number of
look-ups does not grow with apps or entries. Single addresses stand in hash maps, ranges in interval maps, never mixed: a
hash changes in microseconds, an interval map in time that grows with it. Maps carry the generation in their name, since
content is replaced by filling new maps aside and switching the rules in one transaction; chains and counters keep theirs.

    forward, output (filter -5, before any established-accept) → to4, from4, to6, from6 → class chain: count, log, reject
    prerouting (nat -110): port 53 of policed clients comes to us
"""

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from embargo.image import Image
from embargo.policy import BYPASS, PORT_FUNCTIONS, Action, Class, Switchboard

TABLE = "embargo"
RESERVED = "embargo-verify"  # the interface of `embargo verify`, policed wherever a LAN is: what it proves holds for the LAN
SINK = "embargo-sink"  # where its packets end
FILTER_PRIORITY = -5  # before the filter chains of others, whose established-accept would keep open flows alive
NAT_PRIORITY = -110  # before docker's and everybody's -100
DOT_PORTS = (("tcp", 853),)  # RFC 7858
DOQ_PORTS = (("udp", 853), ("udp", 784), ("udp", 8853))  # RFC 9250 and its drafts
LOG_RATE = 100  # records a second and class; counters count every packet
SNAPLEN = 64  # octets of a packet: its IP and transport headers
ALIVE_SECONDS = 3  # fail = "open": how long the kernel redirects port 53 after the guardian last said that somebody answers


class Meta(NamedTuple):
    key: str  # nfproto | l4proto | iifname | oifname
    value: str  # ipv4, ipv6, tcp, udp; "@name" for a set


class Address(NamedTuple):
    family: int
    side: str  # saddr | daddr
    set_: str
    vmap: bool = False


class Port(NamedTuple):
    proto: str
    port: int


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


Expression = Meta | Address | Port | Counter | Log | Reject | Refusal | Redirect | Jump | Return


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


class Element(NamedTuple):
    """Keys first to last (equal in hash sets); the chain it leads to in a verdict map."""

    first: int
    last: int
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or a verdict map. `type`: ipv4_addr, ipv6_addr or ifname; ifname elements are in `words`."""

    name: str
    type: str
    elements: tuple[Element, ...] = ()
    words: tuple[str, ...] = ()
    interval: bool = False
    timeout: bool = False
    vmap: bool = False
    keep: bool = False  # its content is the kernel's: not replaced with a generation


@dataclass(frozen=True, slots=True)
class Ruleset:
    generation: int
    counters: tuple[str, ...]
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]
    table: str = TABLE

    @property
    def elements(self) -> int:
        return sum(len(each.elements) for each in self.sets)


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be enforced, whatever the policy behind it."""

    generation: int
    classes: tuple[tuple[Class, Action], ...]  # those that act, each with a chain
    ranges: tuple[tuple[int, int, int, Class], ...]  # (family, first, last, class), disjoint and sorted per family
    lan: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    intercept_port: int = 0  # 0: port 53 is left alone
    fail: str = "closed"
    log_group: int = 0


def spec(
    image: Image, board: Switchboard, generation: int, *, lan: Collection[str] = (), except_: Iterable[str] = (),
    intercept_port: int = 0, fail: str = "closed", log_group: int = 0,
) -> Spec:  # fmt: skip
    """What the switchboard makes of the image's addresses."""
    ranges: list[tuple[int, int, int, Class]] = []
    for family in (4, 6):
        for first, last, claims in image.ranges(family):
            action, decision = board.choose(claims)
            if action is Action.PASS or decision is None:
                continue
            class_ = image.classes[decision.class_]
            if ranges and ranges[-1][0] == family and ranges[-1][2] + 1 == first and ranges[-1][3] == class_:
                ranges[-1] = (family, ranges[-1][1], last, class_)
            else:
                ranges.append((family, first, last, class_))
    used = {range_[3] for range_ in ranges}
    classes = tuple(
        (class_, action)
        for class_, action in zip(image.classes, board.actions, strict=True)
        if action is not Action.PASS and (class_ in used or (class_.app == BYPASS and class_.function in PORT_FUNCTIONS))
    )
    policed = tuple(dict.fromkeys((*lan, RESERVED))) if lan else ()
    return Spec(generation, classes, tuple(ranges), policed, tuple(except_), intercept_port, fail, log_group)


def chain_name(class_: Class) -> str:
    return f"{class_.app}_{class_.function}"


def build(what: Spec, table: str = TABLE) -> Ruleset:
    """The table that enforces a Spec."""
    return Ruleset(
        what.generation,
        tuple(chain_name(class_) for class_, _ in what.classes) + (("intercept_leak",) if what.intercept_port else ()),
        tuple(_sets(what)),
        tuple(_chains(what)),
        table,
    )


def _sets(what: Spec) -> Iterator[Set]:
    generation = what.generation
    for family, type_ in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        mine = [Element(first, last, chain_name(class_)) for f, first, last, class_ in what.ranges if f == family]
        yield Set(f"address{family}_{generation}", type_, tuple(e for e in mine if e.first == e.last), vmap=True)
        yield Set(f"network{family}_{generation}", type_, tuple(e for e in mine if e.first != e.last), interval=True, vmap=True)
        yield Set(f"allow{family}", type_, timeout=True, keep=True)
        networks = [ipaddress.ip_network(text) for text in what.except_]
        merged = ipaddress.collapse_addresses(n for n in networks if n.version == family)  # type: ignore[type-var]
        excepted = tuple(Element(int(n[0]), int(n[-1])) for n in sorted(merged))
        if excepted:
            yield Set(f"except{family}_{generation}", type_, excepted, interval=True)
    if what.lan:
        yield Set(f"lan_{generation}", "ifname", words=what.lan)
    if what.fail == "open":  # also where nothing is intercepted: the guardian renews it without asking
        yield Set("alive", "ifname", timeout=True, keep=True)


def _chains(what: Spec) -> Iterator[Chain]:
    excepted: set[int] = {ipaddress.ip_network(text).version for text in what.except_}
    lan = f"@lan_{what.generation}"
    for class_, action in what.classes:
        yield Chain(chain_name(class_), tuple(_class_rules(class_, action, what.log_group)))
    for family in (4, 6):
        for side, other in (("daddr", "saddr"), ("saddr", "daddr")):
            yield Chain(f"{_SIDES[side]}{family}", tuple(_police(family, side, other, what.generation, family in excepted)))
    forward: list[Rule] = []
    if what.lan:
        forward += _ports(what, lan, excepted)
        for interface in ("iifname", "oifname"):
            forward += _into(("daddr", "saddr"), (Meta(interface, lan),))
    else:
        forward += _into(("daddr", "saddr"))
    yield Chain("forward", tuple(forward), Hook("filter", "forward", FILTER_PRIORITY))
    # what we refuse a forwarded packet with leaves here: with the listed address as its source, so by destination alone; or
    # to the listed address, and would be counted and logged as if the client had tried to reach it
    refusals = [Rule((Refusal(proto), Return()), "sent by a reject") for proto in ("tcp", "icmp", "icmpv6")]
    yield Chain("output", (*refusals, *_into(("daddr",))), Hook("filter", "output", FILTER_PRIORITY))
    if what.intercept_port and what.lan:
        yield Chain("prerouting", tuple(_intercept(what, lan, excepted)), Hook("nat", "prerouting", NAT_PRIORITY))


_SIDES = {"daddr": "to", "saddr": "from"}


def _into(sides: Iterable[str], match: tuple[Expression, ...] = ()) -> list[Rule]:
    """Packets to and from listed addresses, each family to its own chains."""
    return [Rule((*match, Meta("nfproto", f"ipv{f}"), Jump(f"{_SIDES[side]}{f}"))) for f in (4, 6) for side in sides]


def _class_rules(class_: Class, action: Action, group: int) -> Iterator[Rule]:
    yield Rule((Counter(chain_name(class_)),), f"app {class_.app}, function {class_.function}")
    yield Rule((Log(f"embargo {class_}", group),))
    if action is Action.BLOCK:
        yield Rule((Meta("l4proto", "tcp"), Reject("reset")))
        yield Rule((Reject("admin"),))


def _police(family: int, side: str, other: str, generation: int, excepted: bool) -> Iterator[Rule]:
    """The listed address on one side, the client on the other."""
    if excepted:
        yield Rule((Address(family, other, f"except{family}_{generation}"), Return()), "clients never policed")
    yield Rule((Address(family, side, f"allow{family}"), Return()), "behind names on the allow list")
    yield Rule((Address(family, side, f"address{family}_{generation}", vmap=True),))
    yield Rule((Address(family, side, f"network{family}_{generation}", vmap=True),))


def _ports(what: Spec, lan: str, excepted: set[int]) -> Iterator[Rule]:
    """Encrypted DNS by port, and what slips past the interception."""
    for family in sorted(excepted):
        yield Rule((Address(family, "saddr", f"except{family}_{what.generation}"), Return()), "clients never policed")
    on = {class_ for class_, _ in what.classes}
    for function, ports in (("dot", DOT_PORTS), ("doq", DOQ_PORTS)):
        class_ = Class(BYPASS, function)
        if class_ in on:
            yield from (Rule((Meta("iifname", lan), Port(*port), Jump(chain_name(class_)))) for port in ports)
    if what.intercept_port:
        for proto in ("udp", "tcp"):
            reject = Reject("reset" if proto == "tcp" else "port")
            yield Rule(
                (Meta("iifname", _policed(what, lan)), Port(proto, 53), Counter("intercept_leak"), reject),
                "only this gateway's resolver",
            )


def _intercept(what: Spec, lan: str, excepted: set[int]) -> Iterator[Rule]:
    for family in sorted(excepted):
        yield Rule((Address(family, "saddr", f"except{family}_{what.generation}"), Return()), "clients never policed")
    for proto in ("udp", "tcp"):
        interface = Meta("iifname", _policed(what, lan))
        yield Rule((interface, Port(proto, 53), Redirect(what.intercept_port)), "any other resolver is us")


def _policed(what: Spec, lan: str) -> str:
    """Where port 53 is ours: on the lan interfaces, or on those of them that the guardian says are answered just now."""
    return "@alive" if what.fail == "open" else lan


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def render(ruleset: Ruleset, *, elements: bool = True) -> str:
    """The table in the syntax of nft(8), in a fixed order. Without `elements` their number stands instead."""
    out = [f"table inet {ruleset.table} {{"]
    out += [f"\tcounter {name} {{\n\t}}" for name in ruleset.counters]
    for each in ruleset.sets:
        out += ["", f"\t{'map' if each.vmap else 'set'} {each.name} {{"]
        out.append(f"\t\ttype {each.type}{' : verdict' if each.vmap else ''}")
        flags = [word for word, on in (("interval", each.interval), ("timeout", each.timeout)) if on]
        out += [f"\t\tflags {','.join(flags)}"] if flags else []
        shown = _elements(each)
        if shown and elements:
            out.append("\t\telements = { " + ",\n\t\t\t     ".join(shown) + " }")
        elif shown:
            out.append(f"\t\t# {len(shown)} elements")
        out.append("\t}")
    for chain in ruleset.chains:
        out += ["", f"\tchain {chain.name} {{"]
        if chain.hook:
            kind, hook, priority = chain.hook
            out.append(f"\t\ttype {kind} hook {hook} priority {priority}; policy accept;")
        out += ["\t\t" + _rule_text(rule) for rule in chain.rules]
        out.append("\t}")
    return "\n".join([*out, "}", ""])


def _elements(each: Set) -> list[str]:
    if each.type == "ifname":
        return [f'"{word}"' for word in each.words]
    make = ipaddress.IPv4Address if each.type == "ipv4_addr" else ipaddress.IPv6Address
    shown = []
    for first, last, chain in each.elements:
        text = str(make(first)) if first == last else f"{make(first)}-{make(last)}"
        shown.append(f"{text} : jump {chain}" if each.vmap else text)
    return shown


def _rule_text(rule: Rule) -> str:
    text = " ".join(map(_expression_text, rule.expressions))
    return f'{text} comment "{rule.comment}"' if rule.comment else text


def _expression_text(expression: Expression) -> str:
    match expression:
        case Meta("iifname" | "oifname" as key, value):
            return f"{key} {value}"
        case Meta(key, value):
            return f"meta {key} {value}"
        case Address(family, side, set_, vmap):
            return f"{'ip' if family == 4 else 'ip6'} {side} {'vmap ' if vmap else ''}@{set_}"
        case Port(proto, port):
            return f"{proto} dport {port}"
        case Counter(name):
            return f'counter name "{name}"'
        case Log(prefix, group):
            return (
                f"limit rate {LOG_RATE}/second burst {LOG_RATE} packets "
                f'log prefix "{prefix}" group {group} snaplen {SNAPLEN} queue-threshold 32'
            )
        case Reject(kind):
            return {
                "reset": "reject with tcp reset",
                "admin": "reject with icmpx admin-prohibited",
                "port": "reject with icmpx port-unreachable",
            }[kind]
        case Refusal(proto):
            return "tcp flags rst" if proto == "tcp" else f"{proto} type destination-unreachable"
        case Redirect(port):
            return f"redirect to :{port}"
        case Jump(chain):
            return f"jump {chain}"
        case Return():
            return "return"
