"""The nftables side of a policy, as values.

`spec` works out what is to be enforced (addresses by class, interfaces, ports); `build` makes one table of it, of sets, chains
and rules; `listing` shows the table as `nft` would, `nft` encodes it, `host.nftables` sends it to the kernel.

The rules look an address up instead of comparing it with one entry after the other: verdict maps lead from an address to the
chain of its class, so the number of look-ups does not grow with apps or entries (`layout` says which kind of set an address
stands in). Learnt addresses stand in hash sets, each with a timeout. The names of sets carry a generation, since content is
replaced by filling new sets aside and switching the rules in one transaction (`change`); chains and counters keep their names.

    forward (filter -5, before any established-accept): judged already? → police → ports; to4, from4, to6, from6; mark
    output (filter -5) → to4, to6                                                          → class chain: count, log, reject
    prerouting (nat -110): port 53 of filtered clients comes to us

Where connections are tracked anyway, a flow that was let through is marked with the number of that judgement (some bits of its
conntrack mark), and its next packets cost one comparison. So everything that a flow's judgement depends on must be seen in both
directions, and whenever something becomes blocked the number changes: every open flow is judged again. An IPv6 form that
carries an IPv4 address (RFC 4291, 6052, 8215, 3056) is looked up by the address inside.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from embargo.firewall import layout, spans, table
from embargo.firewall.layout import Listed
from embargo.firewall.spans import Labelled, Spans
from embargo.lists.image import Image
from embargo.lists.policy import BYPASS, Action, Class, Switchboard

FILTER_PRIORITY = -5  # before the filter chains of other tables, whose established-accept would keep open flows alive
NAT_PRIORITY = -110  # before dstnat (-100), where Docker and most others redirect
DOT_PORTS = (("tcp", 853),)  # RFC 7858
DOQ_PORTS = (("udp", 853), ("udp", 784), ("udp", 8853))  # RFC 9250 and its drafts
LOG_RATE = 1000  # records a second and class; counters count every packet, so the log can say how many have no record
SNAPLEN = 64  # octets of a packet: its IP and transport headers
RESERVED = "embargo-verify"  # interface where probes of `embargo verify` come in: always filtered, and routed to the sink alone
SINK = "embargo-sink"  # interface where the probes end
#: IPv6 prefixes that carry an IPv4 address, and the octet where it begins (RFC 4291, 6052, 8215, 3056)
EMBEDDED = (("::ffff:0:0/96", 12), ("64:ff9b::/96", 12), ("64:ff9b:1::/48", 12), ("2002::/16", 2))
#: how the cleartext questions of HTTPDNS libraries begin, "0" standing for any digit: Tencent's look-up and server list,
#: Alibaba's look-ups (v2, and the older ones behind an account number of six digits)
HTTPDNS = (
    b"GET /d?dn=", b"GET /conf?id=", b"GET /v2/d?id=",
    b"GET /000000/d?host=", b"GET /000000/sign_d?host=", b"GET /000000/resolve?host=", b"GET /000000/sign_resolve?host=",
)  # fmt: skip
ALIVE_SECONDS = 3  # fail = "open": how long the kernel redirects port 53 after the guardian last saw resolvers answer


class LearntSet(NamedTuple):
    """A set of learnt addresses, by the start of its name, and the class whose chain they lead to.

    A set, not a verdict map: an element that is added to a verdict map in use makes the kernel look through all such maps
    (70 ms beside a million elements; a set takes 12 µs).
    """

    set_: str
    class_: Class


#: classes that the addresses of very large lists lead to: the guardian looks up in the image which app each belongs to
LISTED = {action: Class("listed", word) for action, word in ((Action.BLOCK, "block"), (Action.AUDIT, "audit"))}
LEARNT = {
    Action.BLOCK: LearntSet("learnt", Class("learnt", "block")), Action.AUDIT: LearntSet("audited", Class("learnt", "audit")),
}  # fmt: skip


class Own(NamedTuple):
    """Questions of our own resolvers. They pass by user id, not by address: clients must not reach a listed upstream."""

    uid: int
    proto: str
    port: int


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be enforced: the policy's addresses, and the settings of [firewall]."""

    generation: int
    classes: tuple[tuple[Class, Action], ...]  # those that block or audit, each with a chain
    ranges: Mapping[int, Labelled[Class]]  # by family, disjoint
    lan: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    intercept_port: int = 0  # 0: port 53 is left alone
    fail: str = "closed"
    log_group: int = 0
    ct_mark: int = 0  # bits of the conntrack mark; 0: every packet is judged
    judgement: int = 1  # the number that stands in these bits, see `value_of`
    patterns: bool = True  # look into cleartext HTTP for HTTPDNS
    own: tuple[Own, ...] = ()
    system: tuple[str, ...] = ()  # addresses of the resolvers that other processes of this machine ask
    exempt: tuple[tuple[str, tuple[Class, ...]], ...] = ()  # networks of clients, and the classes that do not act for them


