"""The terms of filtering, and precedence.

List → entry → policy. An entry of a list belongs to a class, which is an app and one of its functions. For a name or an
address, the policy says which classes claim it, and by which entry. Claims are in order of precedence. Only the switchboard
turns a class into an action, so pausing an app changes no entry.

Precedence. There are three levels, in this order: local allow lists, local block lists, apps. The first level with a claim
decides. On the level of apps, each app is judged separately. If its longest matching line is an exception, the app claims
nothing. Otherwise each matching line adds a claim of its class, from the longest down to the first exception. A line of a
shared list that is not selected counts as an exception: a shorter suffix must not block it by accident.
"""

import enum
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embargo import checks, names
from embargo.checks import choice, either, many, option
from embargo.errors import Problem
from embargo.lists.columns import EXACT, EXCEPTION, SIGNS, Part, Plain, Usual, sort_out
from embargo.names import Name


class Action(enum.IntEnum):
    """What is done about the names and addresses of a class."""

    PASS = 0
    AUDIT = 1  # let pass, and log what would have been blocked
    BLOCK = 2


class Level(enum.IntEnum):
    """The levels of precedence, highest first."""

    ALLOW = 0
    BLOCK = 1
    APPS = 2


class EntryKind(enum.IntEnum):
    """What an entry matches: a name and all names below it, a name only, or a network."""

    SUFFIX = 0
    EXACT = 1
    NETWORK = 2


class Class(NamedTuple):
    """An app and one of its functions: the unit that the switchboard switches."""

    app: str
    function: str

    def __str__(self) -> str:
        return f"{self.app}/{self.function}"


LOCAL_ALLOW = Class("local", "allow")
LOCAL_BLOCK = Class("local", "block")

BYPASS = "bypass"
CANARY = (Class(BYPASS, "canary"), Class(BYPASS, "relay"))  # always answered NXDOMAIN, regardless of the block mode
PORT_FUNCTIONS = ("dot", "doq")  # functions of `bypass` that block ports and have no entries
FUNCTIONS = (
    "payment", "telemetry", "ads", "login", "core", "messaging", "cdn", "update", "push", "httpdns", "website",
)  # fmt: skip
BYPASS_FUNCTIONS = ("dot", "doq", "doh", "httpdns", "canary", "relay")


class Network(NamedTuple):
    """A range of addresses, `first` to `last` inclusive, as integers."""

    family: int  # 4 or 6
    first: int
    last: int


class Entry(NamedTuple):
    """One line of a list."""

    kind: EntryKind
    exception: bool
    name: Name  # empty for a network
    network: Network | None
    line: int
    text: str  # without the comment
    evidence: str  # the comment


class Source(NamedTuple):
    """A list file: its path and the meaning of its entries."""

    path: str  # as it is shown: "alipay/payment.list"
    level: Level
    app: str
    function: str
    shared: bool

    @property
    def class_(self) -> Class:
        """The class of its entries."""
        return Class(self.app, self.function)


