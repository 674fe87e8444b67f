"""The listening sockets: which addresses, and one socket per address and worker.

The supervisor opens them and keeps them, so a worker that dies loses nothing that waits in its queue. SO_REUSEPORT spreads
clients over the workers; since it would also let a stranger of the same user share the port, a plain bind is tried first.
"""

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from embargo.config import Config
from embargo.daemon.host import machine
from embargo.daemon.host.machine import Interface
from embargo.daemon.process import notify, privileges
from embargo.errors import EmbargoError

log = logging.getLogger(__name__)

RECEIVE_BUFFER = 4 << 20  # octets of queries that may wait while a worker starts
_SO_RCVBUFFORCE, _IP_FREEBIND, _IPV6_FREEBIND = 33, 15, 78


class ListenError(EmbargoError):
    """An address that cannot be listened on; `number` is the errno."""

    def __init__(self, message: str, number: int = 0) -> None:
        self.number = number
        super().__init__(message)


class Endpoint(NamedTuple):
    address: str  # link-local ones with %interface
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def intercept_port(config: Config) -> int:
    """Where intercepted queries go; 0 when none are."""
    on = config.firewall.enabled and config.firewall.lan and config.firewall.intercept_dns
    return config.dns.listen[0].port if on else 0


def wanted(config: Config, interfaces: Sequence[Interface]) -> tuple[Endpoint, ...]:
    """All addresses to answer on: the configured ones, and those of the interfaces whose queries are intercepted."""
    found: dict[Endpoint, None] = {}
    for listen in config.dns.listen:
        if listen.interface:
            found |= dict.fromkeys(Endpoint(i.bindable, listen.port) for i in interfaces if i.name == listen.interface)
        else:
            found[Endpoint(listen.address, listen.port)] = None
    if port := intercept_port(config):
        found |= dict.fromkeys(Endpoint(i.bindable, port) for i in interfaces if i.name in config.firewall.lan)
    if not any(i.address == "::1" for i in interfaces):  # a machine without IPv6
        found = {each: None for each in found if each.address != "::1"}
    return tuple(each for each in found if not _covered(each, found))


def _covered(endpoint: Endpoint, others: Iterable[Endpoint]) -> bool:
    wildcard = Endpoint("::" if ":" in endpoint.address else "0.0.0.0", endpoint.port)
    return endpoint != wildcard and wildcard in others


Pair = tuple[socket.socket, socket.socket]  # UDP, TCP


class Sockets:
    """One UDP and one TCP socket per endpoint and worker. systemd keeps a copy of each, for the next run.

    When that has fewer workers they share what is there: queries wait in each of the sockets.
    """

    def __init__(self) -> None:
        self._open: dict[Endpoint, list[Pair]] = {}
        self._before: dict[Endpoint, list[Pair]] | None = None  # what was open before a change that is not settled
        self._workers = 1

    def adopt(self, fds: Iterable[tuple[str, int]]) -> list[str]:
        """Take over what an earlier run listened with, or a socket unit opened; the names of what is of no use."""
        found: dict[Endpoint, tuple[list[socket.socket], list[socket.socket]]] = {}
        names: dict[socket.socket, str] = {}
        useless: list[socket.socket] = []
        for name, fd in fds:
            sock = socket.socket(fileno=fd)
            names[sock] = name
            if (endpoint := _endpoint(sock)) is None:
                useless.append(sock)
            else:
                found.setdefault(endpoint, ([], []))[sock.type == socket.SOCK_STREAM].append(sock)
        for endpoint, (udp, tcp) in found.items():
            if pairs := list(zip(udp, tcp, strict=False)):
                self._open[endpoint] = pairs
            useless += [*udp[len(pairs) :], *tcp[len(pairs) :]]  # one kind without the other
        for sock in useless:
            sock.close()
            notify.store(names[sock], ())
        return [names[sock] for sock in useless]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(self._open)

    def follow(self, endpoints: Sequence[Endpoint], workers: int, interfaces: Sequence[Interface]) -> bool:
        """Open what is missing and leave out what is no longer wanted; whether that changes anything. ListenError: nothing.

        `settle` makes it final, `restore` takes it back. An address that no interface has yet (at boot; duplicate address
        detection) is listened on all the same, with a warning that names it.
        """
        self.settle()
        self._workers = workers
        missing = [each for each in endpoints if len(self._open.get(each, ())) < workers]
        gone = [each for each in self._open if each not in endpoints]
        if not missing and not gone:
            return False
        fresh: dict[Endpoint, list[Pair]] = {}
        try:
            for each in missing:
                if each not in self._open:
                    ours = any(open_.port == each.port for open_ in self._open)
                    _probe(each, alone=not ours)
                fresh[each] = [*self._open.get(each, ())]
                fresh[each] += [_another(each, fresh[each]) for _ in range(workers - len(fresh[each]))]
        except ListenError:
            for each, pairs in fresh.items():
                _close(pair for pair in pairs if pair not in self._open.get(each, ()))
            raise
        self._before = self._open
        self._open = {each: pairs for each, pairs in self._open.items() if each not in gone} | fresh
        for each in fresh:
            if is_absent(each, interfaces):
                log.warning("%s", _explain(each, OSError(errno.EADDRNOTAVAIL, ""), udp=True))
        return True

    def settle(self) -> None:
        """Close the sockets that the last change left out, and have systemd keep the ones that are open now."""
        before, self._before = self._before, None
        if before is None:
            return
        for each in before.keys() - self._open.keys():
            _close(before[each])
            notify.store(_stored_as(each), ())
        for each, pairs in self._open.items():
            if before.get(each) != pairs:
                notify.store(_stored_as(each), [sock.fileno() for pair in pairs for sock in pair])

    def restore(self) -> None:
        """Close the sockets that the last change opened: what was listened on before is listened on again."""
        before, self._before = self._before, None
        if before is None:
            return
        for each, pairs in self._open.items():
            _close(pair for pair in pairs if pair not in before.get(each, ()))
        self._open = before

    def of(self, worker: int) -> Iterator[tuple[str, socket.socket]]:
        """A worker's sockets with their kind."""
        for pairs in self._open.values():
            for udp, tcp in pairs[worker :: self._workers]:
                yield "udp", udp
                yield "tcp", tcp

    def close(self) -> None:
        self.settle()
        for pairs in self._open.values():
            _close(pairs)
        self._open.clear()


