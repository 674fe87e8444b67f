"""docs/catalogue.md: what the catalogue holds, how sure it is, what it blocks, and what is not known."""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embargo import names
from embargo.lists.image import Image
from embargo.lists.policy import BYPASS, Action, Selection, Switchboard
from tools.catalogue import build, check, facts
from tools.catalogue.build import Placement
from tools.catalogue.facts import Fact, Overlay

CONFIDENCE = ("high", "medium", "low")
COLLATERAL = ("none", "low", "medium", "high")

_HEAD = """\
# The catalogue

The content of `blocklists/`. `python -m tools.catalogue` writes both from the facts in
[endpoints.csv](../tools/catalogue/endpoints.csv) and [additions.csv](../tools/catalogue/additions.csv), one name, address or
network a row, and from [overlay.toml](../tools/catalogue/overlay.toml), which has what is decided by hand: texts, neighbours,
exemptions. A new endpoint is a new row. Tests check the verdict of every row, and this page against the lists.

No endpoint was resolved or contacted, so no row says that a name or address is in use today. *Confidence* is high if a fact was
read in client code, official documents or several lists; medium for one list, one observation or an older client; low if it was
inferred from ownership or from the name. *Collateral* is what else stops working: none; low, a minor or background function of
other services; medium, a visible function; high, unrelated sites.

## How a fact becomes an entry

| fact | list |
|---|---|
| collateral none or low | `FUNCTION.list` |
| collateral medium or high | `FUNCTION.shared.list`, off unless `[policy] shared` enables it |
| autonomous system, or network of high collateral | none: it is context only, because it serves unrelated sites too |
| below a line of the same app, function and kind of list | none: that line covers it |
| below a line of another function | its own list, so that a policy can block payment or telemetry alone |
"""


@dataclass(frozen=True, slots=True)
class _Catalogue:
    overlay: Overlay
    facts: tuple[Fact, ...]
    placements: tuple[Placement, ...]
    entries: tuple[Placement, ...]
    default: tuple[Image, Switchboard]
    wide: tuple[Image, Switchboard]  # every app and function, the shared lists off


def page(root: Path) -> str:
    overlay = facts.overlay()
    rows = facts.read()
    placements = tuple(build.place(rows, overlay))
    apps = check.load(root)
    catalogue = _Catalogue(
        overlay, rows, placements, tuple(build.trim(placements, overlay.exemptions)),
        check.compiled(apps, Selection()), check.compiled(apps, check.ALL_BUT_SHARED),
    )  # fmt: skip
    sections = [_figures(catalogue), _portals(catalogue), *(_app(id_, catalogue) for id_ in overlay.apps)]
    head = _HEAD + "\n".join(_rules(overlay))
    return "\n\n".join([head, *("\n".join(section) for section in sections)]) + "\n"


def blocked(fact: Fact, compiled: tuple[Image, Switchboard]) -> bool:
    """Is all that the fact speaks of blocked? Of a network, its two ends tell."""
    built, board = compiled
    if fact.kind == "asn":
        return False
    if not fact.network:
        return board.choose(built.lookup(names.from_text(fact.value)))[0] is Action.BLOCK
    network = ipaddress.ip_network(fact.value)
    ends = (network.network_address.packed, network.broadcast_address.packed)
    return all(board.choose(built.lookup_address(end))[0] is Action.BLOCK for end in ends)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" + "|--:" * (len(head) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell) if cell else '-' for cell in row)} |"


def _rules(overlay: Overlay) -> Iterator[str]:
    for carry in overlay.carries:
        yield f"| {carry.function} of {carry.source} | in `{carry.target}/{carry.function}.list` too: {carry.why} |"
    yield f"| httpdns of no single app, and a public resolver | `bypass/doh.list`: {overlay.resolver_why} |"


