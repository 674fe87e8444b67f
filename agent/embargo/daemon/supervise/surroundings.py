"""What the machine says at the moment of a reload, and what follows from it for the configuration.

Addresses, next hops and the system's resolvers are read once per reload and compared with the last time; everything that
depends on them (what is listened on, whom the resolvers ask and answer, what no list may block) is worked out from here.
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


def own_questions(settings: Config, around: Surroundings, uid: int) -> tuple[Own, ...]:
    """The questions that our resolvers send."""
    ports = {(proto, each.port) for each in asked(settings, around) for proto in (("tcp",) if each.tcp else ("udp", "tcp"))}
    return tuple(Own(uid, proto, port) for proto, port in sorted(ports))


def protected(settings: Config, around: Surroundings) -> list[tuple[str, str]]:
    """The networks that no list may block, each with its role."""
    found = [(each.address, "this gateway's own") for each in around.interfaces]
    found += [(each.network, "on the LAN") for each in around.interfaces if each.name in settings.firewall.lan]
    found += [(address, "the next hop's") for address in around.gateways]
    found += [(server.address, lists.UPSTREAM) for server in asked(settings, around)]
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


def resolver_settings(settings: Config, around: Surroundings, report: Report) -> Settings:
    """What the resolvers work with. `report`: of the generation, which holds what stood in files."""
    dns = settings.dns
    return Settings(
        allow_from=endpoints.local_networks(settings, around.interfaces), block_mode=dns.block_mode, block_ttl=dns.block_ttl,
        upstream=tuple(map(str, around.upstreams)),
        forward={zone: tuple(map(str, servers)) for zone, servers in dns.forward},
        hosts=report.hosts,
        tls_ca=report.tls_ca or dns.tls_ca,  # the name of a file that was not read is no certificate: nothing is trusted then
        strip_ech=dns.ech == "strip", rebind=dns.rebind, log_names=settings.log.names,
        learn=settings.firewall.enabled and settings.firewall.learn,
    )  # fmt: skip