def is_absent(endpoint: Endpoint, interfaces: Iterable[Interface]) -> bool:
    """Has no interface this address?"""
    address = ipaddress.ip_address(endpoint.address.partition("%")[0])
    known = {interface.address for interface in interfaces}
    return not (address.is_unspecified or address.is_loopback or str(address) in known)


def _stored_as(endpoint: Endpoint) -> str:
    return notify.stored_name("dns", *endpoint)


def _endpoint(sock: socket.socket) -> Endpoint | None:
    """Where a socket listens, None for one that does not serve DNS clients."""
    if sock.type not in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        return None
    sock.setblocking(False)
    if sock.family == socket.AF_INET:
        return Endpoint(*sock.getsockname())
    if sock.family == socket.AF_INET6:
        address, port, _, scope = sock.getsockname()
        plain = address.partition("%")[0]
        return Endpoint(f"{plain}%{socket.if_indextoname(scope)}" if scope else plain, port)
    return None


def _another(endpoint: Endpoint, beside: Sequence[Pair]) -> Pair:
    """One more pair. A socket unit's sockets may not be shared by port; then all workers read the same one."""
    if beside and not all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in beside[0]):
        return beside[0][0].dup(), beside[0][1].dup()
    return _pair(endpoint)


def _close(pairs: Iterable[Pair]) -> None:
    for pair in pairs:
        for sock in pair:
            sock.close()


def _target(endpoint: Endpoint) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    address, _, scope = endpoint.address.partition("%")
    if ":" not in address:
        return socket.AF_INET, (address, endpoint.port)
    try:
        return socket.AF_INET6, (address, endpoint.port, 0, socket.if_nametoindex(scope) if scope else 0)
    except OSError:
        raise ListenError(f"dns.listen: {endpoint}: there is no interface {scope}") from None


def _socket(endpoint: Endpoint, kind: socket.SocketKind, *, share: bool, anyway: bool) -> socket.socket:
    """A bound socket. `share`: beside others of ours; `anyway`: also where the address does not stand on an interface."""
    family, target = _target(endpoint)
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if anyway:
            # an interface's address may not be usable yet (duplicate address detection) or go away for a moment
            level, option = (
                (socket.IPPROTO_IPV6, _IPV6_FREEBIND) if family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_FREEBIND)
            )
            sock.setsockopt(level, option, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ListenError(_explain(endpoint, error, udp=kind == socket.SOCK_DGRAM), error.errno or 0) from None
    return sock


def _pair(endpoint: Endpoint) -> Pair:
    udp = _socket(endpoint, socket.SOCK_DGRAM, share=True, anyway=True)
    try:
        with privileges.raised(privileges.CAP_NET_ADMIN):
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    try:
        return udp, _socket(endpoint, socket.SOCK_STREAM, share=True, anyway=True)
    except ListenError:
        udp.close()
        raise


def _probe(endpoint: Endpoint, *, alone: bool) -> None:
    """Can the address be had, and `alone`, by nobody else? That it is not there yet is no reason to fail."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            _socket(endpoint, kind, share=not alone, anyway=False).close()
        except ListenError as error:
            if error.number != errno.EADDRNOTAVAIL:
                raise


def _explain(endpoint: Endpoint, error: OSError, *, udp: bool) -> str:
    place = f"dns.listen: {endpoint} ({'UDP' if udp else 'TCP'})"
    if error.errno == errno.EADDRINUSE:
        who = machine.holder(endpoint.address, endpoint.port, udp=udp)
        by = f" by {who}" if who else ""
        return f"{place} is in use{by}; {_making_room(endpoint, who)}, or listen on another address or port"
    if error.errno == errno.EACCES:
        return f"{place} needs root or CAP_NET_BIND_SERVICE; or listen on a port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        address = ipaddress.ip_address(endpoint.address.partition("%")[0])
        return f"{place}: no interface has the address {address} yet; see `ip address`"
    return f"{place} cannot be opened: {os.strerror(error.errno or 0)}"


def _making_room(endpoint: Endpoint, who: str) -> str:
    """What has to be done about the holder of an address; stopping it is too much where it has other work."""
    if machine.RESOLVED in who:
        address = endpoint.address.partition("%")[0]
        stub = ipaddress.ip_address(address).is_unspecified or address in machine.RESOLVED_STUBS
        setting = "set DNSStubListener=no" if stub else f"take {address} out of DNSStubListenerExtra="
        return f"{setting} in /etc/systemd/resolved.conf or resolved.conf.d and restart systemd-resolved"
    if "dnsmasq" in who:
        return "stop it, or set port=0 in its configuration, which leaves it DHCP"
    return "stop it"


def local_networks(config: Config, interfaces: Sequence[Interface]) -> tuple[str, ...]:
    """The networks of [dns] allow_from, with "local" spelled out."""
    found: dict[str, None] = {}
    for source in config.dns.allow_from:
        if source == "local":
            found |= dict.fromkeys(machine.LOCAL_NETWORKS)
            found |= dict.fromkeys(i.network for i in interfaces if i.name in config.firewall.lan)
        else:
            found[source] = None
    return tuple(found)