class List(NamedTuple):
    """A parsed list."""

    source: Source
    odd: tuple[Entry, ...]  # the entries that are not in `usual`
    problems: tuple[Problem, ...]
    file: str
    usual: Usual = Usual()
    data: bytes = b""  # content of the file

    @property
    def size(self) -> int:
        """The number of entries."""
        return len(self.odd) + len(self.usual.starts)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries as objects, by line: to be shown or searched, not to be compiled."""
        lines = self.data.split(b"\n" if b"\n" in self.data else b"\r")
        found = [self.usual_entry(row, comment(lines[line - 1].decode())) for row, line in enumerate(self.usual.lines)]
        return tuple(sorted((*found, *self.odd), key=lambda entry: entry.line))

    def usual_entry(self, row: int, evidence: str = "") -> Entry:
        """A row of `usual` as an entry."""
        usual, sign = self.usual, self.usual.signs[row]
        kind = EntryKind.EXACT if sign == EXACT else EntryKind.SUFFIX
        return Entry(kind, sign == EXCEPTION, usual.name(row), None, usual.lines[row], usual.text(row), evidence)


def comment(line: str) -> str:
    """The comment of a line, without control characters: the evidence for an entry."""
    evidence = line.partition("#")[2].strip()
    return evidence if evidence.isprintable() else "".join(c for c in evidence if c.isprintable())


@dataclass(frozen=True, slots=True)
class App:
    """An app of the catalogue (app.toml), with its lists."""

    id: str
    name: str
    operator: str = ""
    order: str = ""
    default: bool | None = None  # None: not set in app.toml
    homepage: str = ""
    summary: str = ""
    neighbours: tuple[str, ...] = ()
    single_registrant: tuple[str, ...] = ()
    lists: tuple[List, ...] = ()


def _mode(value: Any) -> Action:
    return Action[choice("block", "audit")(value).upper()]


@dataclass(frozen=True, slots=True)
class Selection:
    """What the configuration selects from the catalogue: its section [policy]."""

    apps: str | tuple[str, ...] = option(
        "default",
        either("default", "all", check=many(checks.text)),
        '"default" (the eight apps of Executive Order 13971), "all" or a list of app ids',
    )
    functions: str | tuple[str, ...] = option(
        ["payment", "telemetry"],
        either("all", check=many(choice(*FUNCTIONS))),
        f'functions of those apps to block: {", ".join(FUNCTIONS)}; or "all" for the whole app',
    )
    bypass: tuple[str, ...] = option(
        list(BYPASS_FUNCTIONS),
        many(choice(*BYPASS_FUNCTIONS)),
        f"ways around the filter to close: {', '.join(BYPASS_FUNCTIONS)}",
    )
    shared: bool | tuple[str, ...] = option(
        False,
        either(True, False, check=many(checks.text)),
        "also block entries that break other services: true, false or a list of app ids",
    )
    mode: Action = option("block", _mode, "block, or audit: log what would be blocked and let it pass")

    def app_on(self, app: App) -> bool:
        """Whether [policy] apps selects the app."""
        if self.apps == "default":
            return bool(app.default)
        return self.apps == "all" or app.id in self.apps

    def shared_on(self, app: str) -> bool:
        """Whether [policy] shared selects the shared lists of the app with this id."""
        return self.shared if isinstance(self.shared, bool) else app in self.shared

    def class_on(self, app: App, function: str) -> bool:
        """Whether a function of an app is blocked (or logged, with mode = "audit")."""
        if app.id == BYPASS:
            return function in self.bypass
        if not self.app_on(app):
            return False
        if function == "httpdns" and "httpdns" in self.bypass:
            return True
        return self.functions == "all" or function in self.functions


class Decision(NamedTuple):
    """The entry that claims a name or address: indices into the classes and sources of the image, line number, text."""

    class_: int
    source: int
    line: int
    rule: str


Claims = tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Switchboard:
    """Class index → action. Pausing an app changes nothing else."""

    actions: tuple[Action, ...]

    def choose(self, claims: Claims) -> tuple[Action, Decision | None]:
        """(action, deciding claim): the first claim whose class does not pass decides; without one, nothing is done."""
        for claim in claims:
            action = self.actions[claim.class_]
            if action is not Action.PASS:
                return action, claim
        return Action.PASS, None


def allows(classes: Sequence[Class], claims: Claims) -> bool:
    """Whether the administrator's allow list claims it. A claim of that level is always the only one."""
    return bool(claims) and classes[claims[0].class_] == LOCAL_ALLOW


class Claimed(NamedTuple):
    """The claims on a listed name: on itself, and on every name below it down to the next listed name."""

    itself: Claims
    below: Claims


@dataclass(frozen=True, slots=True)
class Policy:
    """All listed names and networks with their claims in order of precedence: the input of `image.encode`."""

    classes: tuple[Class, ...]
    sources: tuple[Source, ...]
    names: Mapping[Name, Claimed]  # all except `plain`
    networks: Mapping[int, tuple[tuple[int, int, Claims], ...]]  # family → disjoint sorted (first, last, claims)
    plain: Plain = field(default_factory=Plain)
    cuts: tuple[Name, ...] = ()  # names above exceptions, sorted, as far as they are listed or below a listed name

    def __len__(self) -> int:
        """The number of listed names."""
        return len(self.names) + len(self.plain.starts)

    def claimed(self) -> dict[Name, Claimed]:
        """Every listed name with its claims."""
        return {**self.names, **dict(self._plain())}

    def _plain(self) -> Iterator[tuple[Name, Claimed]]:
        plain = self.plain
        for start, line, source, exact in zip(plain.starts, plain.lines, plain.sources, plain.exact, strict=True):
            name = Name(plain.names[start : names.end(plain.names, start)])
            class_ = self.classes.index(self.sources[source].class_)
            decision = Decision(class_, source, line, SIGNS[exact] + names.to_text(name))
            yield name, Claimed((decision,), () if exact else (decision,))


class _Line(NamedTuple):
    """An entry as precedence sees it."""

    level: Level
    app: str
    exception: bool
    exact: bool
    decision: Decision


