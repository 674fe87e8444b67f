"""Probes of addresses: packets to listed addresses, to closed ports, and in forms that hide either.

A probe is held if the client gets a rejection and nothing arrives at the sink. The control is an address that is not listed: if
packets to it do not get through either, a probe proves nothing. Rejections by ICMP are rate-limited, so where one is missing,
the counter of the class in the kernel must account for the packets.
"""

import ipaddress
from collections.abc import Collection, Iterator, Sequence

from embargo.daemon.host.nftables import Nftables
from embargo.errors import FirewallError
from embargo.firewall import ruleset
from embargo.firewall.table import TABLE
from embargo.lists.policy import BYPASS, Action, Class
from embargo.verify import crafted, sandbox
from embargo.verify.crafted import NEEDS_SCAPY, Crafted
from embargo.verify.packets import Probe, ProbeResult
from embargo.verify.results import HELD, LEAK, UNPROVEN, ResultRow
from embargo.verify.sandbox import Addresses
from embargo.verify.session import Session
from embargo.verify.targets import Target

PORTS = (("tcp", 443), ("udp", 443), ("icmp", 0))  # how each listed address is tried
CONTROL_PORT = 443
CRAFTED_PORT = 8443  # of crafted packets to listed addresses; any port would do
CRAFTED_TARGETS = 3  # listed addresses that crafted packets are sent to
MAPPED = "::ffff:0:0/96"  # a kernel sends IPv4 to such addresses, so these packets are crafted
NO_IPV6 = "IPv6 is not forwarded here"
NO_CONTROL = "{} to an address that is not listed does not get through either"


def embedded(address: str, prefix: str, at: int) -> str:
    """The IPv6 address with this prefix that has an IPv4 address from octet `at` on (`ruleset.EMBEDDED`)."""
    carried = int(ipaddress.IPv4Address(address)) << 8 * (12 - at)
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Network(prefix)[0]) | carried))


