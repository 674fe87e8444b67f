"""Words and precedence of filtering.

list → entry → policy. An entry belongs to a class, which is an app and one of its functions. The policy answers one
question, for a name or an address: which classes claim it, and by which entry? The answer, the claims, stands in deciding
order; only the switchboard turns a class into an action, so pausing an app touches no entry.

Precedence. Levels come in order (local allow, local block, apps); the first level with a claim decides. Within the apps
level each app is asked for itself: its longest matching line wins, and if that line is an exception the app claims
nothing. Otherwise each of its matching lines adds its class, down to the first exception. A line of a shared list that is
off is such an exception: it sets apart what a shorter suffix must not block by accident.
"""

import enum
import itertools
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from embargo import accelerator, names
from embargo.errors import Problem
from embargo.names import Name


class Action(enum.IntEnum):
    """What the switchboard does with a class."""

    PASS = 0
    AUDIT = 1  # pass, and log what would have been blocked
    BLOCK = 2


class Level(enum.IntEnum):
    ALLOW = 0
    BLOCK = 1
    APPS = 2


class Kind(enum.IntEnum):
    SUFFIX = 0
    EXACT = 1
    NETWORK = 2


class Class(NamedTuple):
    app: str
    function: str

    def __str__(self) -> str:
        return f"{self.app}/{self.function}"


LOCAL_ALLOW = Class("local", "allow")
LOCAL_BLOCK = Class("local", "block")

BYPASS = "bypass"
CANARY = (Class(BYPASS, "canary"), Class(BYPASS, "relay"))  # answered NXDOMAIN whatever the block mode
PORT_FUNCTIONS = ("dot", "doq")  # functions of `bypass` that are ports, not entries
FUNCTIONS = (
    "payment", "telemetry", "ads", "login", "core", "messaging", "cdn", "update", "push", "httpdns", "website",
)  # fmt: skip
BYPASS_FUNCTIONS = ("dot", "doq", "doh", "httpdns", "canary", "relay")


class Network(NamedTuple):
    """Addresses first to last, both included, as integers."""

    family: int  # 4 or 6
    first: int
    last: int


class Entry(NamedTuple):
    kind: Kind
    exception: bool
    name: Name  # empty for networks
    network: Network | None
    line: int
    text: str
    evidence: str


class Source(NamedTuple):
    """One list file: where it stands and what its entries mean."""

    path: str  # as people know it: "alipay/payment.list"
    level: Level
    app: str
    function: str
    shared: bool

    @property
    def class_(self) -> Class:
        return Class(self.app, self.function)


#: what stands before a name in a list, by its number in `Usual.signs`
SIGNS = ("", "=", "!")
EXACT, EXCEPTION = 1, 2


class Usual(NamedTuple):
    """The lines of a list that are a lower-case name with or without a sign, in columns: no object each."""

    names: bytes = b""  # wire form, end to end
    starts: "array[int]" = array("I")
    lines: "array[int]" = array("I")
    signs: bytes = b""

    def name(self, row: int) -> Name:
        start = self.starts[row]
        return Name(self.names[start : self.starts[row + 1] if row + 1 < len(self.starts) else len(self.names)])

    def text(self, row: int) -> str:
        """The entry as it stands in the list."""
        return SIGNS[self.signs[row]] + names.to_text(self.name(row))

    def entry(self, row: int, evidence: str = "") -> Entry:
        kind = Kind.EXACT if self.signs[row] == EXACT else Kind.SUFFIX
        exception = self.signs[row] == EXCEPTION
        return Entry(kind, exception, self.name(row), None, self.lines[row], self.text(row), evidence)

    def rows(self, wanted: Iterable[Name]) -> Iterator[int]:
        """Where these names stand."""
        for name in wanted:
            at = -1
            while (at := self.names.find(name, at + 1)) >= 0:
                row = bisect_left(self.starts, at)
                if row < len(self.starts) and self.starts[row] == at:  # and not the end of a longer name
                    yield row


