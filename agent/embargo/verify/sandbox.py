"""A client and a sink in network namespaces: their packets are filtered like those of a LAN and never leave the machine.

    client (a namespace) ── embargo-verify ── this namespace ── embargo-sink ── sink (a namespace)

Policy routing sends everything that arrives from the client to the sink, with a blackhole route as fallback. All addresses are
local in the sink, so every packet that passes the firewall ends there. The namespaces have no name: they and their interfaces
disappear with this process. Rules and routes that a killed run has left are removed by the next run.
"""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from embargo.daemon.host import namespaces
from embargo.errors import EmbargoError
from embargo.firewall.ruleset import RESERVED, SINK

TABLE = 0x656D6276  # "embv"
PRIORITY = 81  # of the routing rules: before all policy routing of the gateway; only the local table (0) precedes them
CLIENT_MAC, GATEWAY_MAC, SINK_MAC, BEYOND_MAC = (f"02:65:6d:62:00:{number:02}" for number in range(4))
PREFIXES4 = ("169.254.213.0", "10.213.98.0", "172.29.213.0", "192.168.213.0")  # the first one that is not in use is taken
PREFIXES6 = ("fd65:6d62:6172:676f::", "fd65:6d62:6172:6770::")

_ONLINK, _FIB_MATCH = 4, 0x2000  # RTNH_F_ONLINK, RTM_F_FIB_MATCH
_NODAD, _NOPREFIXROUTE = 0x02, 0x200  # IFA_F_NODAD, IFA_F_NOPREFIXROUTE
_PERMANENT = 0x80  # NUD_PERMANENT
_LOCAL_TABLE = 255

T = TypeVar("T")


class SandboxError(EmbargoError):
    """The client and the sink cannot be set up here."""


class Addresses(NamedTuple):
    """The addresses of one family. `gateway` is on embargo-verify: redirected queries go to it."""

    gateway: str
    client: str
    masquerade: str  # on embargo-sink, for a gateway that masquerades what it forwards

    @property
    def version(self) -> int:
        """The IP version, 4 or 6."""
        return 6 if ":" in self.client else 4

    @property
    def family(self) -> socket.AddressFamily:
        """The address family for sockets and routes."""
        return socket.AF_INET6 if self.version == 6 else socket.AF_INET

    @property
    def bits(self) -> int:
        """The length of an address in bits."""
        return 128 if self.version == 6 else 32

    @property
    def everything(self) -> str:
        """The network of all addresses."""
        return "::/0" if self.version == 6 else "0.0.0.0/0"

    def hop(self, number: int) -> str:
        """A next hop: an address that stands for a hardware address and is never in a packet."""
        return f"fe80::{number}" if self.version == 6 else str(ipaddress.ip_address(self.client) + 6 + number)


def has_ipv6() -> bool:
    """Whether this machine has IPv6 at all."""
    return os.path.exists("/proc/sys/net/ipv6/conf/all/forwarding")