def classes_of(apps: Iterable[App]) -> tuple[Class, ...]:
    """All classes in the order that breaks ties: local ones first, then by app and function. Includes PORT_FUNCTIONS."""
    found = {list_.source.class_ for app in apps for list_ in app.lists}
    found |= {Class(app.id, function) for app in apps if app.id == BYPASS for function in PORT_FUNCTIONS}
    return (LOCAL_ALLOW, LOCAL_BLOCK, *sorted(found - {LOCAL_ALLOW, LOCAL_BLOCK}))


def select(apps: Sequence[App], classes: Sequence[Class], selection: Selection) -> Switchboard:
    """The switchboard of a selection."""
    by_id = {app.id: app for app in apps}

    def action(class_: Class) -> Action:
        if class_ == LOCAL_ALLOW:
            return Action.PASS
        if class_ == LOCAL_BLOCK or selection.class_on(by_id[class_.app], class_.function):
            return selection.mode
        return Action.PASS

    return Switchboard(tuple(map(action, classes)))


def combine(apps: Sequence[App], local: Sequence[List], selection: Selection) -> Policy:
    """The policy of the apps' lists and the local allow and block lists, which contain no unusable lines any more."""
    lists = [*local, *(list_ for app in apps for list_ in app.lists)]
    classes = classes_of(apps)
    index = {class_: i for i, class_ in enumerate(classes)}
    sources = tuple(list_.source for list_ in lists)
    off = [source.shared and not selection.shared_on(source.app) for source in sources]

    def line(number: int, exception: bool, exact: bool, line_number: int, text: str) -> _Line:
        source = sources[number]
        decision = Decision(index[source.class_], number, line_number, text)
        return _Line(source.level, source.app, exception or off[number], exact, decision)

    parts, odd = _parts(lists, [0 if off[n] else 1 + 4 * index[s.class_] + s.level for n, s in enumerate(sources)])
    plain, mixed, relevant = sort_out(parts)

    def at(part: int, row: int) -> _Line:
        number = parts[part].source
        if parts[part].odd:
            entry = odd[number][row]
            return line(number, entry.exception, entry.kind is EntryKind.EXACT, entry.line, entry.text)
        usual = lists[number].usual
        return line(number, usual.signs[row] == EXCEPTION, usual.signs[row] == EXACT, usual.lines[row], usual.text(row))

    at_name = {name: [at(*place) for place in places] for name, places in relevant.items()}
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
        cuts=_cuts(at_name),
    )


def _cuts(at_name: Mapping[Name, Sequence[_Line]]) -> tuple[Name, ...]:
    """The listed names, and names below listed ones, that have an exception below them."""
    above: set[Name] = set()
    for name, lines in at_name.items():
        if any(line.exception or line.level is Level.ALLOW for line in lines):
            above.update(itertools.islice(names.suffixes(name), 1, None))
    return tuple(sorted(name for name in above if any(listed in at_name for listed in names.suffixes(name))))


def _parts(lists: Sequence[List], uniform: Sequence[int]) -> tuple[list[Part], dict[int, list[Entry]]]:
    """(the names of all lists in columns, the entries that are not usual by source)."""
    parts: list[Part] = []
    odd: dict[int, list[Entry]] = {}
    for number, list_ in enumerate(lists):
        usual = list_.usual
        parts.append(Part(usual.names, usual.starts, usual.lines, usual.signs, uniform[number], number, odd=False))
        if entries := [entry for entry in list_.odd if entry.network is None]:
            odd[number] = entries
            starts = array("I", itertools.accumulate((len(entry.name) for entry in entries[:-1]), initial=0))
            lines = array("I", (entry.line for entry in entries))
            signs = bytes(EXCEPTION if entry.exception else EXACT if entry.kind is EntryKind.EXACT else 0 for entry in entries)
            parts.append(Part(b"".join(e.name for e in entries), starts, lines, signs, uniform[number], number, odd=True))
    return parts, odd


def _claimed(name: Name, at_name: Mapping[Name, list[_Line]]) -> Claimed:
    own = at_name[name]
    exact = [line for line in own if line.exact]
    suffix = [line for line in own if not line.exact]
    above = [at_name[parent] for parent in names.suffixes(name) if parent != name and parent in at_name]
    # each step has the lines of one length, longest first; an exact line precedes a suffix of the same name
    chain = [suffix, *([line for line in step if not line.exact] for step in above)]
    return Claimed(itself=_judge([exact, *chain]), below=_judge(chain))


def _judge(chain: Sequence[Sequence[_Line]]) -> Claims:
    """The claims of the first level that has any. `chain`: the matching lines by length, longest first."""
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
    """Overlapping networks as disjoint ranges with their claims; adjacent ranges with equal claims are merged.

    A sweep over the boundaries: between two of them, the set of covering networks does not change. The smallest network takes
    the place of the longest name.
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