class List(NamedTuple):
    source: Source
    odd: tuple[Entry, ...]  # what is not usual
    problems: tuple[Problem, ...]
    file: str
    usual: Usual = Usual()
    data: bytes = b""  # the file

    @property
    def size(self) -> int:
        """Entries."""
        return len(self.odd) + len(self.usual.starts)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries as objects, by line: to be shown or searched, not to be compiled."""
        comments = self.data.split(b"\n" if b"\n" in self.data else b"\r")
        usual = self.usual
        found = [usual.entry(row, comment(comments[line - 1].decode())) for row, line in enumerate(usual.lines)]
        return tuple(sorted((*found, *self.odd), key=lambda entry: entry.line))


def comment(line: str) -> str:
    """The evidence behind an entry: never a control character."""
    evidence = line.partition("#")[2].strip()
    return evidence if evidence.isprintable() else "".join(c for c in evidence if c.isprintable())


@dataclass(frozen=True, slots=True)
class App:
    id: str
    name: str
    operator: str = ""
    order: str = ""
    default: bool | None = None  # None: its app.toml does not say
    homepage: str = ""
    summary: str = ""
    neighbours: tuple[str, ...] = ()
    single_registrant: tuple[str, ...] = ()
    lists: tuple[List, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """What the configuration chooses of the catalogue ([policy])."""

    apps: str | tuple[str, ...] = "default"
    functions: str | tuple[str, ...] = ("payment", "telemetry")
    bypass: tuple[str, ...] = BYPASS_FUNCTIONS
    shared: bool | tuple[str, ...] = False
    mode: Action = Action.BLOCK

    def app_on(self, app: App) -> bool:
        if self.apps == "default":
            return bool(app.default)
        return self.apps == "all" or app.id in self.apps

    def shared_on(self, app: str) -> bool:
        return self.shared if isinstance(self.shared, bool) else app in self.shared

    def class_on(self, app: App, function: str) -> bool:
        if app.id == BYPASS:
            return function in self.bypass
        if not self.app_on(app):
            return False
        if function == "httpdns" and "httpdns" in self.bypass:
            return True
        return self.functions == "all" or function in self.functions


class Decision(NamedTuple):
    """Which entry claims a name or address: indices into the image's classes and sources, the line, the entry's text."""

    class_: int
    source: int
    line: int
    rule: str


Claims = tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Switchboard:
    """Class index → action. All that changes when someone pauses an app."""

    actions: tuple[Action, ...]

    def choose(self, claims: Claims) -> tuple[Action, Decision | None]:
        """The first claim whose class is not passed decides; without one, nothing is done."""
        for claim in claims:
            action = self.actions[claim.class_]
            if action is not Action.PASS:
                return action, claim
        return Action.PASS, None


def allows(classes: Sequence[Class], claims: Claims) -> bool:
    """Did the administrator's allow list claim it? (A claim of the allow level is always the only one.)"""
    return bool(claims) and classes[claims[0].class_] == LOCAL_ALLOW


class Claimed(NamedTuple):
    """The claims on one listed name: on itself, and on every name below it down to the next listed one."""

    itself: Claims
    below: Claims


class Plain(NamedTuple):
    """Names that one usual line of one class claims and nothing else, in columns: nearly all names of a large list."""

    names: bytes = b""  # wire form, end to end
    starts: "array[int]" = array("I")
    lines: "array[int]" = array("I")
    sources: "array[int]" = array("H")
    exact: bytes = b""  # 1: claims the name itself alone, 0: the names below it too

    def claimed(self, sources: Sequence[Source], classes: Sequence[Class]) -> Iterator[tuple[Name, Claimed]]:
        """The same, name by name."""
        for start, line, source, exact in zip(self.starts, self.lines, self.sources, self.exact, strict=True):
            name = Name(self.names[start : names.end(self.names, start)])
            decision = Decision(classes.index(sources[source].class_), source, line, SIGNS[exact] + names.to_text(name))
            yield name, Claimed((decision,), () if exact else (decision,))


@dataclass(frozen=True, slots=True)
class Policy:
    """Every name and network with its claims already in deciding order; what `image.encode` writes down."""

    classes: tuple[Class, ...]
    sources: tuple[Source, ...]
    names: Mapping[Name, Claimed]  # those that are not plain
    networks: Mapping[int, tuple[tuple[int, int, Claims], ...]]  # family → disjoint sorted (first, last, claims)
    plain: Plain = field(default_factory=Plain)

    def __len__(self) -> int:
        """Listed names."""
        return len(self.names) + len(self.plain.starts)

    def claimed(self) -> dict[Name, Claimed]:
        """Every listed name with its claims."""
        return {**self.names, **dict(self.plain.claimed(self.sources, self.classes))}


class Part(NamedTuple):
    """The names of one list as `sort_out` takes them: its usual lines, or its other ones."""

    names: bytes
    starts: "array[int]"
    lines: "array[int]"
    signs: bytes
    uniform: int  # equal for lists of one level and class; 0: all of its lines are exceptions
    source: int
    odd: bool  # its texts are not what follows from the names