def _figures(catalogue: _Catalogue) -> Iterator[str]:
    yield "## In figures"
    yield ""
    yield "A fact may belong to two apps. Blocked: the policy blocks its name or whole network, by any line."
    yield ""
    head = (
        "app",
        "facts",
        "entries",
        "shared entries",
        "exemptions",
        "blocked by default",
        "blocked with every app and function",
    )
    yield from _table(head, [_figure(app, catalogue) for app in (*catalogue.overlay.apps, "all")])


def _figure(app: str, catalogue: _Catalogue) -> Sequence[object]:
    placed = {p.fact for p in catalogue.placements if p.app == app}
    own = [fact for fact in catalogue.facts if app in ("all", fact.app) or fact in placed]
    entries = Counter(e.shared for e in catalogue.entries if app in ("all", e.app))
    spared = sum(app in ("all", e.list.split("/")[0]) for e in catalogue.overlay.exemptions)
    verdicts = (sum(blocked(fact, compiled) for fact in own) for compiled in (catalogue.default, catalogue.wide))
    return (app, len(own), entries[False], entries[True], spared, *verdicts)


def _portals(catalogue: _Catalogue) -> Iterator[str]:
    yield "## Below shared names"
    yield ""
    yield "Names that many services share are off by default; the names below them have lines of their own."
    yield ""
    known = {p.fact.value: p.fact for p in catalogue.placements if not p.fact.network}
    rows = []
    for portal in sorted({p.fact.value for p in catalogue.placements if p.shared and p.fact.match == "suffix"}):
        if below := [fact for name, fact in known.items() if name.endswith("." + portal)]:
            verdicts = (sum(blocked(fact, compiled) for fact in below) for compiled in (catalogue.default, catalogue.wide))
            rows.append((f"`{portal}`", len(below), sum(fact.breaks_others for fact in below), *verdicts))
    head = ("shared name", "names below it", "shared themselves", "blocked by default", "blocked with every app and function")
    yield from _table(head, rows)


def _app(id_: str, catalogue: _Catalogue) -> Iterator[str]:
    app = catalogue.overlay.apps[id_]
    yield f"## {id_}"
    yield ""
    yield f"{app['name']}, by {app['operator']}: {app['summary']}. {_default(id_, app['default'])}"
    yield ""
    yield f"Order: {app['order']}."
    yield ""
    yield from _functions(id_, catalogue)
    yield ""
    spared: dict[str, list[str]] = {}
    for exemption in catalogue.overlay.exemptions:
        if exemption.list.startswith(id_ + "/"):
            spared.setdefault(exemption.why, []).append(f"`{exemption.name}`")
    if spared:
        groups = (f"{', '.join(found)} ({why})" for why, found in spared.items())
        yield f"Exempt: {'; '.join(groups)}."
        yield ""
    yield f"Must keep working: {', '.join(f'`{name}`' for name in app['neighbours'])}."
    yield ""
    yield "Not known:"
    yield ""
    yield from (f"- {text}" for text in app["unknown"])


def _default(id_: str, default: bool) -> str:
    if id_ == BYPASS:
        return "`[policy] bypass` enables its functions."
    return "On by default." if default else "Off by default."


def _functions(id_: str, catalogue: _Catalogue) -> Iterator[str]:
    head = (
        "function", "facts", "names", "networks", "shared names", "shared networks", "confidence h/m/l", "collateral n/l/m/h",
    )  # fmt: skip
    rows = []
    for function in sorted({p.function for p in catalogue.placements if p.app == id_}):
        own = [p.fact for p in catalogue.placements if (p.app, p.function) == (id_, function)]
        kinds = Counter((e.shared, e.fact.network) for e in catalogue.entries if (e.app, e.function) == (id_, function))
        counts = (kinds[False, False], kinds[False, True], kinds[True, False], kinds[True, True])
        confidence = _split((fact.confidence for fact in own), CONFIDENCE)
        rows.append((function, len(own), *counts, confidence, _split((fact.collateral for fact in own), COLLATERAL)))
    return _table(head, rows)


def _split(found: Iterable[str], words: Sequence[str]) -> str:
    counted = Counter(found)
    return "/".join(str(counted[word]) for word in words)
