"""What the policy should make of the facts, worked out naively: from the rows and the documented rules, by string comparison.

Nothing here comes from `embargo` or `tools.catalogue`, so that a mistake there is not repeated here.
"""

import csv
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parent.parent.parent
BLOCKLISTS = TOP / "blocklists"

THE_EIGHT = {"alipay", "camscanner", "qq-wallet", "shareit", "qq", "vmate", "wechat-pay", "wps-office"}
ON_BY_DEFAULT = {"payment", "telemetry", "httpdns"}  # httpdns of the chosen apps, because [policy] bypass has it
# cross-app HTTPDNS rows of medium collateral that are resolvers open to everybody: what `bypass` is there to stop
PUBLIC_RESOLVERS = {
    "dns.alidns.com", "223.5.5.5", "223.6.6.6", "2400:3200::1", "2400:3200:baba::1",
    "dns.pub", "doh.pub", "dot.pub", "1.12.12.12", "120.53.53.53", "119.29.29.29",
}  # fmt: skip

Row = dict[str, str]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def rows() -> list[Row]:
    """Every fact, from both files."""
    found = []
    for name in ("endpoints.csv", "additions.csv"):
        with (TOP / "tools/catalogue" / name).open(newline="") as file:
            found += list(csv.DictReader(file))
    return found


class Line(NamedTuple):
    """A row as it bears on one app. `exempt`: the app does not claim what matches."""

    app: str
    function: str
    shared: bool
    exempt: bool
    value: str
    suffix: bool
    row: Row


def lines() -> list[Line]:
    return [*_exemptions(), *(line for row in rows() for line in _lines(row))]


def _lines(row: Row) -> Iterator[Line]:
    shared = row["collateral"] in ("medium", "high")
    if row["kind"] == "asn":
        return
    app, function = row["app"], row["function"]
    if app == "httpdns":
        app = "bypass"
        if row["value"] in PUBLIC_RESOLVERS:
            function, shared = "doh", False
    yield Line(app, function, shared, False, row["value"], row["match"] == "suffix", row)
    if (app, function) == ("wechat", "httpdns"):  # WeChat Pay uses the resolvers of WeChat
        yield Line("wechat-pay", function, shared, False, row["value"], row["match"] == "suffix", row)


def _exemptions() -> Iterator[Line]:
    for path in sorted(BLOCKLISTS.glob("*/*.list")):
        for text in path.read_text().splitlines():
            if text.startswith("!"):
                yield Line(path.parent.name, "", False, True, text[1:].split("#")[0].strip(), True, {})


class Oracle:
    """Is a name or address blocked? `on` says which functions are, `shared` whether the shared lists are."""

    def __init__(self, found: Iterable[Line], on: Callable[[str, str], bool], *, shared: bool) -> None:
        self._on = on
        self._shared = shared
        self._names: dict[str, list[Line]] = {}
        self._networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, Line]] = []
        for line in found:
            if line.exempt or line.row["kind"] == "domain":
                self._names.setdefault(line.value, []).append(line)
            else:
                self._networks.append((ipaddress.ip_network(line.value), line))

    def name(self, name: str) -> bool:
        """Longest first: the exact lines of the name, its suffix lines, those of the name above, and so on."""
        steps = [[line for line in self._names.get(name, []) if not line.suffix]]
        while name:
            steps.append([line for line in self._names.get(name, []) if line.suffix])
            name = name.partition(".")[2]
        return self._blocked(steps)

    def address(self, address: Address) -> bool:
        matching = [(network, line) for network, line in self._networks if address in network]
        sizes = sorted({network.num_addresses for network, _ in matching})
        return self._blocked([[line for network, line in matching if network.num_addresses == size] for size in sizes])

    def _blocked(self, steps: list[list[Line]]) -> bool:
        return any(self._claimed(app, steps) for app in {line.app for step in steps for line in step})

    def _claimed(self, app: str, steps: list[list[Line]]) -> bool:
        for step in steps:
            own = [line for line in step if line.app == app]
            if any(line.exempt or (line.shared and not self._shared) for line in own):
                return False
            if any(self._on(line.app, line.function) for line in own):
                return True
        return False


def by_default(app: str, function: str) -> bool:
    return app == "bypass" or (app in THE_EIGHT and function in ON_BY_DEFAULT)


def always(app: str, function: str) -> bool:
    return True
