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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from embargo import names
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


class List(NamedTuple):
    source: Source
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    file: str


@dataclass(frozen=True, slots=True)
class App:
    id: str
    name: str
    operator: str = ""
    order: str = ""
    default: bool = False
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
            return app.default
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


@dataclass(frozen=True, slots=True)
class Policy:
    """Every name and network with its claims already in deciding order; what `image.encode` writes down."""

    classes: tuple[Class, ...]
    sources: tuple[Source, ...]
    names: Mapping[Name, "Claimed"]
    networks: Mapping[int, tuple[tuple[int, int, Claims], ...]]  # family → disjoint sorted (first, last, claims)


class Claimed(NamedTuple):
    """The claims on one listed name: on itself, and on every name below it down to the next listed one."""

    itself: Claims
    below: Claims


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
    at_name: dict[Name, list[_Line]] = {}
    networks: list[tuple[Network, _Line]] = []
    for number, list_ in enumerate(lists):
        source = list_.source
        off = source.shared and not selection.shared_on(source.app)
        class_ = index[source.class_]
        for entry in list_.entries:
            line = _Line(
                source.level, source.app, entry.exception or off, entry.kind is Kind.EXACT,
                Decision(class_, number, entry.line, entry.text),
            )  # fmt: skip
            if entry.network is not None:
                networks.append((entry.network, line))
            else:
                at_name.setdefault(entry.name, []).append(line)
    return Policy(
        classes=classes,
        sources=tuple(list_.source for list_ in lists),
        names={name: _claimed(name, at_name) for name in at_name},
        networks={family: tuple(_flatten([n for n in networks if n[0].family == family])) for family in (4, 6)},
    )


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
