"""Facts → placements → files.

A placement is a fact in a list: app, function, shared or not. Rules, in this order:

- An autonomous system, and a network whose collateral is high, is context and stands nowhere.
- Cross-app HTTPDNS belongs to `bypass`; a public resolver among it is `doh` and never shared.
- Collateral none or low: FUNCTION.list. Medium or high: FUNCTION.shared.list.
- A carried function stands in the second app's list too.

A placement is redundant when the nearest line that encloses it within its app has the same function and is shared alike:
taking it out changes no verdict. One that carries another function stays, because a policy may turn on that function alone,
and so does one on the other side of the shared border, because a shared list that is off sets names apart.
"""

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from embargo.lists.policy import BYPASS
from tools.catalogue.facts import CROSS_APP, Exemption, Fact, Overlay

_ASIDE = re.compile(r" \([^)]* [^)]*\)")  # a remark of several words in brackets
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+) (?:\S*/)?([\w.-]+)(.*)")  # owner/name path rest: the path's last part will do


class Placement(NamedTuple):
    """A fact in a list."""

    app: str
    function: str
    shared: bool
    fact: Fact

    @property
    def list(self) -> str:
        return f"{self.app}/{self.function}{'.shared' if self.shared else ''}.list"


def place(facts: Iterable[Fact], overlay: Overlay) -> Iterator[Placement]:
    for fact in facts:
        if fact.kind == "asn" or (fact.kind.startswith("cidr") and fact.collateral == "high"):
            continue
        if fact.app == CROSS_APP:
            public = fact.value in overlay.resolvers
            yield Placement(BYPASS, "doh" if public else fact.function, fact.breaks_others and not public, fact)
            continue
        yield Placement(fact.app, fact.function, fact.breaks_others, fact)
        for carry in overlay.carries:
            if (carry.source, carry.function) == (fact.app, fact.function):
                yield Placement(carry.target, fact.function, fact.breaks_others, fact)


def trim(placements: Sequence[Placement], exemptions: Iterable[Exemption]) -> list[Placement]:
    """The placements without those that a wider one of the same list makes redundant."""
    wide: dict[tuple[str, object], tuple[str, bool] | None] = {}
    for exemption in exemptions:
        wide[exemption.list.split("/")[0], exemption.name] = None
    for placed in placements:
        if placed.fact.match == "suffix" or placed.fact.kind.startswith("cidr"):
            wide[placed.app, _key(placed.fact)] = (placed.function, placed.shared)
    return [placed for placed in placements if _nearest(placed, wide) != (placed.function, placed.shared)]


def _key(fact: Fact) -> object:
    return ipaddress.ip_network(fact.value) if fact.network else fact.value


def _nearest(placed: Placement, wide: Mapping[tuple[str, object], tuple[str, bool] | None]) -> tuple[str, bool] | None:
    """Function and side of the smallest line of the app around this one; None when there is none or it is an exception."""
    for outer in _outwards(placed.fact):
        if (placed.app, outer) in wide:
            return wide[placed.app, outer]
    return None


def _outwards(fact: Fact) -> Iterator[object]:
    if fact.network:
        network = ipaddress.ip_network(fact.value)
        for length in range(network.prefixlen - 1, 0, -1):
            yield network.supernet(new_prefix=length)
        return
    name = fact.value
    while "." in name:
        name = name.partition(".")[2]
        yield name


def files(facts: Sequence[Fact], overlay: Overlay) -> dict[str, str]:
    """Every file of the catalogue: path below blocklists/ → text."""
    found = {f"{id_}/app.toml": app_file(id_, app) for id_, app in overlay.apps.items()}
    lines: dict[str, list[tuple[Any, str]]] = {}
    for placed in trim(list(place(facts, overlay)), overlay.exemptions):
        text = ("=" if placed.fact.kind == "domain" and placed.fact.match == "exact" else "") + placed.fact.value
        lines.setdefault(placed.list, []).append((_order(placed.fact), f"{text}  # {evidence(placed, overlay)}"))
    for exemption in overlay.exemptions:
        lines[exemption.list].append((_name_order(exemption.name), f"!{exemption.name}  # {exemption.why}"))
    for path, body in lines.items():
        head = _head(path, overlay.apps[path.split("/")[0]]["name"])
        found[path] = "\n".join([*head, "", *(line for _, line in sorted(body))]) + "\n"
    return found


def _head(path: str, name: str) -> Iterator[str]:
    function, _, rest = path.split("/")[1].partition(".")
    yield f"# {name}: {function}. Made by `python -m tools.catalogue`: change the facts in tools/catalogue/, not this file."
    if rest == "shared.list":
        yield "# Blocking these breaks others too: they are off unless [policy] shared says otherwise."


def _order(fact: Fact) -> tuple[Any, ...]:
    """Names first, each below the suffix that encloses it; then IPv4, then IPv6, by number."""
    if not fact.network:
        return _name_order(fact.value)
    network = ipaddress.ip_network(fact.value)
    return (network.version, int(network.network_address), network.prefixlen)


def _name_order(name: str) -> tuple[Any, ...]:
    return (0, *reversed(name.split(".")))


def evidence(placed: Placement, overlay: Overlay) -> str:
    """Why the line is there: how sure it is, its source, what is known about it, and what else uses the address or name."""
    fact = placed.fact
    notes = [_short(fact.source), fact.note]
    if fact.value in overlay.resolvers:
        notes.append(overlay.resolver_note)
    if fact.shared_with and fact.collateral != "none" and placed.function != "doh":
        notes.append(f"shared with {fact.shared_with}")
    return f"{fact.confidence}: " + "; ".join(note for note in notes if note)


def _short(source: str) -> str:
    """At most two sources, those in a repository by owner, name and file; the facts have them in full."""
    parts = [_REPOSITORY.sub(r"\1 \2\3", _ASIDE.sub("", part)) for part in source.split("; ")]
    return ", ".join(parts[:2]) + (f" and {len(parts) - 2} more" if len(parts) > 2 else "")


def app_file(id_: str, app: Mapping[str, Any]) -> str:
    """An app.toml. The strings are ASCII, so JSON's notation of them is TOML's too."""
    keys = ("name", "operator", "order", "default", "homepage", "summary")
    lines = [f"id = {json.dumps(id_)}", *(f"{key} = {json.dumps(app[key])}" for key in keys)]
    for key in ("single_registrant", "neighbours"):
        if key in app:
            lines += [f"{key} = [", *(f"  {json.dumps(name)}," for name in app[key]), "]"]
    return "\n".join(lines) + "\n"
