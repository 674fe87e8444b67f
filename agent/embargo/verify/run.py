"""One run of `embargo verify`: get the policy in force from the agent, set up client and sink, probe, report."""

import contextlib
import ipaddress
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from embargo.config import Config
from embargo.daemon.ask import client
from embargo.daemon.ask.orders import GetStatus, Status
from embargo.daemon.host import endpoints, machine
from embargo.daemon.supervise.generations import Store
from embargo.dns.acl import Acl
from embargo.lists import pauses
from embargo.lists.image import Image
from embargo.lists.pauses import Pause
from embargo.lists.policy import Switchboard
from embargo.verify import sandbox, targets
from embargo.verify.addresses import AddressProbes
from embargo.verify.names import NameProbes
from embargo.verify.packets import Prober
from embargo.verify.query import Resolver
from embargo.verify.results import LEAK, SKIPPED, UNPROVEN, ResultRow
from embargo.verify.sandbox import Addresses, Sandbox, SandboxError
from embargo.verify.session import Session

Told = dict[str, Any]


def run(settings: Config, *, samples: int, seed: int) -> Told:
    """All results as JSON values. `samples`: names and networks per class to try, 0 for all of them.

    Raises NotRunning, ControlError, SandboxError or ImageError if nothing can be tried.
    """
    began = time.monotonic()
    status = client.ask(settings.control, GetStatus())
    _require_same_network(status.pid)
    generation = Store(settings.state.dir).load(status.generation, settings)
    in_force = [Pause(each.app, each.client, 0.0, 0.0, 0) for each in status.pauses]
    board, _ = pauses.apply(in_force, generation.image.classes, generation.board)
    try:
        rows, ipv6 = _probe(settings, status, generation.image, board, samples, random.Random(seed))
    finally:
        generation.close()
    notes = [f"paused, so not tried: {each}" for each in in_force if not each.client]
    if not ipv6:
        notes.append("IPv6 is not forwarded here: no IPv6 packets were sent")
    after = client.ask(settings.control, GetStatus()).generation
    if after != generation.number:
        notes.append(f"the policy changed during the run (generation {generation.number}, now {after}): run it again")
    return {
        "ok": not any(row.verdict == LEAK for row in rows),
        "generation": generation.number, "seed": seed, "samples": samples, "seconds": round(time.monotonic() - began, 2),
        "probes": sum(row.probes for row in rows), "held": sum(row.held for row in rows),
        "leaks": sum(row.leaks for row in rows), "unproven": sum(row.unproven for row in rows),
        "skipped": sum(row.verdict == SKIPPED for row in rows),
        "doubtful": sum(row.verdict == UNPROVEN for row in rows),
        "rows": [row.as_data() for row in rows], "notes": notes,
    }  # fmt: skip


def _probe(
    settings: Config, status: Status, image: Image, board: Switchboard, samples: int, chance: random.Random
) -> tuple[list[ResultRow], bool]:
    """(results, whether IPv6 was among the families that packets were sent in)."""
    found = targets.find(image, board, samples, chance)
    own = sandbox.own_addresses()
    families = _families(settings, status)
    firewall = status.firewall
    with _signals_as_interrupt(), ExitStack() as stack:
        where = stack.enter_context(Sandbox(families))
        prober = Prober(where)
        stack.callback(prober.close)
        session = Session(settings, image, board, firewall.lan, firewall.intercept_dns, where, prober, own, found, chance)
        session.skip_audited()
        forwarded = [each for each in families if each.version == 4 or sandbox.forwards_ipv6()]
        addresses = AddressProbes(session, forwarded) if firewall.enabled else None
        if addresses is not None:
            stack.callback(addresses.close)
            addresses.controls()
        where.mute()
        NameProbes(session).run(_resolvers(status, settings, families, session))
        if addresses is not None:
            addresses.run()
        else:
            session.results.row("-", "-", "addresses", skipped="firewall.enabled = false")
    return session.results.rows, any(each.version == 6 for each in forwarded)


def _require_same_network(pid: int) -> None:
    """Raises SandboxError if the agent runs in another network namespace."""
    with contextlib.suppress(OSError):  # in another pid namespace, or gone
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            raise SandboxError("the agent runs in another network namespace: run this in it (ip netns exec NAME …)")


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the run like SIGINT does: everything that was set up is removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ── where the agent listens ────────────────────────────────────────────────────────────────────────────────────────────────


def _families(settings: Config, status: Status) -> list[Addresses]:
    """Addresses for client and sink: unused, filtered, and if possible allowed to query the resolver."""
    acl = Acl(endpoints.local_networks(settings, machine.interfaces()))
    excepted = [ipaddress.ip_network(text) for text in settings.firewall.except_]

    def filtered(address: str) -> bool:
        return not any(ipaddress.ip_address(address) in each for each in excepted)

    found = []
    for version in (4, 6) if sandbox.has_ipv6() else (4,):
        gateway = _reachable(status, settings, version)
        chosen = sandbox.choose(version, gateway, lambda each: filtered(each) and acl.allows(each))
        chosen = chosen or sandbox.choose(version, gateway, filtered)
        if chosen is None:
            raise SandboxError(f"no IPv{version} address is left for a client: all candidates are routed or in firewall.except")
        found.append(chosen)
    return found


def _listening(status: Status, version: int) -> Iterator[tuple[str, int]]:
    """(address, port) of each socket of the agent."""
    for text in status.listen:
        address, _, port = text.rpartition(":")
        address = address.strip("[]")
        if (":" in address) == (version == 6):
            yield address, int(port)


def _reachable(status: Status, settings: Config, version: int) -> str:
    """An address on which the agent listens and redirected queries arrive, to be added to our interface. May be empty."""
    lan = [i.address for i in machine.interfaces() if i.name in status.firewall.lan and (":" in i.address) == (version == 6)]
    usable = [address for address, _ in _listening(status, version) if _for_clients(address)]
    best = [address for address in usable if address in lan] or [each for each in usable if each not in _WILDCARDS]
    if best:
        return best[0]
    return next((address for address in lan if _for_clients(address)), "")


_WILDCARDS = ("0.0.0.0", "::")


def _for_clients(address: str) -> bool:
    """Whether clients on a LAN can reach this address."""
    if "%" in address:
        return False
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local)


def _resolvers(status: Status, settings: Config, families: list[Addresses], session: Session) -> list[Resolver]:
    """This gateway's resolver, and a foreign one where port 53 is intercepted, over UDP and TCP."""
    found = []
    for each in families:
        listening = list(_listening(status, each.version))
        served = [(each.gateway, port) for address, port in listening if address in (each.gateway, *_WILDCARDS)]
        loopback = [
            (address, port) for address, port in listening if "%" not in address and ipaddress.ip_address(address).is_loopback
        ]
        for address, port in (served or loopback)[:1]:
            found += [Resolver(address, port, transport, False) for transport in ("udp", "tcp")]
        intercepted = status.firewall.intercept_dns and settings.dns.listen[0].port in [port for _, port in served]
        if intercepted:
            found += [Resolver(session.free(each.version), 53, transport, True) for transport in ("udp", "tcp")]
    return found
