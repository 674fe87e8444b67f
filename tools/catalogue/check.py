"""What no shipped catalogue may contain. Reads the files as the agent would, under a guard stricter than the agent's."""

import functools
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from publicsuffixlist import PublicSuffixList

from embargo import names
from embargo.errors import ConfigError, ListError, Problem
from embargo.lists import image, lists, policy
from embargo.lists.image import Image
from embargo.lists.lists import Guard
from embargo.lists.policy import Action, App, Entry, Level, List, Network, Selection, Source, Switchboard
from embargo.names import Name

EVERYTHING = Selection(apps="all", functions="all", shared=True)
ALL_BUT_SHARED = Selection(apps="all", functions="all", shared=False)

# Assigned to nobody who could run a service: documentation (RFC 5737, 3849, 9637), protocols and anycast of them (RFC 6890),
# benchmarks (RFC 2544, 5180), discard (RFC 6666), 6to4 (RFC 3056)
UNASSIGNED = (
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "100::/64",
    "2001::/32", "2001:2::/48", "2001:10::/28", "2001:20::/28", "2001:db8::/32", "2002::/16", "3fff::/20",
)  # fmt: skip
# RFC 6761, 6762, 7686, 8375, 2606: names that the resolver never asks about, or that stand in documents
RESERVED = ("test", "example", "invalid", "localhost", "local", "onion", "arpa", "example.com", "example.net", "example.org")


@functools.cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def _public(name: Name) -> bool:
    return bool(_suffixes().is_public(names.to_text(name)))


def guard(single_registrant: Iterable[str] = ()) -> Guard:
    return Guard(
        public_suffix=_public,
        single_registrant=frozenset(map(names.from_text, single_registrant)),
        protected=tuple((lists.network_from_text(text), "assigned to nobody") for text in UNASSIGNED),
    )


def load(root: Path) -> tuple[App, ...]:
    """The apps below `root` with their lists, problems included. ConfigError for an app.toml, ListError for a list."""
    return tuple(_app(path) for path in sorted(root.iterdir()) if path.is_dir())


def _app(path: Path) -> App:
    app = lists.parse_app((path / "app.toml").read_bytes(), f"{path.name}/app.toml", path.name)
    strict = guard(app.single_registrant)
    return replace(app, lists=tuple(_list(file, app, strict) for file in sorted(path.glob("*.list"))))


def _list(file: Path, app: App, strict: Guard) -> List:
    function, _, rest = file.name.partition(".")
    source = Source(f"{app.id}/{file.name}", Level.APPS, app.id, function, shared=rest == "shared.list")
    return lists.parse(file.read_bytes(), file=source.path, source=source, guard=strict)


def compiled(apps: tuple[App, ...], selection: Selection) -> tuple[Image, Switchboard]:
    built = policy.combine(apps, (), selection)
    return Image(image.encode(built)), policy.select(apps, built.classes, selection)


def problems(root: Path) -> list[Problem]:
    """Everything that is wrong with the catalogue below `root`."""
    try:
        apps = load(root)
    except ConfigError as error:
        return list(error.problems)
    except ListError as error:
        return [error.problem]
    found = [problem for app in apps for list_ in app.lists for problem in (*list_.problems, *_entries(list_))]
    found += [problem for app in apps for problem in (*_words(app), *_twice(app))]
    return found + list(_harmed(apps))


def _words(app: App) -> Iterator[Problem]:
    known = policy.BYPASS_FUNCTIONS if app.id == policy.BYPASS else policy.FUNCTIONS
    for list_ in app.lists:
        right = f"{app.id}/{list_.source.function}{'.shared' if list_.source.shared else ''}.list"
        if list_.source.function not in known or list_.source.path != right:
            yield Problem(list_.source.path, 0, "it is named after no function", f"functions are {', '.join(known)}")
        if not list_.entries:
            yield Problem(list_.source.path, 0, "it has no entry", "take the file out")
    for key in ("operator", "order", "homepage", "summary", "neighbours"):
        if not getattr(app, key):
            yield Problem(f"{app.id}/app.toml", 0, f"{key}: missing", "every app of the catalogue says it")


def _entries(list_: List) -> Iterator[Problem]:
    for entry in list_.entries:
        place = (list_.source.path, entry.line)
        if not entry.evidence:
            yield Problem(*place, f'"{entry.text}" has no evidence', "say behind a # who knows it and how well")
        if (right := _canonical(entry)) != entry.text:
            yield Problem(*place, f'"{entry.text}" is not in its usual form', f"write {right}")
        if entry.network is None and any(names.from_text(zone) in names.suffixes(entry.name) for zone in RESERVED):
            yield Problem(*place, f'"{entry.text}" is a reserved name', "nobody can register it")


def _canonical(entry: Entry) -> str:
    body = entry.text.lstrip("!=")
    if entry.network is None:
        right = names.to_text(entry.name)
    else:
        network = ipaddress.ip_network(body)
        right = str(network if network.num_addresses > 1 else network.network_address)
    return entry.text[: len(entry.text) - len(body)] + right


def _twice(app: App) -> Iterator[Problem]:
    """A name or network stands once in an app: in one function, on one side of the shared border."""
    seen: set[tuple[Name, Network | None]] = set()
    for path, entry in [(each.source.path, entry) for each in app.lists for entry in each.entries]:
        if (entry.name, entry.network) in seen:
            yield Problem(path, entry.line, f'"{entry.text}" stands in {app.id} twice', "keep one of the lines")
        seen.add((entry.name, entry.network))


def _harmed(apps: tuple[App, ...]) -> Iterator[Problem]:
    """The neighbours that the catalogue would block with everything but the shared lists on."""
    built, board = compiled(apps, ALL_BUT_SHARED)
    for neighbour_of, text in [(app.id, text) for app in apps for text in app.neighbours]:
        action, decision = board.choose(built.lookup(names.from_text(text)))
        if action is not Action.PASS and decision is not None:
            place = built.sources[decision.source].path
            yield Problem(place, decision.line, f'"{decision.rule}" blocks {text}', f"which is a neighbour of {neighbour_of}")
