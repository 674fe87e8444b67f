"""A policy in the words of other software: `embargo export`.

`effective` reads image and switchboard once, by the same look-ups that answer queries; a format only writes that down. What
is said of a listed name holds for itself, and for the names below it down to the next listed one. So a writer goes through
the names from the top, remembers what its own lines say below each, and writes a line where that differs from the policy.

No line blocks what the policy lets pass. What a format cannot say is left out and told, in the header and as `Export.lost`.
There is one exception, told too: a plain list of domains cannot except a name from what it blocks above it.
"""

import enum
import hashlib
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from embargo import names
from embargo.config import Config
from embargo.firewall import listing, ruleset, spans
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import BYPASS, Action, Claims, Class, Decision, Source, Switchboard
from embargo.names import Name

SHOWN = 3  # examples of what is left out
TABLE = "embargo_export"  # beside our own, which is another table
ZONE_ROOM = 40  # octets left for the name of a response policy zone, which whoever loads it chooses
NOWHERE = ("0.0.0.0", "::")
BITS = {4: 32, 6: 128}
#: IPv6 forms of IPv4 addresses (`ruleset.EMBEDDED`): the prefix, and how far behind the address the form ends
MAPPED, NAT64, SIX_TO_FOUR = (0xFFFF << 32, 0), (0x64_FF9B << 96, 0), (0x2002 << 112, 80)

T = TypeVar("T")


class Verdict(enum.Enum):
    PASS = "pass"
    ALLOW = "allow"  # by the administrator: what it leads to passes too
    BLOCK = "block"
    CANARY = "canary"  # blocked, and NXDOMAIN whatever the block mode: nothing else makes the asking program give way


class Said(NamedTuple):
    """What is done about a name or an address, and by which line."""

    verdict: Verdict = Verdict.PASS
    decision: Decision | None = None

    @property
    def blocked(self) -> bool:
        return self.verdict in (Verdict.BLOCK, Verdict.CANARY)

    def differs(self, above: "Said") -> bool:
        """Is it worth a line below the other? What is allowed passes already."""
        return self.verdict is not above.verdict and (self.verdict, above.verdict) != (Verdict.PASS, Verdict.ALLOW)


UNLISTED = Said()


class Ruling(NamedTuple):
    """A listed name: what is said of itself, and of the names below it."""

    name: Name
    itself: Said
    below: Said

    @property
    def rule(self) -> str:
        """As people know it: the line of a list, or the name."""
        decision = self.itself.decision or self.below.decision
        return decision.rule if decision else names.to_text(self.name)


class Range(NamedTuple):
    """Listed addresses that are blocked or allowed."""

    family: int
    first: int
    last: int
    said: Said

    def __str__(self) -> str:
        show = listing.four if self.family == 4 else listing.six
        if self.first == self.last:
            return show(self.first)
        networks = list(spans.networks(BITS[self.family], self.first, self.last))
        return f"{show(self.first)}/{networks[0][1]}" if len(networks) == 1 else f"{show(self.first)}-{show(self.last)}"


@dataclass(frozen=True, slots=True)
class Effective:
    """The policy as it is in force: apps, functions, bypass, shared lists, local lists and mode are worked out."""

    classes: tuple[Class, ...]
    sources: tuple[Source, ...]
    names: tuple[Ruling, ...]  # a name after those above it
    ranges: tuple[Range, ...]
    audit: bool
    mode: str  # nxdomain | nodata | null | refused | address
    addresses: tuple[str, ...]  # a blocked name's, of null and address
    ttl: int
    lan: tuple[str, ...]
    except_: tuple[str, ...]
    ports: tuple[Class, ...]  # the functions of `bypass` that are ports
    patterns: bool  # HTTPDNS questions in clear text are refused wherever they go

    def answer(self, said: Said) -> tuple[str, ...]:
        """The addresses that a blocked name is answered with, if any."""
        return () if said.verdict is Verdict.CANARY else self.addresses

    @property
    def blocked_ranges(self) -> list[Range]:
        return [each for each in self.ranges if each.said.blocked]


