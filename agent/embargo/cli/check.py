"""`embargo check`: everything that can be wrong with the configuration, the lists, the ruleset and this machine."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embargo import config
from embargo.cli import command, offline, permissions
from embargo.config import Config
from embargo.daemon.ask import client
from embargo.daemon.ask.client import ControlError, NotRunning
from embargo.daemon.ask.orders import GetApps
from embargo.daemon.host import endpoints
from embargo.daemon.host.authorities import certificates
from embargo.daemon.host.endpoints import ListenError
from embargo.daemon.host.nftables import Nftables
from embargo.daemon.process import privileges
from embargo.daemon.resolve import tls
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.errors import ConfigError, FirewallError, Problem
from embargo.firewall import ruleset
from embargo.firewall.ruleset import Own

REST = ("ruleset", "addresses", "upstreams")  # checked only with a configuration that has no problems
PROBES = 8  # upstreams whose certificates are fetched at the same time
TABLE = "embargo_check"  # name of the table that the kernel checks and does not keep


def run(file: str) -> tuple[tuple[Problem, ...], list[Problem], list[str]]:
    """(problems of the configuration, all other problems, what could not be checked because of the former)."""
    try:
        reading = config.read(command.read(file), os.path.abspath(file))
    except ConfigError as error:
        return error.problems, [], ["lists", *REST]
    if not reading.problems:
        settings = reading.config
        problems = [*_lists(settings), *_ruleset(settings), *permissions.unreadable(settings), *_machine(settings)]
        return (), problems, []
    if reading.wrong <= config.OPTIONS.keys() - {"lists", "state"}:  # the location of the lists is known
        return reading.problems, _lists(reading.config), [*REST]
    return reading.problems, [], ["lists", *REST]


def _lists(settings: Config) -> list[Problem]:
    try:
        return list(offline.check(settings))
    except ConfigError as error:
        return list(error.problems)


def _ruleset(settings: Config) -> Iterator[Problem]:
    """The kernel's verdict on the ruleset, in a transaction that is never committed."""
    firewall = settings.firewall
    if firewall.enabled and privileges.CAP_NET_ADMIN in privileges.effective():
        try:
            image, report = offline.compiled(settings)
        except ConfigError:
            return  # reported with the lists
        around = surroundings.look(settings)
        wanted = ruleset.spec(
            image, report.switchboard, 1, lan=firewall.lan, except_=firewall.except_, fail=firewall.fail,
            intercept_port=endpoints.intercept_port(settings), log_group=firewall.log_group,
            own=(Own(*each) for each in surroundings.own_questions(settings, around, os.geteuid())),
            system=(each.address for each in around.system),
        )  # fmt: skip
        try:
            Nftables().check(ruleset.build(wanted, TABLE))
        except FirewallError as error:
            yield Problem(settings.file, 0, f"the kernel rejects the ruleset: {error}", "")
    elif firewall.enabled and os.geteuid() == 0:
        line = settings.line("firewall", "enabled")
        yield Problem(settings.file, line, "firewall.enabled: CAP_NET_ADMIN is missing", "grant it, or set it to false")


def _machine(settings: Config) -> Iterator[Problem]:
    """What does not fit this machine: upstreams, interfaces, addresses to listen on."""
    around = surroundings.look(settings)
    yield from surroundings.asking_itself(settings, around)
    yield from _tls(settings)
    if not around.upstreams:
        line = settings.line("dns", "upstream")
        yield Problem(settings.file, line, "dns.upstream: no resolver to ask", 'name one, as in ["192.0.2.53"]')
    names = {interface.name for interface in around.interfaces}
    for name in settings.firewall.lan:
        if name not in names:
            line = settings.line("firewall", "lan")
            yield Problem(settings.file, line, f'firewall.lan: no interface "{name}" with an address', "see `ip address`")
    for name in endpoints.without_address(settings, around.interfaces):
        line = settings.line("dns", "listen")
        hint = "see `ip address`; or write an address with its port"
        yield Problem(settings.file, line, f'dns.listen: no interface "{name}" with an address', hint)
    try:
        client.ask(settings.control, GetApps())
    except NotRunning:
        yield from _listening(settings, around)
    except ControlError as error:
        yield Problem(settings.control, 0, str(error), "")


def _listening(settings: Config, around: Surroundings) -> Iterator[Problem]:
    """The addresses that cannot be listened on. Only without a running agent, which holds them itself."""
    sockets = endpoints.Sockets()
    for each in around.endpoints:
        if endpoints.is_absent(each, around.interfaces):
            line = settings.line("dns", "listen")
            yield Problem(settings.file, line, f"dns.listen: no interface has {each}", "see `ip address`")
            continue
        try:
            sockets.follow((*sockets.endpoints, each), 1, around.interfaces)
        except ListenError as error:
            yield Problem(settings.file, settings.line("dns", "listen"), str(error), "")
    sockets.close()


def _tls(settings: Config) -> Iterator[Problem]:
    """Upstreams over TLS that fail authentication. One that cannot be reached is not a problem: it may be back tomorrow."""
    trusted = ""
    if settings.dns.tls_ca:
        try:
            trusted = certificates(Path(settings.dns.tls_ca).read_text(errors="replace"))
        except (OSError, ValueError):
            return  # reported with the lists
    named = [("upstream", server) for server in settings.dns.upstream if server.tls]
    named += [("forward", server) for _, servers in settings.dns.forward for server in servers if server.tls]
    with ThreadPoolExecutor(PROBES) as pool:
        found = pool.map(lambda each: tls.probe(each[1], trusted), named)
        for (key, server), wrong in zip(named, found, strict=True):
            if wrong:
                hint = "correct it on the server, or change the server, its #name or dns.tls_ca"
                yield Problem(settings.file, settings.line("dns", key), f"dns.{key}: {server} {wrong}", hint)