def spec(
    image: Image, board: Switchboard, generation: int, *, lan: Iterable[str] = (), except_: Iterable[str] = (),
    intercept_port: int = 0, fail: str = "closed", log_group: int = 0, ct_mark: int = 0, patterns: bool = True,
    own: Iterable[Own] = (), system: Iterable[str] = (), exempt: Iterable[tuple[str, tuple[Class, ...]]] = (),
) -> Spec:  # fmt: skip
    """The Spec of a policy: the image's addresses, each for the first class that claims it and that the switchboard acts on."""
    ranges: dict[int, dict[Class, Spans]] = {}
    acting = [action is not Action.PASS for action in board.actions]
    for family in (4, 6):
        columns = [spans.empty(family) for _ in image.classes]
        for first, last, claiming in image.classed(family):
            number = claiming[0] if acting[claiming[0]] else next((each for each in claiming if acting[each]), None)
            if number is None:
                continue
            firsts, lasts = columns[number]
            if lasts and lasts[-1] + 1 == first:
                lasts[-1] = last
            else:
                firsts.append(first)
                lasts.append(last)
        ranges[family] = {class_: each for class_, each in zip(image.classes, columns, strict=True) if each.firsts}
    # also those without an address in the lists: one may be learnt at any time
    classes = tuple((c, action) for c, action in zip(image.classes, board.actions, strict=True) if action is not Action.PASS)
    return Spec(
        generation, classes, ranges, tuple(lan), tuple(except_), intercept_port, fail, log_group, ct_mark,
        patterns=patterns, own=tuple(own), system=tuple(system), exempt=tuple(exempt),
    )  # fmt: skip


def value_of(judgement: int, mask: int) -> int:
    """The judgement's number in the bits of a mask (of consecutive bits, two at least). Never 0: a new flow has that."""
    shift = (mask & -mask).bit_length() - 1
    return (1 + judgement % (mask >> shift)) << shift


def chain_name(class_: Class) -> str:
    """The name of a class's chain: app and function, with an underscore between."""
    return f"{class_.app}_{class_.function}"


def build(what: Spec, table_name: str = table.TABLE) -> table.Ruleset:
    """The table that enforces a Spec."""
    actions = _actions(what)
    common = chain_name(LISTED[actions[0]]) if len(actions) == 1 else ""
    listed = {
        family: layout.sort(family, [(chain_name(c), each) for c, each in what.ranges.get(family, {}).items()], common)
        for family in (4, 6)
    }
    return table.Ruleset(
        what.generation,
        (*(chain_name(class_) for class_, _ in _acting(what, listed)), *(("intercept_leak",) if what.intercept_port else ())),
        tuple(_sets(what, listed)),
        tuple(_chains(what, listed)),
        table_name,
    )


def _actions(what: Spec) -> list[Action]:
    return sorted({action for _, action in what.classes}, reverse=True)


def _acting(what: Spec, listed: Mapping[int, Listed]) -> list[tuple[Class, Action]]:
    """The classes that have a chain, with those of learnt addresses and of very large lists."""
    acting = [*what.classes, *((LEARNT[action].class_, action) for action in _actions(what))]
    return acting + [(LISTED[action], action) for action in _actions(what) if any(each.chain for each in listed.values())]


