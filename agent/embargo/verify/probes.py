"""What is probed, and what each outcome proves.

The names and networks come from the image of the generation in force, the verdict expected of each from the same look-up that
answers queries. A probe is held when it is refused and nothing of it reached the sink. Where an allowed control does not get
through either, a probe proves nothing: somebody else may be dropping it. Where a silent drop is all there is to see, the
counter of the class has to account for it.
"""

import ipaddress
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from embargo import explain, names
from embargo.config import Config
from embargo.daemon.guard.netlink import Nftables
from embargo.daemon.supervise.generations import Generation
from embargo.dns import message
from embargo.errors import FirewallError
from embargo.firewall import ruleset
from embargo.firewall.table import TABLE
from embargo.lists.policy import BYPASS, Action, Class, Decision
from embargo.verify import ask, network, packets
from embargo.verify.ask import Asker, Said, Way
from embargo.verify.network import Addresses, Network, NetworkError
from embargo.verify.packets import Outcome, Probe, Range
from embargo.verify.targets import Target, Targets

QTYPES = (message.A, message.AAAA, message.HTTPS, message.QTYPES["TXT"])
PORTS = (("tcp", 443), ("udp", 443), ("icmp", 0))  # how each listed address is tried
CONTROL_PORT = 443
CRAFTED_PORT = 8443  # of hand-made packets to listed addresses, where any port would do
CONTROL_NAME = names.from_text(
    "localhost"
)  # answered here (RFC 6761), so that the control leaves the machine no more than a probe
DDR = ("_dns.resolver.arpa", "resolver.arpa")  # RFC 9462
NEEDS_SCAPY = "needs scapy: apt-get install python3-scapy"
HELD, LEAK, UNPROVEN, SKIPPED = "held", "LEAK", "unproven", "skipped"


MAPPED = "::ffff:0:0/96"  # a kernel makes IPv4 of it: such packets are made by hand


def wrapped(address: str, prefix: str, at: int) -> str:
    """The IPv6 address with this prefix that carries an IPv4 one from this octet on (`ruleset.EMBEDDED`)."""
    carried = int(ipaddress.IPv4Address(address)) << 8 * (12 - at)
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Network(prefix)[0]) | carried))


@dataclass(slots=True)
class Row:
    """What is said of one app, function and kind of probe."""

    app: str
    function: str
    kind: str
    probes: int = 0
    held: int = 0
    leaks: int = 0
    unproven: int = 0
    skipped: str = ""  # why nothing was tried
    details: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        if self.leaks:
            return LEAK
        if self.unproven:
            return UNPROVEN
        return HELD if self.probes else SKIPPED

    @property
    def detail(self) -> str:
        return "; ".join(dict.fromkeys(self.details[:3])) if self.probes else self.skipped

    def count(self, verdict: str, detail: str = "") -> None:
        self.probes += 1
        if verdict == HELD:
            self.held += 1
        elif verdict == LEAK:
            self.leaks += 1
            self.details.insert(self.leaks - 1, detail)  # leaks first
        else:
            self.unproven += 1
            self.details.append(detail)

    def told(self) -> dict[str, Any]:
        return {
            "app": self.app, "function": self.function, "kind": self.kind, "verdict": self.verdict, "probes": self.probes,
            "held": self.held, "leaks": self.leaks, "unproven": self.unproven, "detail": self.detail,
        }  # fmt: skip