class _Line(NamedTuple):
    """An entry with what precedence needs to know of its list."""

    level: Level
    app: str
    exception: bool
    exact: bool
    decision: Decision


def classes_of(apps: Iterable[App]) -> tuple[Class, ...]:
    """All classes in the order that breaks ties: local ones, then by app and function; the port functions of `bypass` too."""
    found = {list_.source.class_ for app in apps for list_ in app.lists}
    found |= {Class(app.id, function) for app in apps if app.id == BYPASS for function in PORT_FUNCTIONS}
    return (LOCAL_ALLOW, LOCAL_BLOCK, *sorted(found - {LOCAL_ALLOW, LOCAL_BLOCK}))


def select(apps: Sequence[App], classes: Sequence[Class], selection: Selection) -> Switchboard:
    """The switchboard that the configuration asks for."""
    by_id = {app.id: app for app in apps}

    def action(class_: Class) -> Action:
        if class_ == LOCAL_ALLOW:
            return Action.PASS
        if class_ == LOCAL_BLOCK or selection.class_on(by_id[class_.app], class_.function):
            return selection.mode
        return Action.PASS

    return Switchboard(tuple(map(action, classes)))


def combine(apps: Sequence[App], local: Sequence[List], selection: Selection) -> Policy:
    """One policy from the apps' lists and the local allow and block lists. Problems of single lines are already gone."""
    lists = [*local, *(list_ for app in apps for list_ in app.lists)]
    classes = classes_of(apps)
    index = {class_: i for i, class_ in enumerate(classes)}
    sources = tuple(list_.source for list_ in lists)
    off = [source.shared and not selection.shared_on(source.app) for source in sources]

    def line(number: int, exception: bool, exact: bool, at: int, text: str) -> _Line:
        source = sources[number]
        decision = Decision(index[source.class_], number, at, text)
        return _Line(source.level, source.app, exception or off[number], exact, decision)

    parts, odd = _parts(lists, [0 if off[n] else 1 + 4 * index[s.class_] + s.level for n, s in enumerate(sources)])
    plain, mixed, speaking = sort_out(parts)

    def spoken(part: int, row: int) -> _Line:
        number = parts[part].source
        if parts[part].odd:
            entry = odd[number][row]
            return line(number, entry.exception, entry.kind is Kind.EXACT, entry.line, entry.text)
        usual = lists[number].usual
        return line(number, usual.signs[row] == EXCEPTION, usual.signs[row] == EXACT, usual.lines[row], usual.text(row))

    at_name = {name: [spoken(*place) for place in places] for name, places in speaking.items()}
    networks = [
        (entry.network, line(number, entry.exception, False, entry.line, entry.text))
        for number, list_ in enumerate(lists) for entry in list_.odd if entry.network is not None
    ]  # fmt: skip
    return Policy(
        classes=classes,
        sources=sources,
        names={name: _claimed(name, at_name) for name in mixed},
        networks={family: tuple(_flatten([n for n in networks if n[0].family == family])) for family in (4, 6)},
        plain=plain,
    )


def _parts(lists: Sequence[List], uniform: Sequence[int]) -> tuple[list[Part], dict[int, list[Entry]]]:
    """(the names of all lists, the entries of the odd ones among them by source)."""
    parts: list[Part] = []
    odd: dict[int, list[Entry]] = {}
    for number, list_ in enumerate(lists):
        usual = list_.usual
        parts.append(Part(usual.names, usual.starts, usual.lines, usual.signs, uniform[number], number, odd=False))
        if entries := [entry for entry in list_.odd if entry.network is None]:
            odd[number] = entries
            starts = array("I", itertools.accumulate((len(entry.name) for entry in entries[:-1]), initial=0))
            lines = array("I", (entry.line for entry in entries))
            signs = bytes(EXCEPTION if entry.exception else EXACT if entry.kind is Kind.EXACT else 0 for entry in entries)
            parts.append(Part(b"".join(e.name for e in entries), starts, lines, signs, uniform[number], number, odd=True))
    return parts, odd


Place = tuple[int, int]  # number of a part, and of a row in it