def _sets(what: Spec, listed: Mapping[int, Listed]) -> Iterator[table.Set]:
    generation = what.generation
    for family, type_ in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        yield from _listed_sets(what, family, type_, listed[family])
        yield table.Set(f"allow{family}", type_, timeout=True, keep=True)
        yield from _client_sets(what, family, type_)
    for side in _SIDES.values():
        inside = [(ipaddress.IPv6Network(prefix), f"{side}6_in{at}") for prefix, at in EMBEDDED]
        ranges = spans.gather(sorted((6, int(net[0]), int(net[-1]), chain) for net, chain in inside))[6]
        yield table.Set(f"{side}_embedded_{generation}", "ipv6_addr", ranges, interval=True, vmap=True, fixed=True)
    if what.ct_mark:
        value = value_of(what.judgement, what.ct_mark)
        yield table.Set(f"judged_{generation}", "mark", judged(value), vmap=True, fixed=True)
    if what.lan:
        yield table.Set(f"lan_{generation}", "ifname", words=(*what.lan, RESERVED))
    if what.fail == "open":  # also where nothing is intercepted: the guardian renews it without asking
        yield table.Set("alive", "ifname", timeout=True, keep=True)


def _listed_sets(what: Spec, family: int, type_: str, listed: Listed) -> Iterator[table.Set]:
    generation, vmap = what.generation, not listed.chain
    yield table.Set(f"address{family}_{generation}", type_, listed.addresses, vmap=vmap)
    yield table.Set(f"network{family}_{generation}", type_, listed.networks, interval=True, vmap=vmap)
    for length, elements in listed.prefixes.items():
        yield table.Set(f"prefix{family}_{length}_{generation}", type_, elements, vmap=vmap)
    for action in _actions(what):
        yield table.Set(f"{LEARNT[action].set_}{family}_{generation}", type_, timeout=True, learnt=True)


def _client_sets(what: Spec, family: int, type_: str) -> Iterator[table.Set]:
    """Sets of the machine's resolvers, of clients that are never filtered, and of clients with a paused class."""
    generation = what.generation
    servers = {int(ipaddress.ip_address(text.partition("%")[0])) for text in what.system if _family(text) == family}
    if servers:
        alone = spans.gather((family, number, number, "") for number in sorted(servers))[family]
        yield table.Set(f"system{family}_{generation}", type_, alone, fixed=True)
    networks = [ipaddress.ip_network(text) for text in what.except_]
    merged = ipaddress.collapse_addresses(n for n in networks if n.version == family)  # type: ignore[type-var] # of one family, which types cannot tell
    excepted = spans.gather((family, int(n[0]), int(n[-1]), "") for n in sorted(merged))
    if excepted[family]:
        yield table.Set(f"except{family}_{generation}", type_, excepted[family], interval=True)
    for number, (text, _) in enumerate(what.exempt):
        network = ipaddress.ip_network(text)
        if network.version == family:
            clients = spans.gather([(family, int(network[0]), int(network[-1]), "")])[family]
            yield table.Set(f"exempt_{number}_{generation}", type_, clients, interval=True)


def _chains(what: Spec, listed: Mapping[int, Listed]) -> Iterator[table.Chain]:
    excepted: set[int] = {ipaddress.ip_network(text).version for text in what.except_}
    lan = f"@lan_{what.generation}"
    for class_, action in _acting(what, listed):
        yield table.Chain(chain_name(class_), (*_exempt(class_, what), *_class_rules(class_, action, what.log_group)))
    for side, other in (("daddr", "saddr"), ("saddr", "daddr")):
        for at in sorted({at for _, at in EMBEDDED}):
            yield table.Chain(f"{_SIDES[side]}6_in{at}", tuple(_look_up(4, side, what, listed[4], at)))
        for family in (4, 6):
            rules = _police(family, side, other, what, listed[family], family in excepted)
            yield table.Chain(f"{_SIDES[side]}{family}", tuple(rules))
    if what.ct_mark:
        yield mark_chain(what)
    yield table.Chain("police", tuple(_filtered_packet(what, lan, excepted)))
    yield table.Chain("forward", tuple(_forward(what, lan)), table.Hook("filter", "forward", FILTER_PRIORITY))
    # the resets that refuse forwarded packets leave here. One to the client has the listed address as its source: so only
    # destinations are looked at. One to the listed address would count as an attempt of the client
    refusals = [table.Rule((table.Refusal(proto), table.Return()), "sent by a reject") for proto in ("tcp", "icmp", "icmpv6")]
    # our upstream may be a public resolver that the lists contain
    mine = [
        table.Rule((table.Owner(uid), table.Port(proto, port), table.Accept()), "our own questions")
        for uid, proto, port in what.own
    ]
    mine += [table.Rule((*match, table.Accept()), "this machine's resolvers") for match in _to_system(what)]
    yield table.Chain("output", (*refusals, *mine, *_into(("daddr",))), table.Hook("filter", "output", FILTER_PRIORITY))
    if what.intercept_port and what.lan:
        yield table.Chain("prerouting", tuple(_intercept(what, lan, excepted)), table.Hook("nat", "prerouting", NAT_PRIORITY))