class Verification:
    """One run: controls, names, addresses, ways round both. `rows` holds what came of it."""

    def __init__(
        self, settings: Config, generation: Generation, firewall: dict[str, Any], where: Network, own: Iterable[str],
        found: Targets, chance: random.Random,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._image, self._board = generation.image, generation.board
        self._firewall = firewall
        self._network = where
        self._own = frozenset(own)
        self._targets = found
        self._chance = chance
        self._range = Range(where)
        self._kernel = Nftables()
        self._proven: dict[tuple[int, str], bool] = {}
        self._pending: list[tuple[Row, list[Outcome], bool]] = []
        self.rows: list[Row] = []

    def close(self) -> None:
        self._range.close()
        self._kernel.close()

    def run(self, ways: Sequence[Way], forwarded: Sequence[Addresses]) -> None:
        """`forwarded`: the families that packets are forwarded in here."""
        self._audited()
        if self._firewall["enabled"]:
            for each in forwarded:
                self._control(each)
        self._network.mute()
        self._ask_names(ways)
        if not self._firewall["enabled"]:
            self._skip("-", "-", "addresses", "firewall.enabled = false")
        else:
            self._addresses(forwarded)
            self._encrypted(forwarded)
            self._wrapped(forwarded)
            self._crafted(forwarded)
        self._judge()
        self.rows.sort(key=lambda row: (row.app != "control", row.app, row.function))

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _row(self, app: str, function: str, kind: str) -> Row:
        row = Row(app, function, kind)
        self.rows.append(row)
        return row

    def _skip(self, app: str, function: str, kind: str, why: str) -> None:
        self._row(app, function, kind).skipped = why

    def _audited(self) -> None:
        for class_, action in zip(self._image.classes, self._board.actions, strict=True):
            if action is Action.AUDIT:
                self._skip(*class_, "everything", "audit")

    def free(self, version: int, spare: int = 0) -> str:
        """An address of the documentation networks that nobody blocks and that is not this gateway's, but for so many."""
        for text in ("198.51.100.0", "203.0.113.0", "192.0.2.0") if version == 4 else ("2001:db8:fffe::", "2001:db8::"):
            for number in range(61, 250):
                address = ipaddress.ip_address(text) + number
                if str(address) not in self._own and not self._image.lookup_address(address.packed):
                    if not spare:
                        return str(address)
                    spare -= 1
        raise NetworkError(
            f"the lists hold every documentation address of IPv{version}: none is left to prove that others pass"
        )

    def _control(self, each: Addresses) -> None:
        row = self._row("control", "-", f"IPv{each.version} to an address that is not listed")
        address = self.free(each.version)
        for proto in ("tcp", "udp", "icmp"):
            works = self._range.control(proto, address, CONTROL_PORT)
            self._proven[each.version, proto] = works
            doubt = f"{proto} to {address} does not get through: does another firewall drop it?"
            row.count(HELD if works else UNPROVEN, doubt)

    # ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask_names(self, ways: Sequence[Way]) -> None:
        askers = [Asker(way, self._socket_maker(way)) for way in ways]
        try:
            working = self._resolvers(askers)
            self._designated([asker for asker in askers if asker in working and not asker.way.foreign])
            for class_, listed in sorted(self._targets.names.items()):
                row = self._row(*class_, "names")
                for target in listed:
                    for asker in askers:
                        self._ask_name(row, class_, target, asker, works=asker in working)
                if not row.probes:
                    row.skipped = "no resolver of this gateway can be asked"
        finally:
            for asker in askers:
                asker.close()

    def _socket_maker(self, way: Way) -> Any:
        if ipaddress.ip_address(way.address).is_loopback:  # it can be asked from here alone
            return lambda make: make()
        return lambda make: self._network.inside("client", make)

    def _resolvers(self, askers: Sequence[Asker]) -> list[Asker]:
        """Those that answer what is allowed: the control of all names, and for a foreign address the proof that we answer."""
        working = []
        for foreign, row in (
            (False, Row("control", "-", "a name that is not listed")),
            (True, Row(BYPASS, "resolver", "port 53 to other resolvers")),
        ):
            for asker in (each for each in askers if each.way.foreign == foreign):
                outcome = self._watch(asker.way)
                said = asker.ask(CONTROL_NAME, message.A)
                if self._leaked(outcome):
                    row.count(LEAK, f"{asker.way} reached the sink")
                elif said is not None and said.ede != message.EDE_BLOCKED and said.answers:
                    working.append(asker)
                    row.count(HELD)
                else:
                    row.count(UNPROVEN, f"{asker.way} does not answer for localhost, which is not blocked")
            if foreign and not row.probes:
                row.skipped = "port 53 is not intercepted (firewall.lan, firewall.intercept_dns)"
            elif not row.probes:
                row.skipped = "no resolver of this gateway can be asked"
            self.rows.append(row)
        return working

    def _watch(self, way: Way) -> Outcome:
        outcome = Outcome(Probe(way.transport, way.address, way.port))
        if way.foreign:
            self._range.expect(outcome)
        return outcome

    def _leaked(self, outcome: Outcome) -> bool:
        self._range.look()
        return outcome.arrived

    def _designated(self, askers: Sequence[Asker]) -> None:
        row = self._row(BYPASS, "ddr", "names")
        row.skipped = "no resolver of this gateway can be asked"
        for asker in askers:
            for text in DDR:
                for qtype in (message.SVCB, message.A):
                    said = asker.ask(names.from_text(text), qtype)
                    if said is None:
                        row.count(UNPROVEN, f"{asker.way}: no answer")
                    else:
                        good = said.rcode == message.NOERROR and not said.answers
                        row.count(HELD if good else LEAK, _answered(text, qtype, asker.way, said))

    def _ask_name(self, row: Row, class_: Class, target: Target, asker: Asker, *, works: bool) -> None:
        questions: list[tuple[bytes, int]] = [(target.name, qtype) for qtype in QTYPES]
        questions.append((ask.mixed_case(target.name, self._chance.getrandbits(8) | 1), message.A))
        text = names.to_text(target.name)
        for name, qtype in questions:
            if explain.verdict(self._image, self._board, text, message.type_name(qtype))["verdict"] != "blocked":
                continue  # a special name: it comes before every list
            if not works:
                row.count(UNPROVEN, f"{asker.way} does not answer the control")
                continue
            outcome = self._watch(asker.way)
            said = asker.ask(name, qtype)
            if self._leaked(outcome):
                row.count(LEAK, f"{text} {message.type_name(qtype)} by {asker.way} reached the sink")
            elif said is None:
                row.count(UNPROVEN, f"{text} by {asker.way}: no answer")
            else:
                self._judge_answer(row, class_, target.decision, said, _answered(text, qtype, asker.way, said))

    def _judge_answer(self, row: Row, class_: Class, decision: Decision, said: Said, words: str) -> None:
        source = self._image.sources[decision.source]
        expected = f"app={class_.app} function={class_.function} list={source.path}:{decision.line}"
        if said.ede != message.EDE_BLOCKED or not set(said.answers) <= self._placeholders():
            row.count(LEAK, words)
        elif not said.text.startswith(expected):
            row.count(UNPROVEN, f"{words}: blocked by something else: {said.text}")
        else:
            row.count(HELD)

    def _placeholders(self) -> set[str]:
        """The answers that dns.block_mode puts in place of the real ones."""
        mode = self._settings.dns.block_mode
        addresses = ("0.0.0.0", "::") if mode == "null" else mode if isinstance(mode, tuple) else ()
        return {f"{'AAAA' if ':' in address else 'A'} {address}" for address in addresses}

    # ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _addresses(self, forwarded: Sequence[Addresses]) -> None:
        versions = {each.version for each in forwarded}
        for (class_, version), listed in sorted(self._targets.ranges.items()):
            kind = f"IPv{version} addresses"
            if version not in versions:
                self._skip(*class_, kind, "IPv6 is not forwarded here")
                continue
            probes = [Probe(proto, address, port) for target in listed for address in self._spread(target, version)
                      for proto, port in PORTS]  # fmt: skip
            self._send(self._row(*class_, kind), class_, probes)

    def _spread(self, target: Target, version: int) -> Iterator[str]:
        """The first, the middle and the last address, but for our own."""
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for number in dict.fromkeys((target.first, (target.first + target.last) // 2, target.last)):
            address = str(kind(number))
            if address not in self._own:
                yield address

    def _send(self, row: Row, class_: Class, probes: Sequence[Probe]) -> None:
        """Probes that one class is to refuse: its counter tells of those whose refusal nobody sees (ICMP is rate-limited)."""
        before = self._counted(class_)
        outcomes = self._range.send(probes)
        sent = sum(outcome.said != "unsendable" for outcome in outcomes)
        self._pending.append((row, outcomes, self._counted(class_) - before >= sent))
        if not outcomes:
            row.skipped = "only addresses of this gateway"

    def _counted(self, class_: Class) -> int:
        """Packets refused, also where addresses are so many that all classes have one chain."""
        try:
            counters = self._kernel.counters(TABLE)
        except FirewallError:  # the table is gone
            return 0
        chains = map(ruleset.chain_name, (class_, ruleset.LISTED[Action.BLOCK]))
        return sum(counters.get(chain, (0, 0))[0] for chain in chains)

    def _judge(self) -> None:
        """At the end, since what passes may arrive late."""
        self._range.look()
        for row, outcomes, accounted in self._pending:
            for outcome in outcomes:
                row.count(*self._verdict(outcome, accounted=accounted))

    def _verdict(self, outcome: Outcome, *, accounted: bool) -> tuple[str, str]:
        probe = outcome.probe
        if outcome.passed:
            return LEAK, f"{probe} reached the sink"
        if outcome.said == "unsendable":
            return UNPROVEN, f"{probe} cannot be sent"
        if not self._proven[6 if ":" in probe.address else 4, probe.proto]:
            return UNPROVEN, f"{probe.proto} to an address that is not listed does not get through either"
        if outcome.said == "refused" or (accounted and probe.proto != "tcp"):
            return HELD, ""
        return UNPROVEN, f"{probe} vanished without a refusal of ours"

    # ── ways round ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _encrypted(self, forwarded: Sequence[Addresses]) -> None:
        """DNS over TLS and QUIC to any resolver, by port. (DoH is a list of names and addresses.)"""
        actions = dict(zip(self._image.classes, self._board.actions, strict=True))
        for function, ports in (("dot", ruleset.DOT_PORTS), ("doq", ruleset.DOQ_PORTS)):
            class_ = Class(BYPASS, function)
            action = actions.get(class_, Action.PASS)
            if action is Action.BLOCK and self._firewall["lan"]:
                probes = [Probe(proto, self.free(each.version), port) for each in forwarded for proto, port in ports]
                self._send(self._row(*class_, "ports"), class_, probes)
            elif action is Action.BLOCK:
                self._skip(*class_, "ports", "no interface is named (firewall.lan)")
            elif action is Action.PASS:
                self._skip(*class_, "ports", "not switched on (policy.bypass)")

    def _wrapped(self, forwarded: Sequence[Addresses]) -> None:
        """Listed IPv4 addresses inside IPv6 ones."""
        listed = [address for (_, version), found in sorted(self._targets.ranges.items()) if version == 4
                  for target in found for address in self._spread(target, 4)]  # fmt: skip
        here = next((each for each in forwarded if each.version == 6), None)
        for prefix, at in ruleset.EMBEDDED:
            row = self._row(BYPASS, "packets", f"IPv4 inside {prefix}")
            if here is None:
                row.skipped = "IPv6 is not forwarded here"
            elif network.translates():
                row.skipped = "a NAT64 translator runs here, which would send them on"
            elif prefix == MAPPED:
                self._mapped(row, here, [wrapped(address, prefix, at) for address in listed])
            else:
                probes = [Probe("tcp", wrapped(address, prefix, at), 443) for address in listed]
                self._pending.append((row, self._range.send(probes), False))
                row.skipped = "no IPv4 address is listed"

    def _mapped(self, row: Row, here: Addresses, addresses: Sequence[str]) -> None:
        row.skipped = "no IPv4 address is listed"
        try:
            made = [packets.plain(here, address, CRAFTED_PORT) for address in addresses]
        except ImportError:
            row.skipped = NEEDS_SCAPY
            return
        for outcome in self._range.send_crafted(made):
            if outcome.arrived:
                row.count(LEAK, f"{outcome.probe} reached the sink")
            else:
                row.count(
                    HELD if self._proven[6, "tcp"] else UNPROVEN,
                    "tcp to an address that is not listed does not get through either",
                )

    def _crafted(self, forwarded: Sequence[Addresses]) -> None:
        """Fragments, IP options and extension headers, which hide the ports and not the address."""
        for each in forwarded:
            try:
                controls = packets.crafted(each, self.free(each.version), CRAFTED_PORT)
            except ImportError:
                self._skip(BYPASS, "packets", f"IPv{each.version} made by hand", NEEDS_SCAPY)
                continue
            refused = [*self._refused_addresses(each.version), *self._refused_ports(each.version)]
            for kind, allowed in controls.items():
                row = self._row(BYPASS, "packets", f"IPv{each.version} {kind}")
                row.skipped = "nothing is blocked that they could be sent to"
                through = {outcome.probe.form for outcome in self._range.send_crafted(allowed) if outcome.arrived}
                made = [probe for address, port in refused for probe in packets.crafted(each, address, port)[kind]]
                for outcome in self._range.send_crafted(made):
                    if outcome.arrived:
                        row.count(LEAK, f"{outcome.probe} reached the sink")
                    elif outcome.probe.form in through:
                        row.count(HELD)
                    else:
                        row.count(
                            UNPROVEN, f"{outcome.probe.proto} to an address that is not listed does not get through either"
                        )

    def _refused_addresses(self, version: int) -> list[tuple[str, int]]:
        listed = [next(self._spread(found[0], version), "") for (_, family), found in sorted(self._targets.ranges.items())
                  if family == version]  # fmt: skip
        return [(address, CRAFTED_PORT) for address in self._chance.sample(listed, k=min(3, len(listed))) if address]

    def _refused_ports(self, version: int) -> list[tuple[str, int]]:
        """Ports that are closed to every address, each with an address of its own: the sink tells them apart by it."""
        on = {class_ for class_, action in zip(self._image.classes, self._board.actions, strict=True) if action is Action.BLOCK}
        found = []
        if self._firewall["lan"] and {Class(BYPASS, "dot"), Class(BYPASS, "doq")} <= on:
            found.append((self.free(version, 1), 853))
        if self._firewall["intercept_dns"]:
            found.append((self.free(version, 2), 53))
        return found


def _answered(text: str, qtype: int, way: Way, said: Said) -> str:
    found = ", ".join(said.answers[:3]) or f"rcode {said.rcode} without an answer"
    return f"{text} {message.type_name(qtype)} by {way}: {found}"
