"""The listed addresses as an nftables table, for `nft -f`."""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from embargo.export.draft import SIX_TO_FOUR, Draft
from embargo.export.effective import EffectivePolicy, ListedRange
from embargo.firewall import ruleset

TABLE = "embargo_export"  # not the agent's own table, so both can be loaded


def nft(policy: EffectivePolicy) -> Draft:
    """A complete table; loading it replaces the one that was exported before."""
    draft = Draft(head=[f"table inet {TABLE} {{}}", f"delete table inet {TABLE}"])
    for each in policy.ranges:
        draft.add("network", str(each), each.treatment, ())
    if policy.ports and policy.lan:
        draft.omit(
            "LAN interfaces of another machine: edit the set lan, to whose clients ports are closed", ", ".join(policy.lan)
        )
    elif policy.ports:
        draft.omit("closed ports: firewall.lan names no interface", ", ".join(c.function for c in policy.ports))
    if policy.patterns:
        draft.omit("clear-text HTTPDNS queries to addresses that are not listed", "httpdns")
    sets = dict(_sets(policy))
    out = [f"table inet {TABLE} {{"]
    for name, elements in sets.items():
        out += _set(name, "ipv4_addr" if name in ("allow4", "block4", "except4") else "ipv6_addr", elements, interval=True)
    if policy.ports and policy.lan:
        out += _set("lan", "ifname", [f'"{name}"' for name in policy.lan], interval=False)
    out += _chain("blocked", ["counter", "meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"])
    for side, other in (("daddr", "saddr"), ("saddr", "daddr")):
        out += _chain(f"by_{side}", _look_up(sets, side, other))
    out += _chain("forward", [*_ports(policy, sets), "jump by_daddr", "jump by_saddr"], ruleset.FILTER_PRIORITY)
    # rejects pass this hook too, to or from a blocked address: they must leave
    refusals = [f"{'tcp flags rst' if p == 'tcp' else f'{p} type destination-unreachable'} return" for p in _REFUSALS]
    # this machine may itself use a listed resolver
    queries = ["udp dport 53 return", "tcp dport { 53, 853 } return"]
    out += _chain("output", [*refusals, *queries, "jump by_daddr"], ruleset.FILTER_PRIORITY)
    draft.tail = [*out, "}"]
    return draft


_REFUSALS = ("tcp", "icmp", "icmpv6")
_INSIDE = "{ ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48 }"  # their last 32 bits are an IPv4 address


def _sets(policy: EffectivePolicy) -> Iterator[tuple[str, list[str]]]:
    """(name, elements) of each set: addresses, and IPv4 addresses again in their IPv6 forms."""
    for word in ("allow", "block"):
        mine = [each for each in policy.ranges if each.treatment.blocked == (word == "block")]
        for kind, family, base, shift in (("4", 4, 0, 0), ("6", 6, 0, 0), ("_inside", 4, 0, 0), ("_6to4", 4, *SIX_TO_FOUR)):
            found = [_element(policy, each, 4 if kind == "4" else 6, base, shift) for each in mine if each.family == family]
            if found:
                yield f"{word}{kind}", found
    excepted = [ipaddress.ip_network(text) for text in policy.except_]
    for family in (4, 6):
        merged = ipaddress.collapse_addresses(n for n in excepted if n.version == family)  # type: ignore[type-var] # all of one family, which the types do not show
        if found := [str(network) for network in sorted(merged)]:
            yield f"except{family}", found


def _element(policy: EffectivePolicy, each: ListedRange, family: int, base: int, shift: int) -> str:
    last = base + (each.last << shift) + (1 << shift) - 1
    class_ = policy.classes[each.treatment.decision.class_] if each.treatment.decision else ""
    return f'{ListedRange(family, base + (each.first << shift), last, each.treatment)} comment "{class_}"'


def _set(name: str, type_: str, elements: Iterable[str], *, interval: bool) -> Iterator[str]:
    yield from ("", f"\tset {name} {{", f"\t\ttype {type_}", *(["\t\tflags interval"] if interval else []))
    yield from ("\t\telements = {", *(f"\t\t\t{element}," for element in elements), "\t\t}", "\t}")


def _chain(name: str, rules: Iterable[str], priority: int | None = None) -> Iterator[str]:
    yield from ("", f"\tchain {name} {{")
    if priority is not None:
        yield f"\t\ttype filter hook {name} priority {priority}; policy accept;"
    yield from (f"\t\t{rule}" for rule in rules)
    yield "\t}"


def _look_up(sets: Mapping[str, object], side: str, other: str) -> Iterator[str]:
    """The rules for listed addresses on `side` and clients on the `other`. Allowed addresses pass in all forms."""
    for family, header in ((4, "ip"), (6, "ip6")):
        if f"except{family}" in sets:
            yield f"{header} {other} @except{family} return"
    for word, verdict in (("allow", "return"), ("block", "jump blocked")):
        for kind, match in (
            ("4", f"ip {side}"), ("6", f"ip6 {side}"), ("_6to4", f"ip6 {side}"),
            ("_inside", f"ip6 {side} {_INSIDE} ip6 {side} & ::ffff:ffff"),
        ):  # fmt: skip
            if f"{word}{kind}" in sets:
                yield f"{match} @{word}{kind} {verdict}"


def _ports(policy: EffectivePolicy, sets: Mapping[str, object]) -> Iterator[str]:
    """The rules that close the ports of encrypted DNS to clients on the LAN interfaces."""
    if not policy.lan:
        return
    for family, header in ((4, "ip"), (6, "ip6")):
        if f"except{family}" in sets:
            yield f"iifname @lan {header} saddr @except{family} accept"
            yield f"oifname @lan {header} daddr @except{family} accept"
    ports = {"dot": ruleset.DOT_PORTS, "doq": ruleset.DOQ_PORTS}
    for proto, port in (each for class_ in policy.ports for each in ports[class_.function]):
        yield f"iifname @lan {proto} dport {port} jump blocked"
        yield f"oifname @lan {proto} sport {port} jump blocked"
