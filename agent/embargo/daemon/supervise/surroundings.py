"""The machine's addresses, next hops and system resolvers at a reload, and what follows from them and the configuration.

They are read once per reload and compared with the last time. From them follow the addresses to listen on, the upstreams, the
networks whose queries are answered, and the networks that no list may block.
"""

from dataclasses import dataclass

from embargo.config import Config
from embargo.daemon.host import endpoints, machine
from embargo.daemon.host.endpoints import Endpoint
from embargo.daemon.host.machine import Interface
from embargo.daemon.resolve.orders import Settings
from embargo.dns.upstream import Server
from embargo.errors import Problem
from embargo.firewall.ruleset import Own
from embargo.lists import lists
from embargo.report import Report


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The machine at the moment of a reload."""

    interfaces: tuple[Interface, ...]
    endpoints: tuple[Endpoint, ...]  # addresses and ports to listen on
    upstreams: tuple[Server, ...]
    gateways: tuple[str, ...]  # next hops of the default routes
    system: tuple[Server, ...]  # resolvers that other processes of this machine ask


def look(settings: Config) -> Surroundings:
    """Read them. OSError."""
    interfaces = machine.interfaces()
    wanted = endpoints.wanted(settings, interfaces)
    own = {(endpoint.address.partition("%")[0], endpoint.port) for endpoint in wanted}
    own |= {
        (interface.address, endpoint.port)
        for interface in interfaces
        for endpoint in wanted
        if endpoint.address in ("0.0.0.0", "::")
    }
    system = machine.system_resolvers(own)
    upstreams = (
        tuple(dict.fromkeys((*settings.dns.upstream, *system))) if settings.dns.upstream_system else settings.dns.upstream
    )
    return Surroundings(interfaces, wanted, upstreams, machine.gateways(), system)


def asked(settings: Config, around: Surroundings) -> list[Server]:
    """All servers that the resolvers may ask: upstreams and those of [dns] forward."""
    return [*around.upstreams, *(server for _, servers in settings.dns.forward for server in servers)]


def own_questions(settings: Config, around: Surroundings, uid: int) -> tuple[Own, ...]:
    """The queries that the resolvers of this agent send, which the firewall must pass. `uid`: their user."""
    ports = {
        (proto, server.port) for server in asked(settings, around) for proto in (("tcp",) if server.tcp else ("udp", "tcp"))
    }
    return tuple(Own(uid, proto, port) for proto, port in sorted(ports))


def protected(settings: Config, around: Surroundings) -> list[tuple[str, str]]:
    """The networks that no list may block, each with its role."""
    networks = [(interface.address, "this gateway's own") for interface in around.interfaces]
    networks += [
        (interface.network, "on the LAN") for interface in around.interfaces if interface.name in settings.firewall.lan
    ]
    networks += [(address, "the next hop's") for address in around.gateways]
    networks += [(server.address, lists.UPSTREAM) for server in asked(settings, around)]
    return [(address.partition("%")[0], role) for address, role in networks]


def unfiltered(settings: Config, around: Surroundings) -> list[str]:
    """Interfaces that are neither in [firewall] lan nor lead to a default route: clients behind them are not filtered."""
    lan = settings.firewall.lan
    if not lan:
        return []
    try:
        named = {"lo", *lan, *machine.ways_out()}
    except OSError:
        return []  # the rest of `status` is still useful
    return list(dict.fromkeys(interface.name for interface in around.interfaces if interface.name not in named))


def asking_itself(settings: Config, around: Surroundings) -> list[Problem]:
    """Problems for configured upstreams that are addresses of this agent: its queries would loop."""
    own = {(endpoint.address.partition("%")[0], endpoint.port) for endpoint in around.endpoints}
    named = [("upstream", server) for server in settings.dns.upstream]
    named += [("forward", server) for _, servers in settings.dns.forward for server in servers]
    hint = "name another resolver"
    return [
        Problem(settings.file, settings.line("dns", key), f"dns.{key}: {server} is an address of this agent itself", hint)
        for key, server in named
        if (server.address.partition("%")[0], server.port) in own
    ]


def resolver_settings(settings: Config, around: Surroundings, report: Report) -> Settings:
    """The settings of the resolvers. `report`: of the generation; it has the content of hosts files and certificates."""
    dns = settings.dns
    return Settings(
        allow_from=endpoints.local_networks(settings, around.interfaces), block_mode=dns.block_mode, block_ttl=dns.block_ttl,
        upstream=tuple(map(str, around.upstreams)),
        forward={zone: tuple(map(str, servers)) for zone, servers in dns.forward},
        hosts=report.hosts, local=dns.local,
        tls_ca=report.tls_ca or dns.tls_ca,  # the name of an unread file is no certificate: nothing is trusted then
        strip_ech=dns.ech == "strip", rebind=dns.rebind, rebind_except=dns.rebind_except,
        log_names=settings.log.names,
        learn=settings.firewall.enabled and settings.firewall.learn,
    )  # fmt: skip
