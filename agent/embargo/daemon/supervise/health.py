"""Health checks, and their consequences.

If resolvers answer, port 53 stays redirected to them (`fail = "open"`). If an upstream fails or recovers, that is an event. If
a real query is answered and the kernel still has the rules, systemd's watchdog is notified.
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
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.guarding import Guarding
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Workers
from embargo.dns import message
from embargo.dns.acl import Acl

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0  # between two checks of the resolvers with fail = "open"
BEATS_PER_UPSTREAM_CHECK = 5  # without fail = "open", only every fifth heartbeat asks the resolvers
REPLY_SECONDS = 2.0  # for the reply to a query
_QUESTION = b"\x09localhost\0\0\1\0\1"  # localhost A IN: answered locally and never logged (RFC 6761, section 6.3)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Watched(Protocol):
    """The part of the supervisor that is checked."""

    workers: Workers
    guarding: Guarding | None
    sockets: Sockets
    journal: Journal

    @property
    def settings(self) -> Config:
        """The configuration in force."""

    @property
    def around(self) -> Surroundings:
        """The surroundings in force."""


class Health:
    """`beat` and `assure` run until they are cancelled."""

    def __init__(self, agent: Watched) -> None:
        self._agent = agent
        self._down: set[str] = set()  # upstreams that were reported as down

    async def beat(self) -> None:
        """Ask the resolvers at intervals; keep port 53 redirected if one answers, and report changes of upstreams."""
        for beat in itertools.count():
            await asyncio.sleep(HEARTBEAT_SECONDS)
            guarding = self._agent.guarding
            opened = guarding is not None and self._agent.settings.firewall.fail == "open"  # may change at a reload
            if not opened and beat % BEATS_PER_UPSTREAM_CHECK:
                continue
            stats = await self._agent.workers.stats()
            if stats and opened and guarding is not None:
                guarding.alive()
            self._note_upstreams(stats)

    async def assure(self) -> None:
        """Notify systemd's watchdog as long as all checks pass; log the first failure."""
        interval = notify.watchdog()
        logged = ""
        while interval:
            failure = await self._failure()
            if not failure:
                notify.notify("WATCHDOG=1")
            elif failure != logged:
                log.error("%s; if that continues, systemd will restart the agent within %.0f s", failure, interval)
            logged = failure
            await asyncio.sleep(interval / 3)

    async def _failure(self) -> str:
        """The first check that fails, as text; empty if all pass."""
        agent = self._agent
        if not await agent.workers.stats():
            return "no resolver answers the supervisor"
        acl = Acl(endpoints.local_networks(agent.settings, agent.around.interfaces))
        endpoint = next((endpoint for endpoint in agent.sockets.endpoints if may_ask(endpoint, acl)), None)
        if endpoint is not None and not await asyncio.to_thread(is_answered, endpoint):
            return f"no resolver answers queries to {endpoint}"
        if agent.guarding is not None:
            try:
                if not await agent.guarding.intact():
                    return "other programs have changed the firewall rules"
            except ChildError as error:
                return str(error)
        return ""

    def _note_upstreams(self, stats: list[Counted]) -> None:
        """Write an event when an upstream becomes unhealthy in all workers, and when it becomes healthy again in one."""
        in_use = set(map(str, surroundings.asked(self._agent.settings, self._agent.around)))  # a resolver may invent others
        rows = [row for counted in stats for row in counted.upstreams if row.server in in_use]
        healthy = {row.server for row in rows if row.healthy}
        reasons = {row.server: row.last_error for row in rows if not row.healthy}
        down = set(reasons) - healthy
        for server in sorted(down - self._down):
            log.warning("upstream %s is down: %s", server, reasons[server])
            self._agent.journal.event({"event": "upstream", "server": server, "state": "down", "reason": reasons[server]})
        for server in sorted(self._down & healthy):
            log.info("upstream %s is up again", server)
            self._agent.journal.event({"event": "upstream", "server": server, "state": "up"})
        if stats:
            self._down = down


def may_ask(endpoint: Endpoint, acl: Acl) -> bool:
    """Whether the ACL admits a query from this machine to this endpoint: its source is the address that it is sent to."""
    address = endpoint.address.partition("%")[0]
    return acl.allows(_ANY.get(address, address))


def is_answered(endpoint: Endpoint) -> bool:
    """Whether a query to this endpoint is answered. Blocks for REPLY_SECONDS at most."""
    address, _, scope = endpoint.address.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    query = message.HEADER.pack(int.from_bytes(os.urandom(2)), message.RD, 1, 0, 0, 0) + _QUESTION
    at = (_ANY.get(address, address), endpoint.port)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(REPLY_SECONDS)
            sock.connect(at if family == socket.AF_INET else (*at, 0, socket.if_nametoindex(scope) if scope else 0))
            sock.send(query)
            reply = sock.recv(512)
    except OSError:
        return False
    return reply[:2] == query[:2] and bool(reply[2] & 0x80) and reply[message.HEADER.size :].startswith(_QUESTION)
