"""Does everything work? Asked of the resolvers, the kernel and a socket of our own, and told to whom it concerns.

The kernel, where port 53 depends on it (fail = "open"); the event log, of upstreams; and systemd's watchdog, by a real query
and by the rules that the kernel shows.
"""

import asyncio
import itertools
import logging
import os
import socket
from typing import Protocol

from embargo.config import Config
from embargo.daemon.host import endpoints
from embargo.daemon.host.endpoints import Endpoint, Sockets
from embargo.daemon.log.journal import Journal
from embargo.daemon.process import notify
from embargo.daemon.process.child import ChildError
from embargo.daemon.resolve.orders import Counted
from embargo.daemon.supervise.guarding import Guarding
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Workers
from embargo.dns import message
from embargo.dns.acl import Acl

log = logging.getLogger(__name__)

HEARTBEAT = 1.0  # seconds between two proofs that somebody answers, where fail = "open" hangs on them
SECONDS = 2.0  # for an answer
_QUESTION = b"\x09localhost\0\0\1\0\1"  # answered without anybody else, and never logged (RFC 6761)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Watched(Protocol):
    """What is looked after."""

    workers: Workers
    guarding: Guarding | None
    sockets: Sockets
    journal: Journal

    @property
    def settings(self) -> Config: ...

    @property
    def around(self) -> Surroundings: ...


class Health:
    def __init__(self, agent: Watched) -> None:
        self._agent = agent
        self._unhealthy: set[str] = set()

    async def beat(self) -> None:
        """Does somebody answer? The kernel is told where it depends on it, and upstreams are looked at."""
        for beat in itertools.count():
            await asyncio.sleep(HEARTBEAT)
            guarding = self._agent.guarding
            opened = guarding is not None and self._agent.settings.firewall.fail == "open"  # since the last reload, perhaps
            if not opened and beat % 5:
                continue
            stats = await self._agent.workers.stats()
            if stats and opened and guarding is not None:
                guarding.alive()
            self._note_upstreams(stats)

    async def assure(self) -> None:
        """Tell the watchdog that all is well, when it is."""
        interval = notify.watchdog()
        told = ""
        while interval:
            why = await self._failing()
            if not why:
                notify.notify("WATCHDOG=1")
            elif why != told:
                log.error("%s; unless that ends, systemd starts the agent again within %.0f s", why, interval)
            told = why
            await asyncio.sleep(interval / 3)

    async def _failing(self) -> str:
        """What does not work that always should; empty when all is well."""
        agent = self._agent
        if not await agent.workers.stats():
            return "no resolver answers its supervisor"
        acl = Acl(endpoints.local_networks(agent.settings, agent.around.interfaces))
        asked = [each for each in agent.sockets.endpoints if may_ask(each, acl)]
        if asked and not await asyncio.to_thread(answered, asked[0]):
            return f"no resolver answers a query to {asked[0]}"
        if agent.guarding is not None:
            try:
                if not await agent.guarding.intact():
                    return "the rules in the kernel are not ours"
            except ChildError as error:
                return str(error)
        return ""

    def _note_upstreams(self, stats: list[Counted]) -> None:
        """An event when an upstream stops or starts to be of use to every worker."""
        rows = [row for each in stats for row in each.upstreams]
        healthy = {row.server for row in rows if row.healthy}
        reasons = {row.server: row.last_error for row in rows if not row.healthy}
        down = set(reasons) - healthy
        for server in sorted(down - self._unhealthy):
            log.warning("upstream %s: %s", server, reasons[server])
            self._agent.journal.event({"event": "upstream", "server": server, "state": "down", "reason": reasons[server]})
        for server in sorted(self._unhealthy & healthy):
            log.info("upstream %s answers again", server)
            self._agent.journal.event({"event": "upstream", "server": server, "state": "up"})
        if stats:
            self._unhealthy = down


def may_ask(endpoint: Endpoint, acl: Acl) -> bool:
    """Would a query from this machine be answered there? It comes from the very address that it goes to."""
    address = endpoint.address.partition("%")[0]
    return acl.allows(_ANY.get(address, address))


def answered(endpoint: Endpoint) -> bool:
    """Does one of the resolvers behind this socket answer? It blocks for SECONDS at most."""
    address, _, scope = endpoint.address.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    query = message.HEADER.pack(int.from_bytes(os.urandom(2)), message.RD, 1, 0, 0, 0) + _QUESTION
    at = (_ANY.get(address, address), endpoint.port)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SECONDS)
            sock.connect(at if family == socket.AF_INET else (*at, 0, socket.if_nametoindex(scope) if scope else 0))
            sock.send(query)
            reply = sock.recv(512)
    except OSError:
        return False
    return reply[:2] == query[:2] and bool(reply[2] & 0x80) and reply[message.HEADER.size :].startswith(_QUESTION)
