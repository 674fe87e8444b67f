"""The listening sockets: the addresses to listen on, and one UDP and one TCP socket per address and worker.

The supervisor opens and keeps them, so that queries in the queue of a worker that dies are not lost. SO_REUSEPORT distributes
clients over the workers. It would also share the port with another program of the same user, so a plain bind is tried first.
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

RECEIVE_BUFFER = 4 << 20  # octets, for queries that wait while a worker starts
_SO_RCVBUFFORCE, _IP_FREEBIND, _IPV6_FREEBIND = 33, 15, 78  # asm-generic/socket.h, linux/in.h, linux/in6.h


class ListenError(EmbargoError):
    """An address cannot be listened on. `number`: the errno, if there is one."""

    def __init__(self, message: str, number: int = 0) -> None:
        self.number = number
        super().__init__(message)


class Endpoint(NamedTuple):
    """An address and port to listen on, over UDP and TCP."""

    address: str  # a link-local one with its zone, fe80::1%lan0
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def intercept_port(config: Config) -> int:
    """The port to which queries to other resolvers are redirected; 0 if they are not intercepted."""
    on = config.firewall.enabled and config.firewall.lan and config.firewall.intercept_dns
    return config.dns.listen[0].port if on else 0


def wanted(config: Config, interfaces: Sequence[Interface]) -> tuple[Endpoint, ...]:
    """The endpoints to listen on: the configured ones, and the addresses of interfaces whose queries are intercepted."""
    endpoints: dict[Endpoint, None] = {}
    for listen in config.dns.listen:
        if listen.interface:
            endpoints |= dict.fromkeys(Endpoint(i.bindable, listen.port) for i in interfaces if i.name == listen.interface)
        else:
            endpoints[Endpoint(listen.address, listen.port)] = None
    if port := intercept_port(config):
        endpoints |= dict.fromkeys(Endpoint(i.bindable, port) for i in interfaces if i.name in config.firewall.lan)
    if not any(i.address == "::1" for i in interfaces):  # a machine without IPv6
        endpoints = {endpoint: None for endpoint in endpoints if endpoint.address != "::1"}
    return tuple(endpoint for endpoint in endpoints if not _covered(endpoint, endpoints))


def without_address(config: Config, interfaces: Iterable[Interface]) -> list[str]:
    """The interfaces of [dns] listen that do not exist, or have no address."""
    present = {interface.name for interface in interfaces}
    return [listen.interface for listen in config.dns.listen if listen.interface and listen.interface not in present]


def warn(config: Config, interfaces: Sequence[Interface]) -> None:
    """Log what is not listened on, and why."""
    for name in without_address(config, interfaces):
        log.warning('dns.listen: no interface "%s" with an address; see `ip address`', name)
    if not wanted(config, interfaces):
        log.warning("dns.listen: the agent listens on no address: it answers no query")


def _covered(endpoint: Endpoint, others: Iterable[Endpoint]) -> bool:
    """Whether one of the others is the wildcard address with the same port."""
    wildcard = Endpoint("::" if ":" in endpoint.address else "0.0.0.0", endpoint.port)
    return endpoint != wildcard and wildcard in others


Pair = tuple[socket.socket, socket.socket]  # UDP, TCP


class Sockets:
    """The open sockets: a UDP and a TCP socket per endpoint and worker. systemd stores duplicates for the next run.

    If the next run has fewer workers, they read all stored sockets, since queries may wait in each of them.
    """

    def __init__(self) -> None:
        self._open: dict[Endpoint, list[Pair]] = {}
        self._workers = 1

    def adopt(self, fds: Iterable[tuple[str, int]]) -> list[str]:
        """Adopt sockets of an earlier run or a socket unit, (name, descriptor). Closes unusable ones; returns their names."""
        usable: dict[Endpoint, tuple[list[socket.socket], list[socket.socket]]] = {}
        names: dict[socket.socket, str] = {}
        unusable: list[socket.socket] = []
        for name, fd in fds:
            sock = socket.socket(fileno=fd)
            names[sock] = name
            if (endpoint := _endpoint(sock)) is None:
                unusable.append(sock)
            else:
                usable.setdefault(endpoint, ([], []))[sock.type == socket.SOCK_STREAM].append(sock)
        for endpoint, (udp, tcp) in usable.items():
            if pairs := list(zip(udp, tcp, strict=False)):
                self._open[endpoint] = pairs
            unusable += [*udp[len(pairs) :], *tcp[len(pairs) :]]  # UDP without TCP, or the reverse
        for sock in unusable:
            sock.close()
            notify.store(names[sock], ())
        return [names[sock] for sock in unusable]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints with open sockets."""
        return tuple(self._open)

    def follow(self, endpoints: Sequence[Endpoint], workers: int, interfaces: Sequence[Interface]) -> bool:
        """Listen on these endpoints. Returns whether anything changes. ListenError if one cannot be opened: nothing changes.

        An address that no interface has yet (at boot, or during duplicate address detection) is listened on too
        (IP_FREEBIND), with a warning. Sockets that are no longer wanted are closed at once: kept open without a reader, they
        would take queries from a wildcard socket on the same port.
        """
        self._workers = workers
        missing = [endpoint for endpoint in endpoints if len(self._open.get(endpoint, ())) < workers]
        gone = [endpoint for endpoint in self._open if endpoint not in endpoints]
        if not missing and not gone:
            return False
        fresh: dict[Endpoint, list[Pair]] = {}
        try:
            for endpoint in missing:
                if endpoint not in self._open:
                    shared = any(open_.port == endpoint.port for open_ in self._open)
                    _probe(endpoint, exclusive=not shared)
                fresh[endpoint] = [*self._open.get(endpoint, ())]
                fresh[endpoint] += [_another(endpoint, fresh[endpoint]) for _ in range(workers - len(fresh[endpoint]))]
        except (ListenError, OSError):
            for endpoint, pairs in fresh.items():
                _close(pair for pair in pairs if pair not in self._open.get(endpoint, ()))
            raise
        for endpoint in gone:
            _close(self._open.pop(endpoint))
            notify.store(_stored_as(endpoint), ())
        self._open |= fresh
        for endpoint in fresh:
            if is_absent(endpoint, interfaces):
                log.warning("%s", _explain(endpoint, OSError(errno.EADDRNOTAVAIL, ""), udp=True))
        for endpoint, pairs in fresh.items():
            notify.store(_stored_as(endpoint), [sock.fileno() for pair in pairs for sock in pair])
        return True

    def of(self, worker: int) -> Iterator[tuple[str, socket.socket]]:
        """(udp or tcp, socket) for each socket of a worker, by its number."""
        for pairs in self._open.values():
            for udp, tcp in pairs[worker :: self._workers]:
                yield "udp", udp
                yield "tcp", tcp

    def close(self) -> None:
        """Close all sockets. systemd keeps its duplicates."""
        for pairs in self._open.values():
            _close(pairs)
        self._open.clear()