class Row(NamedTuple):
    """An entry of the policy with its lines. `match`: suffix, exact, below or network; "" for what a format needs beside."""

    match: str
    subject: str
    said: Said
    lines: tuple[str, ...]


class Export(NamedTuple):
    text: str
    rows: tuple[Row, ...]
    lost: tuple[str, ...]  # what is left out or not kept to the letter, in sentences


@dataclass(slots=True)
class Written:
    """What a format's writer has made so far."""

    rows: list[Row] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)  # reason → entries
    notes: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)  # lines before all others
    tail: list[str] = field(default_factory=list)  # and behind them

    def add(self, match: str, subject: str, said: Said, lines: Iterable[str]) -> None:
        self.rows.append(Row(match, subject, said, tuple(lines)))

    def lose(self, why: str, entry: object) -> None:
        entries = self.lost.setdefault(why, [])
        if str(entry) not in entries[-1:]:
            entries.append(str(entry))


class Format(NamedTuple):
    comment: str
    write: Callable[[Effective], Written]
    lacks: tuple[str, ...]  # whatever the policy


# ── what is in force ─────────────────────────────────────────────────────────────────────────────────────────────────────


def effective(image: Image, board: Switchboard, settings: Config, special: Callable[[Name], bool]) -> Effective:
    """What is in force. `special`: the names that come before every list, and so are no list's matter."""

    def said(claims: Claims) -> Said:
        action, decision = board.choose(claims)
        if action is Action.BLOCK and decision is not None:
            canary = image.classes[decision.class_] in policy.CANARY
            return Said(Verdict.CANARY if canary else Verdict.BLOCK, decision)
        return Said(Verdict.ALLOW, claims[0]) if policy.allows(image.classes, claims) else UNLISTED

    mode = settings.dns.block_mode
    listed = [Ruling(name, said(itself), said(below)) for name, itself, below in image.listed() if not special(name)]
    ranges = [Range(f, first, last, said(claims)) for f in (4, 6) for first, last, claims in image.ranges(f)]
    acting = [class_ for class_, action in zip(image.classes, board.actions, strict=True) if action is Action.BLOCK]
    return Effective(
        classes=image.classes,
        sources=image.sources,
        names=tuple(sorted(listed, key=lambda ruling: list(names.labels(ruling.name))[::-1])),
        ranges=tuple(each for each in ranges if each.said.decision is not None),
        audit=settings.policy.mode is Action.AUDIT,
        mode=mode if isinstance(mode, str) else "address",
        addresses=mode if isinstance(mode, tuple) else NOWHERE if mode == "null" else (),
        ttl=settings.dns.block_ttl,
        lan=settings.firewall.lan,
        except_=settings.firewall.except_,
        ports=tuple(class_ for class_ in acting if class_.app == BYPASS and class_.function in policy.PORT_FUNCTIONS),
        patterns=Class(BYPASS, "httpdns") in acting,
    )


def _above(states: Mapping[Name, T], name: Name, default: T) -> T:
    """What holds for a name by the lines above it."""
    return next((states[each] for each in _parents(name) if each in states), default)


def _parents(name: Name) -> Iterator[Name]:
    found = names.suffixes(name)
    next(found)
    return found


# ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = ("names blocked", "names excepted", "networks blocked", "networks excepted")


def render(what: Effective, format_: str, version: str, serial: int | None = None) -> Export:
    """The policy in one of FORMATS. The same policy gives the same text. `serial`: of a response policy zone."""
    comment, write, lacks = FORMATS[format_]
    written = write(what)
    body = [*_grouped(what, written.rows, comment), *written.tail]
    digest = hashlib.sha256("\n".join((*written.head, *body)).encode()).digest()
    number = int.from_bytes(digest[:4]) if serial is None else serial
    lost = [f"{why}: {_few(entries)}" for why, entries in written.lost.items()]
    if what.audit:
        lost.insert(0, 'what policy.mode = "audit" only logs: nothing is blocked, so nothing is here')
    counted = Counter(KINDS[2 * (row.match == "network") + (not row.said.blocked)] for row in written.rows if row.match)
    header = [
        f"Embargo {version}: its policy, made by `embargo export {format_}`",
        f"digest {digest.hex()[:16]}: {', '.join(f'{counted[kind]} {kind}' for kind in KINDS)}",
        *written.notes,
        *(f"not carried: {text}" for text in (*lost, *lacks)),
    ]
    head = (line.replace(_SERIAL, str(number)) for line in written.head)
    lines = [*(f"{comment} {line}" for line in header), *head, *body]
    return Export("\n".join((*lines, "")), tuple(row for row in written.rows if row.match), tuple(lost))


