"""The state of this machine: addresses and networks, next hops, resolvers, processes that use a port. It changes nothing."""

import asyncio
import contextlib
import ipaddress
import os
import pwd
import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from embargo.daemon.host import rtnetlink
from embargo.dns.upstream import Server
from embargo.firewall.ruleset import RESERVED, SINK

#: the networks of "local" in [dns] allow_from, besides those of the lan interfaces (RFC 1918, 3927, 4193, 4291)
LOCAL_NETWORKS = (
    "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "::1/128", "fc00::/7", "fe80::/10",
)  # fmt: skip
RESOLV_CONF = "/etc/resolv.conf"
RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"  # the upstreams behind systemd-resolved's stub
RESOLVED = "systemd-resolve"  # its user, and the name of its process, which the kernel truncates to 15 octets
RESOLVED_STUBS = ("127.0.0.53", "127.0.0.54")


class Interface(NamedTuple):
    """One address of an interface."""

    name: str
    address: str
    prefix: int

    @property
    def network(self) -> str:
        """The network of this address, as text."""
        return str(ipaddress.ip_interface(f"{self.address}/{self.prefix}").network)

    @property
    def bindable(self) -> str:
        """The address as a socket is bound to it: a link-local one with the interface as its zone (RFC 4007)."""
        return f"{self.address}%{self.name}" if ipaddress.ip_address(self.address).is_link_local else self.address


def interfaces() -> tuple[Interface, ...]:
    """All addresses of all interfaces, in the kernel's order, except the interfaces of `embargo verify`. OSError."""
    names = rtnetlink.links()
    rows = ((names.get(index, ""), address, prefix) for index, address, prefix in rtnetlink.addresses())
    return tuple(Interface(*row) for row in rows if row[0] not in (RESERVED, SINK))


class Hints:
    """Notifications of the kernel that links, addresses or routes have changed (rtnetlink(7)). The content is not read."""

    _GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        self._sock.bind((0, self._GROUPS))
        self.news = asyncio.Event()  # set when something changed

    def fileno(self) -> int:
        """The descriptor of the socket, to wait for changes."""
        return self._sock.fileno()

    def drain(self) -> None:
        """Discard the notifications and set `news`."""
        self.news.set()
        while True:
            try:
                self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: notifications were lost
                continue


def gateways() -> tuple[str, ...]:
    """The next hops of the default routes, except those of `embargo verify`. OSError."""
    names = rtnetlink.links()
    ways = [way for way in rtnetlink.default_ways() if names.get(way.interface) not in (RESERVED, SINK)]
    return tuple(dict.fromkeys(way.gateway for way in ways if way.gateway))


def ways_out() -> frozenset[str]:
    """The interfaces of the default routes. OSError."""
    names = rtnetlink.links()
    return frozenset(names[way.interface] for way in rtnetlink.default_ways() if way.interface in names)


def system_resolvers(own: Iterable[tuple[str, int]]) -> tuple[Server, ...]:
    """The servers in resolv.conf, without the addresses of this agent (`own`) and the stub of systemd-resolved, which may
    forward to this agent.

    If resolv.conf names the stub, or only this agent, the servers that systemd-resolved uses are included.
    """
    never = {*own, *((stub, 53) for stub in RESOLVED_STUBS)}
    named = _nameservers(RESOLV_CONF)
    others = [address for address in named if (address.partition("%")[0], 53) not in never]
    if len(others) < len(named):
        more = _nameservers(RESOLVED_CONF) if not others or not {*RESOLVED_STUBS}.isdisjoint(named) else []
        others += [address for address in more if (address.partition("%")[0], 53) not in never]
    return tuple(Server(address, 53) for address in dict.fromkeys(others))


def _nameservers(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return []
    return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and _is_address(line[1])]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def holder(address: str, port: int, *, udp: bool) -> str:
    """The process that uses a port, as `name (pid 123)`; `a process of USER` if only that is visible; empty if none does."""
    users = dict(_sockets(address, port, udp=udp))
    for pid in filter(str.isdecimal, os.listdir("/proc") if users else ()):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if not users.keys().isdisjoint(_links(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    return f"{file.read().strip()} (pid {pid})"
    return next((f"a process of {_user_name(user)}" for user in users.values()), "")


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _links(directory: str) -> Iterator[str]:
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{directory}/{name}")


def _sockets(address: str, port: int, *, udp: bool) -> Iterator[tuple[str, int]]:
    """(link in /proc/PID/fd, user id) of the sockets that occupy this address and port (proc(5), net/udp and net/tcp).

    These are bound to the address or to the wildcard; where the address is the wildcard itself, to any address.
    """
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.partition("%")[0])
    words = [packed[i : i + 4][::-1].hex().upper() for i in range(0, len(packed), 4)]  # each word in host order
    wanted = "".join(words)
    everywhere = not wanted.strip("0")
    for table in ("", "6"):
        try:
            with open(f"/proc/net/{'udp' if udp else 'tcp'}{table}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            host, _, number = row[1].partition(":")
            meets = host == wanted or not host.strip("0") or (everywhere and len(host) == len(wanted))
            if meets and int(number, 16) == port and (udp or row[3] == "0A"):
                yield f"socket:[{row[9]}]", int(row[7])