def sort_out(parts: Sequence[Part]) -> tuple[Plain, list[Name], dict[Name, list[Place]]]:
    """(the plain names, the others, and the lines at those others and above them).

    A name is plain when what is said of it and of the names above it has one level and one class, and no exception is
    among it: then the lowest of its lines claims it, and nothing that stands above adds to that.
    """
    if accelerator.bulk:
        columns, mixed, speaking = accelerator.bulk.sort_out(list(parts))
        return Plain(*columns), mixed, speaking
    at_name: defaultdict[Name, list[Place]] = defaultdict(list)
    for number, part in enumerate(parts):
        for row, start in enumerate(part.starts):
            at_name[Name(part.names[start : names.end(part.names, start)])].append((number, row))
    kinds = {name: _kind(places, parts) for name, places in at_name.items()}
    plain = Plain(b"", array("I"), array("I"), array("H"))
    blob, exact, mixed, speaking = bytearray(), bytearray(), [], set()
    for name, (uniform, sign) in kinds.items():
        above = [each for each in names.suffixes(name) if each != name and each in kinds]
        if uniform and (sign == 0 or (sign == EXACT and not above)) and all(kinds[each][0] == uniform for each in above):
            best = min((parts[part].source, parts[part].lines[row]) for part, row in at_name[name])
            plain.starts.append(len(blob))
            plain.sources.append(best[0])
            plain.lines.append(best[1])
            exact.append(sign)
            blob += name
        else:
            mixed.append(name)
            speaking.update((name, *above))
    found = {name: places for name, places in at_name.items() if name in speaking}
    return plain._replace(names=bytes(blob), exact=bytes(exact)), mixed, found


def _kind(places: Iterable[Place], parts: Sequence[Part]) -> tuple[int, int]:
    """(what the lines at a name have in common, 0 without it; their sign, -1 when some are exact and some are not)."""
    said = {0 if parts[p].odd or parts[p].signs[row] == EXCEPTION else parts[p].uniform for p, row in places}
    signs = {int(parts[p].signs[row] == EXACT) for p, row in places}
    return (said.pop() if len(said) == 1 else 0), (signs.pop() if len(signs) == 1 else -1)


def _claimed(name: Name, at_name: Mapping[Name, list[_Line]]) -> Claimed:
    own = at_name[name]
    exact = [line for line in own if line.exact]
    suffix = [line for line in own if not line.exact]
    above = [at_name[parent] for parent in names.suffixes(name) if parent != name and parent in at_name]
    # each step holds the lines of one length, longest first; an exact line is longer than a suffix of the same name
    chain = [suffix, *([line for line in step if not line.exact] for step in above)]
    return Claimed(itself=_judge([exact, *chain]), below=_judge(chain))


def _judge(chain: Sequence[Sequence[_Line]]) -> Claims:
    """The claims of the first level that has any. `chain`: the matching lines, those of the longest entry first."""
    for level in Level:
        closed: set[str] = set()
        claims: list[Decision] = []
        seen: set[int] = set()
        for step in chain:
            lines = [line for line in step if line.level is level and line.app not in closed]
            closed |= {line.app for line in lines if line.exception}
            for line in sorted(lines, key=lambda line: line.decision):  # classes are numbered by app, then function
                if line.app not in closed and line.decision.class_ not in seen:
                    seen.add(line.decision.class_)
                    claims.append(line.decision)
        if claims:
            return tuple(claims)
    return ()


def _flatten(networks: Sequence[tuple[Network, _Line]]) -> Iterator[tuple[int, int, Claims]]:
    """Overlapping networks as disjoint ranges, each with its claims; neighbours with equal claims are one range.

    A sweep over the boundaries: between two of them the set of covering networks does not change, and the smallest
    network plays the part that the longest name plays.
    """
    ordered = sorted(networks, key=lambda item: item[0].first)
    bounds = sorted({n.first for n, _ in networks} | {n.last + 1 for n, _ in networks})
    active: list[tuple[Network, _Line]] = []
    pending: tuple[int, int, Claims] | None = None
    next_ = 0
    for first, after in itertools.pairwise(bounds):
        active = [item for item in active if item[0].last >= first]
        while next_ < len(ordered) and ordered[next_][0].first == first:
            active.append(ordered[next_])
            next_ += 1
        steps: dict[int, list[_Line]] = {}
        for network, line in active:
            steps.setdefault(network.last - network.first, []).append(line)
        claims = _judge([steps[size] for size in sorted(steps)]) if steps else ()
        if pending and claims == pending[2]:
            pending = (pending[0], after - 1, claims)
            continue
        if pending and pending[2]:
            yield pending
        pending = (first, after - 1, claims)
    if pending and pending[2]:
        yield pending