def _to_system(what: Spec) -> Iterator[tuple[table.Expression, ...]]:
    """Questions to the resolvers of resolv.conf, in clear text or over TLS: the machine's own processes need them."""
    for family in (4, 6):
        if any(_family(text) == family for text in what.system):
            for proto, port in (("udp", 53), ("tcp", 53), *DOT_PORTS):
                yield table.Address(family, "daddr", f"system{family}_{what.generation}"), table.Port(proto, port)


def _family(address: str) -> int:
    return ipaddress.ip_address(address.partition("%")[0]).version


def _forward(what: Spec, lan: str) -> Iterator[table.Rule]:
    if what.fail == "open" and what.lan and what.intercept_port:
        yield from _dns(what, lan)  # before the mark: flows that passed while no resolver answered are not let through for good
    if what.ct_mark:
        yield table.Rule((table.Judged(what.ct_mark, f"judged_{what.generation}"),), "let through by the judgement in force")
    if what.lan:
        yield table.Rule((table.Meta("iifname", lan), table.Jump("police")))
        yield table.Rule((table.Meta("oifname", lan), table.Jump("police")))
    else:
        yield table.Rule((table.Jump("police"),))


def _filtered_packet(what: Spec, lan: str, excepted: set[int]) -> Iterator[table.Rule]:
    """One packet from or to a client, up to its verdict."""
    if what.lan:
        yield from _ports(what, lan, excepted)
    yield from _into(("daddr", "saddr"))
    httpdns = Class(BYPASS, "httpdns")
    if what.patterns and any(class_ == httpdns for class_, _ in what.classes):
        if not what.lan:
            for family in sorted(excepted):
                match = table.Address(family, "saddr", f"except{family}_{what.generation}")
                yield table.Rule((match, table.Accept()), "clients never filtered")
        yield from (
            table.Rule((table.Port("tcp", 80), table.Begins(start), table.Jump(chain_name(httpdns)))) for start in HTTPDNS
        )
        for side in ("dport", "sport"):  # the question comes after packets without content
            yield table.Rule((table.Port("tcp", 80, side), table.Accept()), "every packet is looked at")
    if what.ct_mark:
        yield table.Rule((table.Jump("let_through"),))
    yield table.Rule((table.Accept(),))


def judged(value: int) -> Labelled[str]:
    """The mark that lets a flow through."""
    return spans.gather([(4, value, value, table.ACCEPT)])[4]


def mark_chain(what: Spec) -> table.Chain:
    """The rule that marks a flow, in a chain of its own: it changes often, and a rule that jumps is slow to replace."""
    return table.Chain(
        "let_through",
        (table.Rule((table.Mark(what.ct_mark, value_of(what.judgement, what.ct_mark)),), f"judgement {what.judgement}"),),
    )


_SIDES = {"daddr": "to", "saddr": "from"}


def _into(sides: Iterable[str], match: tuple[table.Expression, ...] = ()) -> list[table.Rule]:
    """Rules that send packets of each family to the chains that look their addresses up."""
    return [
        table.Rule((*match, table.Meta("nfproto", f"ipv{f}"), table.Jump(f"{_SIDES[side]}{f}")))
        for f in (4, 6)
        for side in sides
    ]


def _exempt(class_: Class, what: Spec) -> Iterator[table.Rule]:
    """Rules that let pass the clients with a pause of this class; in a chain that classes share, with a pause of any class."""
    for number, (text, classes) in enumerate(what.exempt):
        if class_ in classes or class_.app in (LISTED[Action.BLOCK].app, LEARNT[Action.BLOCK].class_.app):
            for side in ("saddr", "daddr"):
                match = table.Address(ipaddress.ip_network(text).version, side, f"exempt_{number}_{what.generation}")
                yield table.Rule((match, table.Return()), "paused for these clients")