def _few(entries: list[str]) -> str:
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return ", ".join(entries[:SHOWN]) + more


def _grouped(what: Effective, rows: Iterable[Row], comment: str) -> Iterator[str]:
    """The lines below headings: by app and function, exceptions of the apps at the end."""
    groups: dict[int, list[str]] = {}
    for row in rows:
        number = row.said.decision.class_ if row.said.decision else len(what.classes)
        groups.setdefault(number, []).extend(row.lines)
    for number in sorted(number for number, lines in groups.items() if lines):
        yield comment
        yield f"{comment} {what.classes[number] if number < len(what.classes) else 'exceptions'}"
        yield from groups[number]


def as_data(what: Effective, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The entries that a text carries, each with the line that decided; an app's exception has none."""
    found = []
    for match, subject, said, _ in rows:
        told: dict[str, Any] = {"entry": subject, "match": match, "verdict": "block" if said.blocked else said.verdict.value}
        told |= dict.fromkeys(("app", "function", "list", "line", "rule"))
        if said.decision is not None:
            source = what.sources[said.decision.source]
            told |= {"app": source.app, "function": source.function, "list": source.path}
            told |= {"line": said.decision.line, "rule": said.decision.rule}
        found.append(told)
    return found


# ── names and addresses ──────────────────────────────────────────────────────────────────────────────────────────────────

#: what every program reads as a name and nothing else
_USUAL = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+")


def _usual(what: Effective, written: Written) -> Iterator[tuple[Ruling, str]]:
    """The names with their text, less those that the software would read as something else."""
    for ruling in what.names:
        text = names.to_text(ruling.name)
        if _USUAL.fullmatch(text):
            yield ruling, text
        elif ruling.itself.decision or ruling.below.decision:
            written.lose("names with other characters than letters, digits, - and _", ruling.rule)


def _escaped(name: Name) -> str:
    """Every unusual octet as \\DDD, with the final dot left out: what zone files and Unbound read, quoted or not."""
    return ".".join("".join(map(_octet, label)) for label in names.labels(name))


def _octet(octet: int) -> str:
    return chr(octet) if _USUAL.fullmatch(chr(octet)) else f"\\{octet:03d}"


def _networks(each: Range, *forms: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """(family, first address, prefix length) of the networks that make up a range, and of their forms in IPv6."""
    for first, length in spans.networks(BITS[each.family], each.first, each.last):
        yield each.family, first, length
        if each.family == 4:
            yield from ((6, base + (first << shift), 96 - shift + length) for base, shift in forms)


def _type(address: str) -> str:
    return "AAAA" if ":" in address else "A"


def _without_addresses(what: Effective, written: Written) -> None:
    for each in what.blocked_ranges:
        written.lose("addresses and networks", each)


# ── lists of names ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _hosts(what: Effective) -> Written:
    """An address and a name a line: the listed names themselves."""
    written = Written()
    addresses = what.addresses or NOWHERE
    if not what.addresses:
        written.notes.append(f"a hosts file has no {what.mode}: names lead nowhere, to {' and '.join(NOWHERE)}")
    for ruling, text in _usual(what, written):
        if Verdict.CANARY in (ruling.itself.verdict, ruling.below.verdict):
            written.lose("names that have an effect as NXDOMAIN alone", ruling.rule)
            continue
        if ruling.itself.blocked:
            written.add("exact", text, ruling.itself, (f"{address} {text}" for address in addresses))
        if ruling.below.blocked:
            written.lose("the names below a listed one", ruling.rule)
    _without_addresses(what, written)
    return written


def _domains(what: Effective) -> Written:
    """A name a line, which stands for the names below it too."""
    written = Written()
    states: dict[Name, Said] = {}
    for ruling, text in _usual(what, written):
        above = _above(states, ruling.name, UNLISTED)
        itself, below = ruling.itself, ruling.below
        states[ruling.name] = below
        if below.blocked and not above.blocked:
            written.add("suffix", text, below, (text,))
        if (above.blocked and not below.blocked) or (below.blocked and not itself.blocked):
            passing = text if not itself.blocked and not below.blocked else f"={text}"
            if not itself.blocked:
                written.lose("exceptions, here as comments: put them on the other software's own allow list", passing)
                written.add("", text, below if not below.blocked else itself, (f"# {passing}",))
        if itself.blocked and not below.blocked:
            written.lose("names without those below them", ruling.rule)
    _without_addresses(what, written)
    return written


def _adblock(what: Effective) -> Written:
    """`||name^` blocks, `@@||name^` excepts wherever it stands; $important beats both, and both together beat all."""
    written = Written()
    ranks: dict[Name, int] = {}  # of what holds below a name: 0 nothing, odd blocks, even excepts, the higher one wins
    for ruling, text in _usual(what, written):
        itself, below = ruling.itself, ruling.below
        rank = _outrank(written, "suffix", f"||{text}^", text, below, _above(ranks, ruling.name, 0))
        ranks[ruling.name] = rank
        _outrank(written, "exact", f"|{text}^", text, itself, rank)
    lines = [line for row in written.rows for line in row.lines]
    if unread := sum("||" not in line or "$" in line for line in lines):
        written.notes.append(f"{unread} lines, |name^ and $important, are AdGuard's own: others (Pi-hole) leave them out")
    _without_addresses(what, written)
    return written


def _outrank(written: Written, match: str, pattern: str, text: str, said: Said, rank: int) -> int:
    """A line that beats those of a rank, when it is needed. The rank that holds then."""
    if said.blocked == bool(rank % 2) and (said.verdict is not Verdict.ALLOW or rank):
        return rank
    wanted = rank + 1 if said.blocked != bool(rank % 2) else 2
    if wanted > 4:
        written.lose("names blocked inside exceptions inside exceptions", text)
        return rank
    line = ("" if said.blocked else "@@") + pattern + ("$important" if wanted > 2 else "")
    written.add(match, text, said, (line,))
    return wanted


# ── resolvers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _dnsmasq(what: Effective) -> Written:
    """local= and address= block a name and those below it, server= excepts, *.name stands for those below alone."""
    written = Written()
    if what.mode in ("nodata", "refused"):
        written.notes.append(f"blocked names are NXDOMAIN: dnsmasq has no {what.mode}")
    states: dict[Name, Said] = {}
    for ruling, text in _usual(what, written):
        above = _above(states, ruling.name, UNLISTED)
        itself, below = ruling.itself, ruling.below
        states[ruling.name] = below
        if not itself.differs(above) and not below.differs(above):
            continue
        own, wild = _dnsmasq_lines(what, text, itself), _dnsmasq_lines(what, f"*.{text}", below)
        if own == _dnsmasq_lines(what, text, below):
            written.add("suffix" if below.differs(above) else "exact", text, itself, own)
        elif below.differs(above):
            written.add("exact", text, itself, own)
            written.add("below", text, below, wild)
        else:
            written.add("exact", text, itself, (*own, *wild))
    for each in what.blocked_ranges:
        found = _networks(each, MAPPED, NAT64, SIX_TO_FOUR)
        written.add("network", str(each), each.said, (f"bogus-nxdomain={_network(*network)}" for network in found))
    for ruling in what.names if what.blocked_ranges else ():
        if Verdict.ALLOW in (ruling.itself.verdict, ruling.below.verdict):
            written.lose("allowed names, when their answer holds a listed address", ruling.rule)
    return written


def _dnsmasq_lines(what: Effective, pattern: str, said: Said) -> list[str]:
    """local= alone is NXDOMAIN; beside addresses it keeps the other types from being asked for elsewhere."""
    if not said.blocked:
        return [f"server=/{pattern}/#"]
    return [*(f"address=/{pattern}/{address}" for address in what.answer(said)), f"local=/{pattern}/"]


def _network(family: int, first: int, length: int) -> str:
    address = (listing.four if family == 4 else listing.six)(first)
    return address if length == BITS[family] else f"{address}/{length}"


_ZONES = {"nxdomain": "always_nxdomain", "nodata": "always_nodata", "null": "always_null", "refused": "always_refuse"}


def _unbound(what: Effective) -> Written:
    """A local zone holds for a name and all below it, down to the next one."""
    written = Written(head=["server:"])
    states: dict[Name, Said] = {}
    without = 0
    for ruling in what.names:
        above = _above(states, ruling.name, UNLISTED)
        itself, below = ruling.itself, ruling.below
        zone, shown = f'local-zone: "{_escaped(ruling.name)}."', names.to_text(ruling.name)
        states[ruling.name] = below
        if itself.blocked and not below.blocked:
            without += not what.answer(itself)
            written.add("exact", shown, itself, (f"{zone} transparent", *_local_data(what, ruling.name, itself)))
        elif below.blocked and not itself.blocked:
            written.lose("names below one that itself passes", ruling.rule)
            states[ruling.name] = itself
            if above.blocked:
                written.add("suffix", shown, itself, (f"{zone} always_transparent",))
        elif not below.blocked:
            if below.differs(above):
                written.add("suffix", shown, below, (f"{zone} always_transparent",))
        elif below.differs(above):
            data = _local_data(what, ruling.name, below) if what.mode == "address" and what.answer(below) else ()
            mode = "nxdomain" if below.verdict is Verdict.CANARY else what.mode
            written.add("suffix", shown, below, (f"{zone} {_ZONES.get(mode, 'redirect')}", *data))
    if without and what.mode != "nodata":
        written.notes.append(f"{without} names that are blocked without those below them have no data (no {what.mode})")
    _without_addresses(what, written)
    return written


def _local_data(what: Effective, name: Name, said: Said) -> list[str]:
    """With some data a name is known, and so has none of any other type."""
    start, class_ = f"{_escaped(name)}. {what.ttl} IN", said.decision and what.classes[said.decision.class_]
    found = [f'local-data: "{start} {_type(address)} {address}"' for address in what.answer(said)]
    return found or [f"local-data: '{start} TXT \"blocked by Embargo: {class_}\"'"]


_SERIAL = "@serial@"


def _rpz(what: Effective) -> Written:
    """A response policy zone (draft-vixie-dnsop-dns-rpz), its names relative to whatever the zone is called.

    Its wildcards are DNS's (RFC 4592): one ends at a name that exists, and so does every name above a name with a line.
    There what it says is said again.
    """
    written = Written()
    written.head = [
        f"$TTL {what.ttl}",
        f"@ SOA localhost. hostmaster.localhost. {_SERIAL} 3600 600 604800 {what.ttl}",
        "@ NS localhost.",
    ]
    if what.mode == "refused":
        written.notes.append("blocked names are NXDOMAIN: a response policy zone has no refused")
    hostless = 0
    states: dict[Name, Said | None] = {}  # what the wildcard below a name says; None: there is none
    for ruling in _fit_for_a_zone(what, written):
        wildcard = _above(states, ruling.name, None)
        above = wildcard or UNLISTED
        if not ruling.itself.differs(above) and not ruling.below.differs(above):
            continue
        hostless += bool(what.addresses) and not _HOST.fullmatch(_escaped(ruling.name))
        for parent in _parents(ruling.name) if wildcard else ():
            if parent in states:
                break
            states[parent] = above
            written.add("", "", above, _rpz_pair(what, parent, above, above))
        # where no wildcard reaches, what passes needs no line, and its answer is still looked into
        itself, below = (said if wildcard or said.verdict is not Verdict.PASS else None for said in ruling[1:])
        states[ruling.name] = below
        shown = names.to_text(ruling.name)
        if itself and below and itself.verdict is below.verdict:
            written.add("suffix", shown, below, _rpz_pair(what, ruling.name, itself, below))
            continue
        if itself:
            written.add("exact", shown, itself, _rpz_pair(what, ruling.name, itself, None))
        if below:
            written.add("below", shown, below, _rpz_pair(what, ruling.name, None, below))
    if hostless:
        written.notes.append(f"{hostless} names that are no host names are NXDOMAIN: BIND refuses addresses for them")
    for each in what.blocked_ranges:
        owners = [_rpz_ip(*network) for network in _networks(each, NAT64, SIX_TO_FOUR)]  # IPv4 lines hold for MAPPED too
        written.add("network", str(each), each.said, (line for owner in owners for line in _rpz_lines(what, owner, each.said)))
    return written


def _fit_for_a_zone(what: Effective, written: Written) -> Iterator[Ruling]:
    for ruling in what.names:
        if b"*" in names.labels(ruling.name):
            written.lose("names with a label *, which a zone reads as a wildcard", ruling.rule)
        elif len(ruling.name) + 2 + ZONE_ROOM > names.MAX_NAME:
            written.lose("names that are too long to stand in a zone", ruling.rule)
        else:
            yield ruling


def _rpz_pair(what: Effective, name: Name, itself: Said | None, below: Said | None) -> Iterator[str]:
    text = _escaped(name)
    for owner, said in ((text, itself), (f"*.{text}", below)):
        if said:
            yield from _rpz_lines(what, owner, said)


def _rpz_lines(what: Effective, owner: str, said: Said) -> list[str]:
    if not said.blocked:
        return [f"{owner} CNAME rpz-passthru."]
    if (answer := what.answer(said)) and _HOST.fullmatch(owner):
        return [f"{owner} {_type(address)} {address}" for address in answer]
    return [f"{owner} CNAME {'*.' if what.mode == 'nodata' and said.verdict is Verdict.BLOCK else '.'}"]


#: what may have addresses: BIND refuses a zone (check-names) in which another name has
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def _rpz_ip(family: int, first: int, length: int) -> str:
    """The prefix length, then the address backwards, "zz" in place of "::"."""
    if family == 4:
        words = listing.four(first).split(".")
    else:
        before, compressed, after = listing.six(first).partition("::")
        words = [*before.split(":"), *(["zz", *after.split(":")] if compressed else [])]
    return ".".join((str(length), *(word for word in reversed(words) if word), "rpz-ip"))


# ── nftables ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _nft(what: Effective) -> Written:
    """A table of its own, loaded in place of the one before."""
    written = Written(head=[f"table inet {TABLE} {{}}", f"delete table inet {TABLE}"])
    for each in what.ranges:
        written.add("network", str(each), each.said, ())
    if what.ports and what.lan:
        written.lose(
            "interfaces of another machine: change the set lan, which closes ports for its clients", ", ".join(what.lan)
        )
    elif what.ports:
        written.lose("closed ports, for which firewall.lan names no interface here", ", ".join(c.function for c in what.ports))
    if what.patterns:
        written.lose("HTTPDNS questions in clear text at addresses that are not listed", "httpdns")
    sets = dict(_sets(what))
    out = [f"table inet {TABLE} {{"]
    for name, elements in sets.items():
        out += _set(name, "ipv4_addr" if name in ("allow4", "block4", "except4") else "ipv6_addr", elements, interval=True)
    if what.ports and what.lan:
        out += _set("lan", "ifname", [f'"{name}"' for name in what.lan], interval=False)
    out += _chain("blocked", ["counter", "meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"])
    for side, other in (("daddr", "saddr"), ("saddr", "daddr")):
        out += _chain(f"by_{side}", _look_up(sets, side, other))
    out += _chain("forward", [*_ports(what, sets), "jump by_daddr", "jump by_saddr"], ruleset.FILTER_PRIORITY)
    # a refusal leaves by this hook too, to or from the very address that is blocked
    refusals = [f"{'tcp flags rst' if p == 'tcp' else f'{p} type destination-unreachable'} return" for p in _REFUSALS]
    # and listed resolvers may be the ones that this machine itself asks
    questions = ["udp dport 53 return", "tcp dport { 53, 853 } return"]
    out += _chain("output", [*refusals, *questions, "jump by_daddr"], ruleset.FILTER_PRIORITY)
    written.tail = [*out, "}"]
    return written


_REFUSALS = ("tcp", "icmp", "icmpv6")
_INSIDE = "{ ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48 }"  # their last 32 bits are an IPv4 address


def _sets(what: Effective) -> Iterator[tuple[str, list[str]]]:
    """Names and elements: addresses, and the IPv4 ones again at their place in IPv6 ones."""
    for word in ("allow", "block"):
        mine = [each for each in what.ranges if each.said.blocked == (word == "block")]
        for kind, family, base, shift in (("4", 4, 0, 0), ("6", 6, 0, 0), ("_inside", 4, 0, 0), ("_6to4", 4, *SIX_TO_FOUR)):
            found = [_element(what, each, 4 if kind == "4" else 6, base, shift) for each in mine if each.family == family]
            if found:
                yield f"{word}{kind}", found
    networks = [ipaddress.ip_network(text) for text in what.except_]
    for family in (4, 6):
        merged = ipaddress.collapse_addresses(n for n in networks if n.version == family)  # type: ignore[type-var] # of one family, which types cannot tell
        if found := [str(network) for network in sorted(merged)]:
            yield f"except{family}", found


def _element(what: Effective, each: Range, family: int, base: int, shift: int) -> str:
    last = base + (each.last << shift) + (1 << shift) - 1
    class_ = what.classes[each.said.decision.class_] if each.said.decision else ""
    return f'{Range(family, base + (each.first << shift), last, each.said)} comment "{class_}"'


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
    """The listed address on one side, the client on the other; what is allowed in any form passes."""
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


def _ports(what: Effective, sets: Mapping[str, object]) -> Iterator[str]:
    """Encrypted DNS by port, for the clients on the lan interfaces."""
    if not what.lan:
        return
    for family, header in ((4, "ip"), (6, "ip6")):
        if f"except{family}" in sets:
            yield f"iifname @lan {header} saddr @except{family} accept"
            yield f"oifname @lan {header} daddr @except{family} accept"
    ports = {"dot": ruleset.DOT_PORTS, "doq": ruleset.DOQ_PORTS}
    for proto, port in (each for class_ in what.ports for each in ports[class_.function]):
        yield f"iifname @lan {proto} dport {port} jump blocked"
        yield f"oifname @lan {proto} sport {port} jump blocked"


_LEADS = "what an answer leads to: aliases, other names and addresses in it are not judged"
_LOCAL_NAT64 = "IPv6 addresses in 64:ff9b:1::/48 that carry a listed IPv4 address"
_OTHERS = "the block mode, which is the other software's"
FORMATS = {
    "rpz": Format(";", _rpz, (
        "MX, SRV, NS, SVCB and HTTPS targets in answers", "what an app's exception leads to, which passes", _LOCAL_NAT64,
        "with Unbound, IPv4-mapped IPv6 addresses",
    )),
    "hosts": Format("#", _hosts, (_LEADS,)),
    "domains": Format("#", _domains, (_LEADS, _OTHERS)),
    "dnsmasq": Format("#", _dnsmasq, ("names that an answer leads to", _LOCAL_NAT64, "the block mode, for addresses")),
    "unbound": Format("#", _unbound, (_LEADS,)),
    "adblock": Format("!", _adblock, (_OTHERS,)),
    "nft": Format("#", _nft, (
        "names, and addresses learnt from them", "the interception of port 53", "port 53 and 853 of the machine itself",
    )),
}  # fmt: skip
