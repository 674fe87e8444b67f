"""The answer to `embargo status`, put together from what all processes report."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import embargo
from embargo import accelerator, events, records
from embargo.daemon.ask import catalogue
from embargo.daemon.ask.orders import (
    EventsStatus,
    FirewallOff,
    FirewallStatus,
    ListStatus,
    PauseStatus,
    ReloadStatus,
    Status,
)
from embargo.daemon.guard.orders import Guarded
from embargo.daemon.host import endpoints
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.supervisor import Supervisor
from embargo.firewall.table import TABLE
from embargo.lists.pauses import Pause, until
from embargo.lists.policy import Action
from embargo.report import UpstreamStats
from embargo.uncovered import uncovered


async def status(agent: Supervisor) -> Status:
    """The status of a running agent. A generation must be in force."""
    generation, settings = agent.generation, agent.settings
    assert generation is not None
    stats = await agent.workers.stats()
    guarded = await agent.firewall_stats()
    unfiltered = await asyncio.to_thread(surroundings.unfiltered, settings, agent.around)
    now, wall, report, last = time.monotonic(), time.time(), generation.report, agent.last
    gaps = uncovered(
        settings, report, now=wall, listening=bool(agent.sockets.endpoints), learning=guarded.learning if guarded else None,
        flowtables=guarded.flowtables if guarded else (), unfiltered=unfiltered, untold=agent.counted("counters")["untold"],
        absent=endpoints.without_address(settings, agent.around.interfaces),
    )  # fmt: skip
    return Status(
        pid=os.getpid(), version=embargo.__version__, uptime=round(now - agent.started, 1), config=settings.file,
        generation=generation.number, since=round(now - agent.reloads.since, 1), names=len(generation.image),
        networks=generation.image.networks, pauses=tuple(map(pause, agent.pauses.all)),
        mode="audit" if settings.policy.mode is Action.AUDIT else "block", accelerator=accelerator.name(),
        workers=tuple(agent.workers.pids), inside=agent.workers.inside, worker_restarts=agent.workers.restarts,
        listen=tuple(map(str, agent.sockets.endpoints)),
        lists=tuple(records.widened(ListStatus, list_, age=_age(list_.modified, wall)) for list_ in report.lists),
        problems=tuple(map(str, report.problems)),
        reload=ReloadStatus(
            last.ok if last else True, tuple(map(str, last.errors)) if last else (), round(now - agent.last_at, 1),
            agent.rolled_back,
        ),
        apps=catalogue.apps(report.apps, settings, agent.counted("hits"), agent.pauses.all),
        firewall=_firewall(agent, guarded), upstreams=_upstreams(agent),
        counters=_sum(worker.counters for worker in stats) | agent.counted("counters"),
        cache=_sum(worker.cache for worker in stats) | agent.counted("cache"),
        events=EventsStatus(agent.journal.path, agent.journal.lost, agent.journal.trouble),
        uncovered=(*(f"{each}, paused until {until(each)}" for each in agent.pauses.all), *gaps),
    )  # fmt: skip


def _age(modified: float, now: float) -> int | None:
    """Seconds since a file was modified; None if the clock has been set back since then."""
    return round(now - modified) if modified <= now else None


def _sum(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(total)


def pause(pause: Pause) -> PauseStatus:
    """A pause as `status` shows it."""
    return PauseStatus(pause.app, pause.client, events.timestamp(pause.until), pause.uid)


def _firewall(agent: Supervisor, guarded: Guarded | None) -> FirewallStatus | FirewallOff:
    settings, counted, guarding = agent.settings.firewall, agent.counted("firewall"), agent.guarding
    if guarding is None:
        return FirewallOff()
    return FirewallStatus(
        table=f"inet {TABLE}", present=guarded is not None and guarded.present, owned=guarded is not None and guarded.owned,
        lan=settings.lan, intercept_dns=bool(endpoints.intercept_port(agent.settings)), fail=settings.fail,
        on_stop=settings.on_stop, guardian=guarding.child.pid, guardian_restarts=guarding.restarts,
        counters=guarded.counters if guarded else {}, log_lost=guarded.lost if guarded else 0,
        noted=guarded.noted if guarded else 0, restored=counted["restored"], cut=counted["cut"],
        learning=guarded.learning if guarded else None,
    )  # fmt: skip


def _upstreams(agent: Supervisor) -> tuple[UpstreamStats, ...]:
    """One row per server that is in use, with the sums over all workers."""
    asked, failed = agent.counted("asked"), agent.counted("failed")
    in_use = set(map(str, surroundings.asked(agent.settings, agent.around)))
    rows: dict[str, UpstreamStats] = {}
    for row in agent.workers.upstreams:
        if row.server in in_use:
            other = rows.get(row.server)
            rows[row.server] = row if other is None else _merged(other, row)
    return tuple(replace(row, asked=asked[server], failed=failed[server]) for server, row in rows.items())


def _merged(one: UpstreamStats, other: UpstreamStats) -> UpstreamStats:
    """Both rows of a server as one; round-trip times are weighted by the number of queries."""
    together = one.asked + other.asked
    weighted = one.milliseconds * one.asked + other.milliseconds * other.asked
    return replace(
        one, asked=together, healthy=one.healthy or other.healthy, last_error=one.last_error or other.last_error,
        plain=one.plain or other.plain,
        milliseconds=round(weighted / together, 2) if together else 0.0,
    )  # fmt: skip