def _class_rules(class_: Class, action: Action, group: int) -> Iterator[table.Rule]:
    yield table.Rule((table.Counter(chain_name(class_)),), f"app {class_.app}, function {class_.function}")
    yield table.Rule((table.Log(f"embargo {class_}", group),))
    if action is Action.BLOCK:
        yield table.Rule((table.Meta("l4proto", "tcp"), table.Reject("reset")))
        yield table.Rule((table.Reject("admin"),))


def _police(family: int, side: str, other: str, what: Spec, listed: Listed, excepted: bool) -> Iterator[table.Rule]:
    """The rules of a chain that looks up the address on `side`; the client is on the `other` side."""
    if excepted:
        yield table.Rule(
            (table.Address(family, other, f"except{family}_{what.generation}"), table.Return()), "clients never filtered"
        )
    yield from _look_up(family, side, what, listed)
    if family == 6:
        forms = f"{_SIDES[side]}_embedded_{what.generation}"
        yield table.Rule((table.Address(6, side, forms, vmap=True),), "IPv6 forms of IPv4 addresses")


def _look_up(family: int, side: str, what: Spec, listed: Listed, inside: int = 0) -> Iterator[table.Rule]:
    """The look-ups of an address, or of the IPv4 address inside an IPv6 one."""
    carrier, generation = 6 if inside else family, what.generation
    allowed = table.Address(carrier, side, f"allow{family}", inside=inside)
    yield table.Rule((allowed, table.Return()), "behind names on the allow list")
    kinds = {"address": 0, "network": 0, **{f"prefix{family}_{length}": length for length in listed.prefixes}}
    for kind, length in kinds.items():
        set_ = f"{kind}_{generation}" if length else f"{kind}{family}_{generation}"
        match = table.Address(carrier, side, set_, vmap=not listed.chain, inside=inside, prefix=length)
        yield table.Rule((match, table.Jump(listed.chain)) if listed.chain else (match,))
    for action in _actions(what):
        set_, class_ = LEARNT[action]
        match = table.Address(carrier, side, f"{set_}{family}_{generation}", inside=inside)
        yield table.Rule((match, table.Jump(chain_name(class_))), "behind blocked names")


def _ports(what: Spec, lan: str, excepted: set[int]) -> Iterator[table.Rule]:
    """Rules about ports: encrypted DNS, and plain DNS that was not redirected to us."""
    for family in sorted(excepted):
        for interface, side in (("iifname", "saddr"), ("oifname", "daddr")):
            match = table.Meta(interface, lan), table.Address(family, side, f"except{family}_{what.generation}")
            yield table.Rule((*match, table.Accept()), "clients never filtered")
    on = {class_ for class_, _ in what.classes}
    for function, ports in (("dot", DOT_PORTS), ("doq", DOQ_PORTS)):
        class_ = Class(BYPASS, function)
        if class_ in on:
            for port in ports:
                yield table.Rule((table.Meta("iifname", lan), table.Port(*port), table.Jump(chain_name(class_))))
                yield table.Rule((table.Meta("oifname", lan), table.Port(*port, "sport"), table.Jump(chain_name(class_))))
    if what.intercept_port and what.fail != "open":
        yield from _dns(what, lan)


def _dns(what: Spec, lan: str) -> Iterator[table.Rule]:
    for proto in ("udp", "tcp"):
        reject = table.Reject("reset" if proto == "tcp" else "port")
        for interface, side in (("iifname", "dport"), ("oifname", "sport")):
            match = table.Meta(interface, _filtered(what, lan)), table.Port(proto, 53, side)
            yield table.Rule((*match, table.Counter("intercept_leak"), reject), "only this gateway's resolver")


def _intercept(what: Spec, lan: str, excepted: set[int]) -> Iterator[table.Rule]:
    for family in sorted(excepted):
        yield table.Rule(
            (table.Address(family, "saddr", f"except{family}_{what.generation}"), table.Return()), "clients never filtered"
        )
    for proto in ("udp", "tcp"):
        interface = table.Meta("iifname", _filtered(what, lan))
        yield table.Rule((interface, table.Port(proto, 53), table.Redirect(what.intercept_port)), "answered here")


def _filtered(what: Spec, lan: str) -> str:
    """The set of interfaces where port 53 is ours: all of lan, or with fail = "open" those where resolvers answer just now."""
    return "@alive" if what.fail == "open" else lan