def forwards_ipv6() -> bool:
    """Whether this machine forwards IPv6; it has no setting per interface."""
    try:
        with open("/proc/sys/net/ipv6/conf/all/forwarding", encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:
        return False


def translates() -> bool:
    """Whether Jool is loaded: it takes packets to NAT64 addresses before the rules see them, and routes them by itself."""
    return os.path.exists("/sys/module/jool")


def choose(version: int, gateway: str, accept: Callable[[str], bool]) -> Addresses | None:
    """Unused addresses: only the default route leads to them. None if all are in use. `accept`: whether a client may use it."""
    with IPRoute() as route:
        for prefix in PREFIXES4 if version == 4 else PREFIXES6:
            base = ipaddress.ip_address(prefix)
            client, masquerade = str(base + 2), str(base + 3)
            if accept(client) and _unused(route, client) and _unused(route, masquerade):
                return Addresses(gateway or str(base + 1), client, masquerade)
    return None


def _unused(route: IPRoute, address: str) -> bool:
    try:
        found = list(route.route("get", dst=address, flags=_FIB_MATCH))
    except NetlinkError:
        return True  # unreachable
    return all(each["dst_len"] == 0 for each in found)


def own_addresses() -> frozenset[str]:
    """All local addresses, including broadcast ones: they cannot be probed by forwarding."""
    found: set[str] = set()
    with IPRoute() as route:
        for each in route.get_routes(table=_LOCAL_TABLE):
            if each.get("RTA_DST"):
                found.add(each.get("RTA_DST"))
    return frozenset(found)


class Sandbox:
    """The two namespaces and the routes to them, as a context manager."""

    def __init__(self, families: Sequence[Addresses]) -> None:
        self.families = tuple(families)
        self._alone = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._spaces: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            # an abstract socket name belongs to the network namespace and disappears with the process
            self._alone.bind("\0embargo-verify")
        except OSError:
            self._alone.close()
            raise SandboxError("another `embargo verify` is running here") from None
        try:
            self._build()
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, NetlinkError)):
                raise SandboxError(f"the client and the sink cannot be set up: {_reason(error)}") from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the interfaces, rules, routes and namespaces, and release the lock."""
        with IPRoute() as route:
            _sweep(route)
        for space in self._spaces.values():
            os.close(space)
        self._spaces.clear()
        self._alone.close()

    def inside(self, name: str, work: Callable[[], T]) -> T:
        """Call `work` in a thread inside a namespace: sockets made there belong to it, wherever they are used."""
        return namespaces.within(self._spaces[name], work)

    def mute(self) -> None:
        """Stop answering echo requests: the firewall would reject such an answer to the listed address that it seems to come
        from, and the rejection would leave the machine. (Resets and ICMP errors are never rejected.)"""

        def quiet() -> None:
            for path in ("ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"):
                with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/net/{path}", "w", encoding="ascii") as file:
                    file.write("1")

        self.inside("sink", quiet)

    # ── setting up ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _build(self) -> None:
        with IPRoute() as route:
            _sweep(route)
            for each in self.families:  # before the client exists: its packets must have no other route
                _rules(route, each)
                route.route("add", family=each.family, dst=each.everything, type="blackhole", table=TABLE, priority=9999)
            for name, interface, ours, theirs in (
                ("client", RESERVED, GATEWAY_MAC, CLIENT_MAC),
                ("sink", SINK, BEYOND_MAC, SINK_MAC),
            ):
                self._spaces[name] = namespaces.new()
                peer = {"ifname": "eth0", "net_ns_fd": self._spaces[name], "address": theirs}
                route.link("add", ifname=interface, kind="veth", address=ours, peer=peer)
                _configure(interface, self.families)
            self.inside("sink", self._sink)
            self.inside("client", self._client)
            self._gateway(route)

    def _gateway(self, route: IPRoute) -> None:
        towards_client, towards_sink = (route.link_lookup(ifname=name)[0] for name in (RESERVED, SINK))
        for index in (towards_sink, towards_client):
            route.link("set", index=index, state="up")
        for each in self.families:
            _address(route, towards_client, each.gateway, each)
            _address(route, towards_sink, each.masquerade, each)
            _neighbour(route, towards_client, each.client, CLIENT_MAC)
            _neighbour(route, towards_sink, each.hop(1), SINK_MAC)
            route.route("add", family=each.family, dst=f"{each.client}/{each.bits}", oif=towards_client, table=TABLE)
            route.route(
                "add", family=each.family, dst=each.everything, gateway=each.hop(1), oif=towards_sink, table=TABLE,
                priority=1, flags=_ONLINK,
            )  # fmt: skip

    def _client(self) -> None:
        with IPRoute() as route:
            index = _up(route, self.families)
            for each in self.families:
                _address(route, index, each.client, each)
                _neighbour(route, index, each.hop(2), GATEWAY_MAC)
                route.route(
                    "add", family=each.family, dst=each.everything, gateway=each.hop(2), oif=index, flags=_ONLINK
                )  # fmt: skip

    def _sink(self) -> None:
        with IPRoute() as route:
            index = _up(route, self.families)
            loopback = route.link_lookup(ifname="lo")[0]
            for each in self.families:
                _neighbour(route, index, each.hop(2), BEYOND_MAC)
                for address in (each.client, each.masquerade):  # the way back is in the same table and more specific
                    route.route(
                        "add", family=each.family, dst=f"{address}/{each.bits}", gateway=each.hop(2), oif=index,
                        table=_LOCAL_TABLE, flags=_ONLINK,
                    )  # fmt: skip
                route.route(
                    "add", family=each.family, dst=each.everything, type="local", oif=loopback, table=_LOCAL_TABLE,
                    scope=254 if each.version == 4 else 0,
                )  # fmt: skip


def _rules(route: IPRoute, each: Addresses) -> None:
    matches: tuple[dict[str, Any], ...] = ({"dst": each.client, "dst_len": each.bits}, {"iifname": RESERVED}, {"iifname": SINK})
    for number, match in enumerate(matches):
        route.rule("add", family=each.family, table=TABLE, priority=PRIORITY + number, **match)


def _configure(interface: str, families: Sequence[Addresses]) -> None:
    """Enable forwarding on an interface, and accept packets whose source addresses are routed elsewhere."""
    with open("/proc/sys/net/ipv4/conf/all/rp_filter", encoding="ascii") as file:
        loose = 2 if file.read().strip() != "0" else 0  # the higher of both values applies: 1 is strict, 2 is loose
    settings = {"ipv4": {"forwarding": 1, "rp_filter": loose, "accept_redirects": 0, "send_redirects": 0}}
    if any(each.version == 6 for each in families):
        settings["ipv6"] = {"disable_ipv6": 0, "addr_gen_mode": 1, "accept_ra": 0, "accept_dad": 0}
    for family, values in settings.items():
        for key, value in values.items():
            with open(f"/proc/sys/net/{family}/conf/{interface}/{key}", "w", encoding="ascii") as file:
                file.write(str(value))


def _up(route: IPRoute, families: Sequence[Addresses]) -> int:
    """Set up the interfaces of a new namespace. Returns the index of its eth0."""
    _configure("eth0", families)
    for key in ("all", "eth0"):
        with open(f"/proc/sys/net/ipv4/conf/{key}/rp_filter", "w", encoding="ascii") as file:
            file.write("0")
    for name in ("lo", "eth0"):
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, state="up")
    return int(index)


def _address(route: IPRoute, index: int, address: str, each: Addresses) -> None:
    route.addr("add", index=index, family=each.family, address=address, prefixlen=each.bits, flags=_NODAD | _NOPREFIXROUTE)


def _neighbour(route: IPRoute, index: int, address: str, mac: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    route.neigh("add", family=family, dst=address, lladdr=mac, ifindex=index, state=_PERMANENT)


# ── removing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sweep(route: IPRoute) -> None:
    """Remove what a run has set up, this one or a killed one. Interfaces first: then no packet can arrive."""
    for name in (RESERVED, SINK):
        for index in route.link_lookup(ifname=name):
            with contextlib.suppress(NetlinkError):
                route.link("del", index=index)
    for family in _families():
        for rule in list(route.get_rules(family=family)):
            if rule.get("FRA_TABLE") == TABLE:
                with contextlib.suppress(NetlinkError):
                    route.rule("del", family=family, table=TABLE, priority=rule.get("FRA_PRIORITY"))
        with contextlib.suppress(NetlinkError):
            route.flush_routes(family=family, table=TABLE)


def _families() -> Iterator[socket.AddressFamily]:
    yield socket.AF_INET
    if has_ipv6():
        yield socket.AF_INET6


def _reason(error: OSError | NetlinkError) -> str:
    text = os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror or str(error)
    where = getattr(error, "filename", None)
    return f"{where}: {text}" if where else text
