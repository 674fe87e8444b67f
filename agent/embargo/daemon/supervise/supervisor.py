"""Starts the processes, looks after them, and ends them. It parses nothing that comes from the network.

What a change of the policy takes stands in `reload`, what becomes of the guardian in `guarding`, of the resolvers in `workers`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import embargo
from embargo.config import Config
from embargo.daemon.guard.orders import Guarded, Rules
from embargo.daemon.host import endpoints, watched
from embargo.daemon.host.endpoints import ListenError, Sockets
from embargo.daemon.log.journal import Journal
from embargo.daemon.process import notify, privileges
from embargo.daemon.process.channel import Events
from embargo.daemon.process.child import Child, ChildError
from embargo.daemon.process.spawn import HERE, Spawn
from embargo.daemon.supervise import premises
from embargo.daemon.supervise.follower import AGAIN, Follower
from embargo.daemon.supervise.generations import Generation, Store
from embargo.daemon.supervise.guarding import NETLINK, Guarding
from embargo.daemon.supervise.health import Health
from embargo.daemon.supervise.inforce import InForce
from embargo.daemon.supervise.pausing import Pauses, told_of
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.reload import Outcome, Reloads
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Workers
from embargo.errors import ConfigError, EmbargoError, ImageError
from embargo.lists.pauses import Pause

log = logging.getLogger(__name__)

LEDGERS = "ledgers"  # in [state] dir: a page for each child that counts attempts
SHOWN = 20  # problems logged one by one; a list in another format may have one a line
MAX_WORKERS = 4  # of workers = "auto": more take memory and win little on a gateway
SUMMARY = 60.0  # seconds between two summaries of what was blocked


class Supervisor:
    def __init__(self, settings: Config, around: Surroundings, spawn: Spawn = HERE) -> None:
        """`spawn`: how resolvers and compilers begin; the guardian, which has our capabilities, is always a child."""
        self._loop = asyncio.get_running_loop()
        self._in_force = InForce(settings, around)
        self.spawn = spawn
        self.store = Store(settings.state.dir)
        self.journal = Journal(settings.log.events, settings.log.max_bytes, settings.log.keep)
        self.sockets = Sockets()
        self._ledgers = f"{settings.state.dir}/{LEDGERS}"
        self.workers = Workers(self._in_force.for_resolver, self._record_events, self._introduce, self._ledgers, spawn)
        netlink_socket = self._inherit()
        changing = asyncio.Lock()
        self.guarding = (
            Guarding(self._in_force, self.workers, self.journal, changing, self._record_events, self._ledgers, netlink_socket)
            if settings.firewall.enabled else None
        )  # fmt: skip
        self.pauses = Pauses(f"{settings.state.dir}/{watched.LOCAL}", self._loop.time)
        self._pausing = asyncio.Event()
        self.follower = Follower(self)
        self.reloads = Reloads(
            self._in_force, self.store, self.journal, self.sockets, self.workers, self.guarding, self.pauses, spawn,
            self.follower.look, self._worker_count, changing,
        )  # fmt: skip
        self.started = time.time()
        self.last: Outcome | None = None
        self.last_at = 0.0
        self._begun = False
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> Config:
        return self._in_force.settings

    @property
    def around(self) -> Surroundings:
        return self._in_force.around

    @property
    def generation(self) -> Generation | None:
        """The one in force; None before the first."""
        return self._in_force.generation

    def _inherit(self) -> socket.socket | None:
        """Take over what systemd kept of an earlier run, or opened for us; the netlink socket, if it is there."""
        listening, found = [], None
        for name, fd in notify.inherited():
            if name == NETLINK:
                found = socket.socket(fileno=fd)
            else:
                listening.append((name, fd))
        for name in self.sockets.adopt(listening):
            log.warning("a socket that systemd passed on is of no use and is closed: %s", name)
        return found

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, serve_control: Callable[["Supervisor"], Any], ready: Callable[["Supervisor"], None]) -> None:
        """Until SIGTERM or SIGINT. StartError, ConfigError or FirewallError when the agent cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what is read at the start is new enough
        try:
            await self._live(serve_control, ready)
        except EmbargoError as error:
            if self._begun or isinstance(error, ConfigError):
                raise
            await self._back_off()
            if not self._stop.is_set():
                raise
            log.error("%s", error)

    async def _live(self, serve_control: Callable[["Supervisor"], Any], ready: Callable[["Supervisor"], None]) -> None:
        held = premises.take(self.settings, self._ledgers, self.store, self.journal)
        try:
            if await self._start_unless_stopped():
                async with serve_control(self):
                    self._begin()
                    self._begun = True
                    premises.succeeded(self.settings.state.runtime)
                    ready(self)
                    notify.notify("READY=1")
                    await self._stop.wait()
        finally:
            notify.notify("STOPPING=1")
            await self._end()
            for fd in held:
                os.close(fd)
        if self._failure is not None:
            raise self._failure  # so that whoever looks after us sees a failure

    async def _start_unless_stopped(self) -> bool:
        """Start; False when a signal came before it was done."""
        start = self._loop.create_task(self._start(), name="start")
        stop = self._loop.create_task(self._stop.wait(), name="stop")
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if start.done():
            start.result()
            return True
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError, EmbargoError):
            await start
        return False

    async def _back_off(self) -> None:
        """Wait before a failed start is told, the longer the oftener: systemd has a way of its own only from 254 on."""
        pause = premises.pause(self.settings.state.runtime) if notify.managed() else 0.0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause)

    async def _start(self) -> None:
        choosing = privileges.CAP_SETUID in privileges.permitted() or self.spawn.gives_user
        self.workers.user = premises.user(self.settings.state.user) if self._worker_count() and choosing else None
        try:
            self.sockets.follow(self.around.endpoints, self._worker_count() or 1, self.around.interfaces)
            self.sockets.settle()
        except ListenError as error:
            raise StartError(str(error)) from None
        if self.guarding is not None:
            await self.guarding.start()
        else:
            premises.warn_of_old_rules()
        try:
            self._log_ended(self.pauses.recall())
        except ValueError as error:
            log.error("%s", error)
        outcome = await self.reload("start")
        if self.generation is None:
            await self._start_from_last(outcome)
        expected = self.workers.uid
        try:
            await self.workers.run(self.sockets, self._worker_count())
            if self.workers.uid != expected and self.guarding is not None:  # questions of another user have to pass
                assert self.generation is not None
                await self.guarding.apply(self.generation, self.around)
        except ChildError as error:
            raise StartError(str(error)) from None
        privileges.settle()

    async def _start_from_last(self, outcome: Outcome) -> None:
        """The lists cannot be used as they are: the generation that was in force when the agent last ran stays in force."""
        try:
            generation = await self.reloads.fall_back()
        except ImageError:
            if outcome.hindered:  # that may be over at the next try; what files say is not
                raise StartError("\n".join(map(str, outcome.errors))) from None
            raise ConfigError(outcome.errors) from None
        log.error("the lists cannot be used; generation %d, the last good one, is in force", generation.number)

    def _begin(self) -> None:
        """Everything that goes on beside the queries."""
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self._task(self._reload_on_signal(), "reload"))
        self._task(self.follower.files(), "follower of the files")
        self._task(self.follower.machine(), "follower of the machine")
        health = Health(self)
        self._task(health.beat(), "heartbeat")
        self._task(health.assure(), "watchdog")
        self._task(self._summarise(), "summary")
        self._task(self._end_pauses(), "end of pauses")
        generation = self.generation
        assert generation is not None
        self.journal.event({
            "event": "start", "version": embargo.__version__, "pid": os.getpid(), "generation": generation.number,
            "names": len(generation.image), "networks": generation.image.networks,
        })  # fmt: skip

    async def _end(self) -> None:
        for task in list(self._tasks):
            if not task.get_name().startswith("keeper"):
                task.cancel()
        await asyncio.to_thread(self.follower.close)
        again = self._failure is not None or await asyncio.to_thread(notify.restarting)
        rules: Rules = "keep" if again else self._rules_that_stay()
        if self.guarding is not None and rules != "keep":  # nothing may be redirected to sockets without a reader
            await self.guarding.stop(rules)
        await self.workers.stop()
        if self.guarding is not None:
            await self.guarding.stop(rules)
        self.sockets.close()
        if self.generation is not None:
            self.journal.event({"event": "stop", "generation": self.generation.number})
        self.journal.close()

    def _rules_that_stay(self) -> Rules:
        firewall = self.settings.firewall
        if self.generation is None:
            return "keep"  # it never came to anything; what an earlier run left is not ours to take
        if firewall.on_stop == "remove":
            return "remove"
        opened = endpoints.intercept_port(self.settings) and firewall.fail == "open"
        return "unredirect" if opened else "keep"

    def _task(self, work: Any, name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the %s failed", task.get_name(), exc_info=error)
            self._failure = error
            self._stop.set()

    def _worker_count(self) -> int:
        if self.settings.dns.workers is None:
            return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        return self.settings.dns.workers

    async def _introduce(self, resolver: Child) -> None:
        if self.guarding is not None:
            await self.guarding.introduce(resolver)

    # ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def reload(self, why: str) -> Outcome:
        """Read everything again and put it in force, or say why not and leave what is in force there."""
        outcome = await self.reloads.reload(first=why == "start")
        known = why == AGAIN and self.last is not None and self.last.errors == outcome.errors
        self.last, self.last_at = outcome, time.time()
        if not known:
            self._log_outcome(outcome, why)
        return outcome

    async def rollback(self) -> Outcome:
        """The generation before the one in force back in force, until the next change."""
        outcome = await self.reloads.rollback()
        if outcome.ok:
            self.last, self.last_at = outcome, time.time()
            self._log_outcome(outcome, "rollback")
        return outcome

    async def pause(self, *, begin: Pause | None = None, end: list[Pause] | None = None) -> Outcome:
        """Begin or end pauses (`Pauses.change`)."""
        outcome = await self.reloads.pause(partial(self.pauses.change, begin=begin, end=end))
        if outcome.ok:
            self._pausing.set()
        return outcome

    async def _end_pauses(self) -> None:
        """Each when its time has come."""
        while True:
            self._pausing.clear()
            end = self.pauses.next_end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pausing.wait(), end and max(end - self._loop.time(), 0.0))
            if over := self.pauses.over():
                outcome = await self.pause(end=over)
                self._log_ended(over if outcome.ok else ())
                for problem in outcome.errors:
                    log.error("%s; it is tried again", problem)
                    await asyncio.sleep(1.0)

    def _log_ended(self, ended: Iterable[Pause]) -> None:
        for each in ended:
            self.journal.event({"event": "policy", "verb": "resume", **told_of(each), "why": "its time was over"})

    def _log_outcome(self, outcome: Outcome, why: str) -> None:
        """A reload that changed something or failed is an event and a message."""
        if outcome.ok and not outcome.changed:
            return
        event: dict[str, Any] = {"event": "reload", "ok": outcome.ok, "why": why, "generation": outcome.generation}
        if outcome.errors:
            event["errors"] = list(map(str, outcome.errors[:SHOWN]))
        event["problems"] = len(outcome.problems)
        self.journal.event(event)
        for problem in outcome.errors[:SHOWN]:
            log.error("%s", problem)
        for problem in outcome.problems[:SHOWN]:
            log.warning("%s", problem)
        if (more := max(len(outcome.errors), len(outcome.problems)) - SHOWN) > 0:
            log.warning("and %d more; embargo check shows all", more)
        if outcome.ok and self.generation is not None:
            built = self.generation.image
            log.info("generation %d is in force: %d names, %d networks", outcome.generation, len(built), built.networks)
            self.follower.watch()
        elif self.generation is not None:
            log.error("the reload failed; generation %d stays in force", outcome.generation)

    async def _reload_on_signal(self) -> None:
        await self.reload("SIGHUP")

    async def _summarise(self) -> None:
        """Once a minute, what was blocked: single attempts stand in the event log alone."""
        before: Counter[str] = Counter()
        while True:
            await asyncio.sleep(SUMMARY)
            now = await self.hits()
            news = now - before
            if news:
                parts = (f"{name} {count}" for name, count in news.most_common(20))
                log.info("blocked in the last minute: %s", ", ".join(parts))
            before = now

    async def hits(self) -> Counter[str]:
        """Attempts per class, DNS and firewall together."""
        await asyncio.gather(self.workers.stats(), self.firewall_stats())
        return self.counted("hits")

    def counted(self, kind: str) -> Counter[str]:
        """What all processes have counted since our start, by their last answers: no count ever falls."""
        found: Counter[str] = Counter()
        for child in (*self.workers.children, *([self.guarding.child] if self.guarding is not None else [])):
            found.update(child.counts.of(kind))
        return found

    async def firewall_stats(self) -> Guarded | None:
        """What the guardian reports; None where there is none, or it does not answer."""
        return await self.guarding.stats() if self.guarding is not None else None

    # ── events of the children ───────────────────────────────────────────────────────────────────────────────────────

    def _record_events(self, child: Child, events: Events) -> None:
        if events.lost:
            self.journal.note_lost(events.lost)
        if events.lines:
            self.journal.lines(events.lines, events.lines.count(b"\n"))
