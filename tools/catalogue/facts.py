"""The facts and the overlay as values. Files in, no judgement."""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
FILES = ("endpoints.csv", "additions.csv")
CROSS_APP = "httpdns"  # in the facts: resolvers of no single app. In the catalogue they belong to `bypass`


class Fact(NamedTuple):
    """One row of the facts. `collateral`: what else stops working; `confidence`: how well it is known."""

    app: str
    kind: str  # domain, ipv4, ipv6, cidr4, cidr6, asn
    value: str
    match: str  # suffix or exact
    function: str
    shared_with: str
    collateral: str  # none, low, medium, high
    confidence: str  # high, medium, low
    source: str
    note: str

    @property
    def network(self) -> bool:
        return self.kind != "domain"

    @property
    def breaks_others(self) -> bool:
        return self.collateral in ("medium", "high")


class Carry(NamedTuple):
    """Facts of one app and function that stand in another app's list too."""

    source: str
    function: str
    target: str
    why: str


class Exemption(NamedTuple):
    """A name that an app does not claim, though it stands below one of its suffixes."""

    list: str  # "qq/core.shared.list"
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Overlay:
    apps: Mapping[str, Mapping[str, Any]]
    carries: tuple[Carry, ...]
    resolvers: frozenset[str]
    resolver_note: str
    resolver_why: str
    exemptions: tuple[Exemption, ...]


def read() -> tuple[Fact, ...]:
    return tuple(Fact(**row) for name in FILES for row in _rows(HERE / name))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="ascii") as file:
        return list(csv.DictReader(file, strict=True))


def overlay() -> Overlay:
    raw: dict[str, Any] = tomllib.loads((HERE / "overlay.toml").read_text())
    return Overlay(
        apps={id_: {**app, "order": raw["orders"][app["order"]]} for id_, app in raw["apps"].items()},
        carries=tuple(Carry(c["from"], c["function"], c["to"], c["why"]) for c in raw["carry"]),
        resolvers=frozenset(raw["resolvers"]["values"]),
        resolver_note=raw["resolvers"]["note"],
        resolver_why=raw["resolvers"]["why"],
        exemptions=tuple(Exemption(e["list"], name, e["why"]) for e in raw["except"] for name in e["names"]),
    )
