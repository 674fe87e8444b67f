"""One run of `embargo verify`: asks the agent what is in force, sets up client and sink, probes, tells."""

import contextlib
import dataclasses
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
from embargo.daemon.ask.client import ControlError
from embargo.daemon.host import endpoints, machine
from embargo.daemon.supervise.generations import Store
from embargo.dns.acl import Acl
from embargo.lists import pauses
from embargo.lists.pauses import Pause
from embargo.verify import network, targets
from embargo.verify.ask import Way
from embargo.verify.network import Addresses, Network, NetworkError
from embargo.verify.probes import LEAK, UNPROVEN, Verification

Told = dict[str, Any]


def run(settings: Config, *, samples: int, seed: int) -> Told:
    """Everything found out. NotRunning, ControlError, NetworkError or ImageError when nothing could be."""
    began = time.monotonic()
    status = _status(settings)
    _beside(status["pid"])
    generation = Store(settings.state.dir).load(status["generation"], settings)
    in_force = [Pause(each["app"], each["client"], 0.0, 0.0, 0) for each in status["pauses"]]
    board, _ = pauses.apply(in_force, generation.image.classes, generation.board)
    generation = dataclasses.replace(generation, board=board)
    try:
        chance = random.Random(seed)
        found = targets.find(generation.image, generation.board, samples, chance)
        own = network.own_addresses()
        families = _families(settings, status)
        with _stopped_in_order(), ExitStack() as stack:
            where = stack.enter_context(Network(families))
            work = Verification(settings, generation, status["firewall"], where, own, found, chance)
            stack.callback(work.close)
            forwarded = [each for each in families if each.version == 4 or network.forwards_ipv6()]
            work.run(_ways(status, settings, families, work), forwarded)
    finally:
        generation.close()
    notes = [f"paused, so not tried: {each}" for each in in_force if not each.client]
    if not any(each.version == 6 for each in forwarded):
        notes.append("IPv6 is not forwarded here: no packets were sent in it")
    after = _status(settings)["generation"]
    if after != generation.number:
        notes.append(f"the policy changed while it ran (generation {generation.number}, now {after}): run it again")
    rows = [row.told() for row in work.rows]
    return {
        "ok": not any(row["verdict"] == LEAK for row in rows),
        "generation": generation.number, "seed": seed, "samples": samples, "seconds": round(time.monotonic() - began, 2),
        "probes": sum(row["probes"] for row in rows), "held": sum(row["held"] for row in rows),
        "leaks": sum(row["leaks"] for row in rows), "unproven": sum(row["unproven"] for row in rows),
        "doubtful": sum(row["verdict"] == UNPROVEN for row in rows),
        "rows": rows, "notes": notes,
    }  # fmt: skip


def _status(settings: Config) -> Told:
    status = client.ask(settings.control, "status")
    if not status["ok"]:
        raise ControlError(status["error"])
    return {**status, "firewall": {"lan": [], "intercept_dns": False, **status["firewall"]}}


def _beside(pid: int) -> None:
    """NetworkError where the agent polices another network than ours."""
    with contextlib.suppress(OSError):  # in another pid namespace, or gone
        if os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino:
            raise NetworkError("the agent runs in another network namespace: run this in it (ip netns exec NAME …)")


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end it like SIGINT: with everything removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ── where the resolver is ────────────────────────────────────────────────────────────────────────────────────────────────


def _families(settings: Config, status: Told) -> list[Addresses]:
    """Addresses for client and sink: policed, answered if that can be, and used by nobody."""
    acl = Acl(endpoints.local_networks(settings, machine.interfaces()))
    excepted = [ipaddress.ip_network(text) for text in settings.firewall.except_]

    def policed(address: str) -> bool:
        return not any(ipaddress.ip_address(address) in each for each in excepted)

    found = []
    for version in (4, 6) if network.has_ipv6() else (4,):
        gateway = _reachable(status, settings, version)
        chosen = network.choose(version, gateway, lambda each: policed(each) and acl.allows(each))
        chosen = chosen or network.choose(version, gateway, policed)
        if chosen is None:
            raise NetworkError(f"no IPv{version} address is left for a client: all candidates are routed or in firewall.except")
        found.append(chosen)
    return found


def _listening(status: Told, version: int) -> Iterator[tuple[str, int]]:
    for text in status["listen"]:
        address, _, port = text.rpartition(":")
        address = address.strip("[]")
        if (":" in address) == (version == 6):
            yield address, int(port)


def _reachable(status: Told, settings: Config, version: int) -> str:
    """The address that stands on our interface too: one that is listened on, where redirected queries arrive. May be empty."""
    lan = [
        i.address for i in machine.interfaces() if i.name in status["firewall"]["lan"] and (":" in i.address) == (version == 6)
    ]
    usable = [address for address, _ in _listening(status, version) if _for_clients(address)]
    best = [address for address in usable if address in lan] or [each for each in usable if each not in _WILDCARDS]
    if best:
        return best[0]
    return next((address for address in lan if _for_clients(address)), "")


_WILDCARDS = ("0.0.0.0", "::")


def _for_clients(address: str) -> bool:
    if "%" in address:
        return False
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local)


def _ways(status: Told, settings: Config, families: list[Addresses], work: Verification) -> list[Way]:
    """Every way to ask: this gateway's resolver, and a stranger's where port 53 is intercepted."""
    found = []
    for each in families:
        listening = list(_listening(status, each.version))
        served = [(each.gateway, port) for address, port in listening if address in (each.gateway, *_WILDCARDS)]
        loopback = [
            (address, port) for address, port in listening if "%" not in address and ipaddress.ip_address(address).is_loopback
        ]
        for address, port in (served or loopback)[:1]:
            found += [Way(address, port, transport, False) for transport in ("udp", "tcp")]
        intercepted = status["firewall"]["intercept_dns"] and settings.dns.listen[0].port in [port for _, port in served]
        if intercepted:
            found += [Way(work.free(each.version), 53, transport, True) for transport in ("udp", "tcp")]
    return found