class AddressProbes:
    """`forwarded`: the families in which this gateway forwards packets."""

    def __init__(self, session: Session, forwarded: Sequence[Addresses]) -> None:
        self._session = session
        self._results = session.results
        self._prober = session.prober
        self._forwarded = forwarded
        self._kernel = Nftables()
        self._works: dict[tuple[int, str], bool] = {}  # (version, protocol) → whether the control got through
        self._pending: list[tuple[ResultRow, list[ProbeResult], bool]] = []  # and whether the counter accounts for all

    def close(self) -> None:
        """Close the socket to the kernel."""
        self._kernel.close()

    def controls(self) -> None:
        """Send to an address that is not listed."""
        for each in self._forwarded:
            row = self._results.row("control", "-", f"IPv{each.version} to an address that is not listed")
            address = self._session.free(each.version)
            for proto in ("tcp", "udp", "icmp"):
                works = self._prober.control(proto, address, CONTROL_PORT)
                self._works[each.version, proto] = works
                doubt = f"{proto} to {address} does not get through: does another firewall drop it?"
                row.count(HELD if works else UNPROVEN, doubt)

    def run(self) -> None:
        """Send all probes of addresses and ports, and count their results."""
        self._listed()
        self._ports()
        self._embedded()
        self._crafted()
        self._judge()

    # ── listed addresses ─────────────────────────────────────────────────────────────────────────────────────────────

    def _listed(self) -> None:
        versions = {each.version for each in self._forwarded}
        for (class_, version), listed in sorted(self._session.targets.ranges.items()):
            row = self._results.row(*class_, f"IPv{version} addresses", skipped=NO_IPV6)
            if version in versions:
                probes = [Probe(proto, address, port) for target in listed for address in self._spread(target, version)
                          for proto, port in PORTS]  # fmt: skip
                self._send(row, class_, probes)

    def _spread(self, target: Target, version: int) -> Iterator[str]:
        """The first, the middle and the last address of a range, except this gateway's own."""
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for number in dict.fromkeys((target.first, (target.first + target.last) // 2, target.last)):
            address = str(kind(number))
            if address not in self._session.own:
                yield address

    def _send(self, row: ResultRow, class_: Class, probes: Sequence[Probe]) -> None:
        """Send probes that the rules of one class must reject."""
        before = self._rejected(class_)
        results = self._prober.send(probes)
        sent = sum(result.reaction != "unsendable" for result in results)
        self._pending.append((row, results, self._rejected(class_) - before >= sent))
        if not results:
            row.skipped = "only addresses of this gateway"

    def _rejected(self, class_: Class) -> int:
        """Packets that the kernel has rejected for a class, by its own chain or by the chain that large policies share."""
        try:
            counters = self._kernel.counters(TABLE)
        except FirewallError:  # the table is gone
            return 0
        chains = map(ruleset.chain_name, (class_, ruleset.LISTED[Action.BLOCK]))
        return sum(counters.get(chain, (0, 0))[0] for chain in chains)

    def _judge(self) -> None:
        """Count the results at the end, since a packet may reach the sink late."""
        self._prober.look()
        for row, results, accounted in self._pending:
            for result in results:
                row.count(*self._verdict(result, accounted=accounted))

    def _verdict(self, result: ProbeResult, *, accounted: bool) -> tuple[str, str]:
        """(verdict, detail) of a probe."""
        probe = result.probe
        if result.passed:
            return LEAK, f"{probe} reached the sink"
        if result.reaction == "unsendable":
            return UNPROVEN, f"{probe} cannot be sent"
        if not self._works[6 if ":" in probe.address else 4, probe.proto]:
            return UNPROVEN, NO_CONTROL.format(probe.proto)
        if result.reaction == "rejected" or (accounted and probe.proto != "tcp"):
            return HELD, ""
        return UNPROVEN, f"{probe} vanished without a rejection by the agent's rules"

    # ── ways around ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _ports(self) -> None:
        """DNS over TLS and QUIC to any resolver, which are blocked by port. (DoH is a list of names and addresses.)"""
        actions = dict(zip(self._session.image.classes, self._session.board.actions, strict=True))
        for function, ports in (("dot", ruleset.DOT_PORTS), ("doq", ruleset.DOQ_PORTS)):
            class_ = Class(BYPASS, function)
            action = actions.get(class_, Action.PASS)
            if action is Action.BLOCK and self._session.lan:
                probes = [
                    Probe(proto, self._session.free(each.version), port) for each in self._forwarded for proto, port in ports
                ]
                self._send(self._results.row(*class_, "ports"), class_, probes)
            elif action is Action.BLOCK:
                self._results.row(*class_, "ports", skipped="no interface is named (firewall.lan)")
            elif action is Action.PASS:
                self._results.row(*class_, "ports", skipped="not enabled (policy.bypass)")

    def _embedded(self) -> None:
        """Listed IPv4 addresses inside IPv6 addresses."""
        listed = [address for (_, version), found in sorted(self._session.targets.ranges.items()) if version == 4
                  for target in found for address in self._spread(target, 4)]  # fmt: skip
        client = next((each for each in self._forwarded if each.version == 6), None)
        for prefix, at in ruleset.EMBEDDED:
            row = self._results.row(BYPASS, "packets", f"IPv4 inside {prefix}", skipped="no IPv4 address is listed")
            if client is None:
                row.skipped = NO_IPV6
            elif sandbox.translates():
                row.skipped = "a NAT64 translator runs here, which would forward them"
            elif prefix == MAPPED:
                self._mapped(row, client, [embedded(address, prefix, at) for address in listed])
            else:
                probes = [Probe("tcp", embedded(address, prefix, at), 443) for address in listed]
                self._pending.append((row, self._prober.send(probes), False))

    def _mapped(self, row: ResultRow, client: Addresses, addresses: Sequence[str]) -> None:
        try:
            packets = [crafted.syn(client, address, CRAFTED_PORT) for address in addresses]
        except ImportError:
            row.skipped = NEEDS_SCAPY
            return
        self._send_crafted(row, packets, [probe.form for probe, _ in packets] if self._works[6, "tcp"] else ())

    def _crafted(self) -> None:
        """Fragments, IP options and extension headers, which hide the ports but not the address."""
        for each in self._forwarded:
            try:
                controls = crafted.crafted(each, self._session.free(each.version), CRAFTED_PORT)
            except ImportError:
                self._results.row(BYPASS, "packets", f"hand-crafted IPv{each.version} packets", skipped=NEEDS_SCAPY)
                continue
            blocked = [*self._blocked_addresses(each.version), *self._blocked_ports(each.version)]
            for kind, control in controls.items():
                row = self._results.row(
                    BYPASS, "packets", f"IPv{each.version} {kind}", skipped="no blocked address or port to send them to"
                )
                through = {result.probe.form for result in self._prober.send_crafted(control) if result.arrived}
                packets = [packet for address, port in blocked for packet in crafted.crafted(each, address, port)[kind]]
                self._send_crafted(row, packets, through)

    def _send_crafted(self, row: ResultRow, packets: Sequence[Crafted], through: Collection[str]) -> None:
        """`through`: the forms in which a control got through."""
        for result in self._prober.send_crafted(packets):
            if result.arrived:
                row.count(LEAK, f"{result.probe} reached the sink")
            else:
                row.count(HELD if result.probe.form in through else UNPROVEN, NO_CONTROL.format(result.probe.proto))

    def _blocked_addresses(self, version: int) -> list[tuple[str, int]]:
        """(address, port) of a few listed addresses."""
        ranges = sorted(self._session.targets.ranges.items())
        listed = [next(self._spread(found[0], version), "") for (_, family), found in ranges if family == version]
        chosen = self._session.chance.sample(listed, k=min(CRAFTED_TARGETS, len(listed)))
        return [(address, CRAFTED_PORT) for address in chosen if address]

    def _blocked_ports(self, version: int) -> list[tuple[str, int]]:
        """(address, port) of ports that are closed whatever the address. Each has its own: the sink identifies them by it."""
        session = self._session
        on = {class_ for class_, action in zip(session.image.classes, session.board.actions, strict=True)
              if action is Action.BLOCK}  # fmt: skip
        found = []
        if session.lan and {Class(BYPASS, "dot"), Class(BYPASS, "doq")} <= on:
            found.append((session.free(version, 1), 853))
        if session.intercept_dns:
            found.append((session.free(version, 2), 53))
        return found
