"""`embargo run`: logging, the supervisor, and the lines that announce it is ready."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator

from embargo import explain
from embargo.config import Config
from embargo.daemon.ask import control, metrics
from embargo.daemon.log import journald
from embargo.daemon.process.spawn import HERE, Spawn, Units
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.supervisor import Supervisor

TRY = ("mygw.alipay.com", "pay.weixin.qq.com", "wup.qq.com")  # names for a first `dig`; the first blocked one is shown


def run(settings: Config, units: str) -> None:
    """Run the agent until it is stopped. `units`: where systemd starts the other processes; empty: they are forked here."""
    logging.addLevelName(logging.CRITICAL, "critical")
    if journald.is_stderr():
        with contextlib.suppress(OSError):  # without the journal's socket, standard error reaches the journal too
            logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[journald.JournalHandler()])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s", stream=sys.stderr)
    asyncio.run(_run(settings, Units(units) if units else HERE))


async def _run(settings: Config, spawn: Spawn) -> None:
    around = await asyncio.to_thread(surroundings.look, settings)
    await Supervisor(settings, around, spawn).run(_serve, _ready)


@contextlib.asynccontextmanager
async def _serve(agent: Supervisor) -> AsyncIterator[None]:
    async with control.serve(agent), metrics.serve(agent):
        yield


def _ready(agent: Supervisor) -> None:
    generation, listen = agent.generation, agent.sockets.endpoints
    assert generation is not None
    where = ", ".join(map(str, listen)) or "no address"
    apps = generation.report.apps
    names, networks = sum(app.blocked_names for app in apps), sum(app.blocked_networks for app in apps)
    size = f"{names} names and {networks} networks blocked for the chosen apps"
    print(f"ready: generation {generation.number}, {size}, on {where}")
    blocked = (name for name in TRY if explain.verdict(generation.image, generation.board, name).verdict == "blocked")
    name = next(blocked, None)
    if name and listen:
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen[0].address, listen[0].address)
        port = f" -p {listen[0].port}" if listen[0].port != 53 else ""
        print(f"try:   dig @{address}{port} {name}")
    sys.stdout.flush()
