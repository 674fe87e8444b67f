"""What the machine says at the moment of a reload, and what follows from it for the configuration.

Addresses, next hops and the system's resolvers are read once per reload and compared with the last time; everything that
depends on them (what is listened on, whom the resolvers ask and answer, what no list may block) is worked out from here.
"""

from dataclasses import dataclass
from typing import Any

from embargo.config import Config
from embargo.daemon.compile import sources
from embargo.daemon.host import endpoints, machine
from embargo.daemon.host.endpoints import Endpoint
from embargo.daemon.host.machine import Interface
from embargo.daemon.supervise.workers import Settings
from embargo.dns.upstream import Server
from embargo.errors import Problem


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine says at the moment of a reload."""

    interfaces: tuple[Interface, ...]
    endpoints: tuple[Endpoint, ...]
    upstreams: tuple[Server, ...]
    gateways: tuple[str, ...]
    system: tuple[Server, ...]  # whom this machine's other processes ask


def look(settings: Config) -> Surroundings:
    interfaces = machine.interfaces()
    wanted = endpoints.wanted(settings, interfaces)
    own = {(each.address.partition("%")[0], each.port) for each in wanted}
    own |= {(i.address, each.port) for i in interfaces for each in wanted if each.address in ("0.0.0.0", "::")}
    system = machine.system_resolvers(own)
    upstreams = (
        tuple(dict.fromkeys((*settings.dns.upstream, *system))) if settings.dns.upstream_system else settings.dns.upstream
    )
    return Surroundings(interfaces, wanted, upstreams, machine.gateways(), system)


def asked(settings: Config, around: Surroundings) -> list[Server]:
    return [*around.upstreams, *(server for _, servers in settings.dns.forward for server in servers)]


def own_questions(settings: Config, around: Surroundings, uid: int) -> list[tuple[int, str, int]]:
    """(user, protocol, port) of the questions that our resolvers send."""
    ports = {(proto, each.port) for each in asked(settings, around) for proto in (("tcp",) if each.tcp else ("udp", "tcp"))}
    return [(uid, proto, port) for proto, port in sorted(ports)]


def protected(settings: Config, around: Surroundings) -> list[tuple[str, str]]:
    """The networks that no list may block, each with its role."""
    found = [(each.address, "this gateway's own") for each in around.interfaces]
    found += [(each.network, "on the LAN") for each in around.interfaces if each.name in settings.firewall.lan]
    found += [(address, "the next hop's") for address in around.gateways]
    found += [(server.address, sources.UPSTREAM) for server in asked(settings, around)]
    return [(address.partition("%")[0], role) for address, role in found]


def unpoliced(settings: Config, around: Surroundings) -> list[str]:
    """Interfaces that have neither policed clients nor the way out: once `lan` names any, nobody behind these is policed."""
    lan = settings.firewall.lan
    if not lan:
        return []
    try:
        known = {"lo", *lan, *machine.ways_out()}
    except OSError:
        return []  # the rest of `status` does not depend on it
    return list(dict.fromkeys(each.name for each in around.interfaces if each.name not in known))


def asking_itself(settings: Config, around: Surroundings) -> list[Problem]:
    """The configured upstreams that are this agent's own addresses."""
    own = {(each.address.partition("%")[0], each.port) for each in around.endpoints}
    named = [("upstream", server) for server in settings.dns.upstream]
    named += [("forward", server) for _, servers in settings.dns.forward for server in servers]
    hint = "name the resolver that it is to ask"
    return [
        Problem(settings.file, settings.line("dns", key), f"dns.{key}: {server} is this agent itself", hint)
        for key, server in named
        if (server.address.partition("%")[0], server.port) in own
    ]


def resolver_settings(settings: Config, around: Surroundings, report: dict[str, Any]) -> Settings:
    """`report`: of the generation, which holds what stood in files."""
    return {
        "allow_from": list(endpoints.local_networks(settings, around.interfaces)),
        "block_mode": settings.dns.block_mode if isinstance(settings.dns.block_mode, str) else list(settings.dns.block_mode),
        "block_ttl": settings.dns.block_ttl,
        "upstream": list(map(str, around.upstreams)),
        "forward": {zone: list(map(str, servers)) for zone, servers in settings.dns.forward},
        "hosts": report["hosts"],
        "tls_ca": report.get("tls_ca") or settings.dns.tls_ca,  # a name alone vouches for nobody
        "ech": settings.dns.ech,
        "rebind": settings.dns.rebind,
        "log_names": settings.log.names,
        "learn": settings.firewall.enabled and settings.firewall.learn,
    }