def is_absent(endpoint: Endpoint, interfaces: Iterable[Interface]) -> bool:
    """Whether no interface has this address."""
    address = ipaddress.ip_address(endpoint.address.partition("%")[0])
    present = {interface.address for interface in interfaces}
    return not (address.is_unspecified or address.is_loopback or str(address) in present)


def _stored_as(endpoint: Endpoint) -> str:
    return notify.stored_name("dns", *endpoint)


def _endpoint(sock: socket.socket) -> Endpoint | None:
    """The endpoint of a socket; None if it is not a UDP or TCP socket over IP."""
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
    """One more pair for an endpoint. Sockets of a socket unit may lack SO_REUSEPORT; then all workers read the same one."""
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
        raise ListenError(f"dns.listen: {endpoint}: interface {scope} does not exist") from None


def _socket(endpoint: Endpoint, kind: socket.SocketKind, *, share: bool, absent: bool) -> socket.socket:
    """A bound socket. `share`: with SO_REUSEPORT; `absent`: even if no interface has the address. ListenError."""
    family, target = _target(endpoint)
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ListenError(_explain(endpoint, error, udp=kind == socket.SOCK_DGRAM), error.errno or 0) from None
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if absent:
            # during duplicate address detection, or after a short loss of the link, an address is not usable yet
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
    udp = _socket(endpoint, socket.SOCK_DGRAM, share=True, absent=True)
    try:
        with privileges.raised(privileges.CAP_NET_ADMIN):
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    try:
        return udp, _socket(endpoint, socket.SOCK_STREAM, share=True, absent=True)
    except ListenError:
        udp.close()
        raise


def _probe(endpoint: Endpoint, *, exclusive: bool) -> None:
    """Check that the address can be bound; `exclusive`: and is not used by others. ListenError, except if it is absent."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            _socket(endpoint, kind, share=not exclusive, absent=False).close()
        except ListenError as error:
            if error.number != errno.EADDRNOTAVAIL:
                raise


def _explain(endpoint: Endpoint, error: OSError, *, udp: bool) -> str:
    place = f"dns.listen: {endpoint} ({'UDP' if udp else 'TCP'})"
    if error.errno == errno.EADDRINUSE:
        holder = machine.holder(endpoint.address, endpoint.port, udp=udp)
        by = f" by {holder}" if holder else ""
        return f"{place} is in use{by}; {_remedy(endpoint, holder)}, or listen on another address or port"
    if error.errno == errno.EACCES:
        return f"{place} needs root or CAP_NET_BIND_SERVICE; or listen on a port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        address = ipaddress.ip_address(endpoint.address.partition("%")[0])
        return f"{place}: no interface has the address {address} yet; see `ip address`"
    return f"{place} cannot be opened: {os.strerror(error.errno or 0)}"


def _remedy(endpoint: Endpoint, holder: str) -> str:
    """How to free an address. Programs with other tasks are not to be stopped."""
    if machine.RESOLVED in holder:
        address = endpoint.address.partition("%")[0]
        stub = ipaddress.ip_address(address).is_unspecified or address in machine.RESOLVED_STUBS
        setting = "set DNSStubListener=no" if stub else f"remove {address} from DNSStubListenerExtra="
        return f"{setting} in /etc/systemd/resolved.conf or resolved.conf.d and restart systemd-resolved"
    if "dnsmasq" in holder:
        return "stop it, or set port=0 in its configuration to leave only DHCP"
    return "stop it"


def local_networks(config: Config, interfaces: Sequence[Interface]) -> tuple[str, ...]:
    """The networks of [dns] allow_from, with "local" replaced by its networks."""
    networks: dict[str, None] = {}
    for source in config.dns.allow_from:
        if source == "local":
            networks |= dict.fromkeys(machine.LOCAL_NETWORKS)
            networks |= dict.fromkeys(i.network for i in interfaces if i.name in config.firewall.lan)
        else:
            networks[source] = None
    return tuple(networks)
