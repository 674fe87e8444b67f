"""The supervisor: starts the other processes, monitors them, and stops them. It parses nothing that comes from the network.

Changes of the policy are in `reload`, the guardian in `guarding`, the resolvers in `workers`.
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
from embargo.daemon.process.child import Child, ChildError
from embargo.daemon.process.spawn import HERE, Spawn
from embargo.daemon.supervise import premises
from embargo.daemon.supervise.follower import RETRIED, Follower
from embargo.daemon.supervise.generations import Generation, Store
from embargo.daemon.supervise.guarding import NETLINK_NAME, Guarding
from embargo.daemon.supervise.health import Health
from embargo.daemon.supervise.inforce import InForce
from embargo.daemon.supervise.pausing import Pauses, event_members
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.reload import Outcome, Reloads
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Workers
from embargo.errors import ConfigError, EmbargoError, ImageError, Problem
from embargo.events import Event
from embargo.lists.pauses import Pause

log = logging.getLogger(__name__)

LEDGERS = "ledgers"  # directory in [state] dir: a page for each child that counts attempts
MAX_LOGGED = 20  # problems of a reload; a list in an unknown format may have one per line
MAX_WORKERS = 4  # with workers = "auto": more take memory and gain little on a gateway
SUMMARY_SECONDS = 60.0  # between two summaries of blocked attempts in the log


class Supervisor:
    """The running agent. `run` is its life; `reload`, `rollback` and `pause` change what is in force, also on request."""

    def __init__(self, settings: Config, around: Surroundings, spawn: Spawn = HERE) -> None:
        """`spawn`: starts resolvers and compilers; the guardian needs this process's capabilities, so it is always a child."""
        self._loop = asyncio.get_running_loop()
        self._in_force = InForce(settings, around)
        self.spawn = spawn
        self.store = Store(settings.state.dir)
        self.journal = Journal(settings.log.events, settings.log.max_bytes, settings.log.keep)
        self.sockets = Sockets()
        self._ledgers = f"{settings.state.dir}/{LEDGERS}"
        self.workers = Workers(self._in_force.for_resolver, self._record_events, self._introduce, self._ledgers, spawn)
        netlink_socket = self._adopt_stored_sockets()
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
        self.started = time.monotonic()  # the wall clock may be set meanwhile
        self.last: Outcome | None = None
        self.last_at = 0.0
        self.rolled_back = False  # an earlier generation is in force, until the next reload that succeeds
        self._running = False
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> Config:
        """The configuration in force."""
        return self._in_force.settings

    @property
    def around(self) -> Surroundings:
        """The surroundings in force."""
        return self._in_force.around

    @property
    def generation(self) -> Generation | None:
        """The generation in force; None until the first is."""
        return self._in_force.generation

    def _adopt_stored_sockets(self) -> socket.socket | None:
        """Adopt sockets that systemd stored in an earlier run, or opened for a socket unit. Returns the netlink socket."""
        listening, netlink_socket = [], None
        for name, fd in notify.inherited():
            if name == NETLINK_NAME:
                netlink_socket = socket.socket(fileno=fd)
            else:
                listening.append((name, fd))
        for name in self.sockets.adopt(listening):
            log.warning("closed the socket %s that systemd passed: the agent does not listen on such a socket", name)
        return netlink_socket

    # ── start and stop ───────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, serve_control: Callable[["Supervisor"], Any], ready: Callable[["Supervisor"], None]) -> None:
        """Run until SIGTERM or SIGINT. StartError, ConfigError or FirewallError if the agent cannot start.

        `serve_control`: a context in which the control socket is served; `ready`: called when the agent has started.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: None)  # ignored: the start reads all files anyway
        try:
            await self._start_and_wait(serve_control, ready)
        except EmbargoError as error:
            if self._running or isinstance(error, ConfigError):
                raise
            await self._back_off()
            if not self._stop.is_set():
                raise
            log.error("%s", error)

    async def _start_and_wait(
        self, serve_control: Callable[["Supervisor"], Any], ready: Callable[["Supervisor"], None]
    ) -> None:
        locks = premises.prepare(self.settings, self._ledgers, self.store, self.journal)
        try:
            if await self._start_unless_stopped():
                async with serve_control(self):
                    self._start_tasks()
                    self._running = True
                    premises.reset_backoff(self.settings.state.runtime)
                    ready(self)
                    notify.notify("READY=1")
                    await self._stop.wait()
        finally:
            notify.notify("STOPPING=1")
            await self._end()
            for fd in locks:
                os.close(fd)
        if self._failure is not None:
            raise self._failure  # so that the exit status tells the service manager of the failure

    async def _start_unless_stopped(self) -> bool:
        """Start; False if a signal to stop came before that was done."""
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
        """Wait before a failed start is reported, longer each time in a row. systemd before 254 cannot do that by itself."""
        delay = premises.backoff(self.settings.state.runtime) if notify.managed() else 0.0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay)

    async def _start(self) -> None:
        sets_user = privileges.CAP_SETUID in privileges.permitted() or self.spawn.gives_user
        self.workers.user = premises.resolver_user(self.settings.state.user) if self._worker_count() and sets_user else None
        try:
            self.sockets.follow(self.around.endpoints, self._worker_count() or 1, self.around.interfaces)
        except ListenError as error:
            raise StartError(str(error)) from None
        endpoints.warn(self.settings, self.around.interfaces)
        if self.guarding is not None:
            await self.guarding.start()
        else:
            premises.warn_of_old_rules()
        try:
            self._log_ended(self.pauses.load())
        except ValueError as error:
            log.error("%s", error)
        outcome = await self._first_reload()
        if self.generation is None:
            await self._start_from_last(outcome)
        try:
            await self._start_workers()
        except ChildError as error:
            await self._start_workers_from_last(error)
        privileges.settle()

    async def _first_reload(self) -> Outcome:
        """The reload of a start. A generation that the firewall refuses is like lists that cannot be used."""
        try:
            return await self.reload("start")
        except ChildError as error:
            return Outcome(False, False, 0, (Problem("start", 0, str(error), ""),), temporary=True)

    async def _start_workers(self) -> None:
        """Start the resolvers with what is in force. ChildError."""
        expected = self.workers.uid
        await self.workers.run(self.sockets, self._worker_count())
        if self.workers.uid != expected and self.guarding is not None:  # the firewall must pass the queries of the actual user
            assert self.generation is not None
            await self.guarding.apply(self.generation, self.around)

    async def _start_workers_from_last(self, error: ChildError) -> None:
        """The resolvers refuse what is in force: start them with the generation before it. StartError."""
        await self.workers.stop()
        refused = self.generation
        assert refused is not None
        try:
            generation = await self.reloads.fall_back()
            await self._start_workers()
        except (ChildError, ImageError, OSError):
            raise StartError(str(error)) from None
        self.store.discard(refused.number)
        log.error("%s; generation %d, the last valid one, is in force", error, generation.number)

    async def _start_from_last(self, outcome: Outcome) -> None:
        """The lists cannot be used: put the generation of the last run into effect."""
        try:
            generation = await self.reloads.fall_back()
        except ImageError:
            if outcome.temporary:  # then a service manager may retry; it does not retry a ConfigError
                raise StartError("\n".join(map(str, outcome.errors))) from None
            raise ConfigError(outcome.errors) from None
        log.error("the configured lists cannot be used; generation %d, the last valid one, is in force", generation.number)

    def _start_tasks(self) -> None:
        """Start the tasks of a running agent."""
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
        if self.guarding is not None:
            self.guarding.release()
        for task in list(self._tasks):
            if not task.get_name().startswith("keeper"):
                task.cancel()
        await asyncio.to_thread(self.follower.close)
        restart = self._failure is not None or await asyncio.to_thread(notify.restarting)
        rules: Rules = "keep" if restart else self._rules_that_stay()
        if (
            self.guarding is not None and rules != "keep"
        ):  # before the resolvers end, so that no query is redirected to a closed socket
            await self.guarding.stop(rules)
        await self.workers.stop()
        if self.guarding is not None:
            await self.guarding.stop(rules)
        self.sockets.close()
        if self.generation is not None:
            self.journal.event({"event": "stop", "generation": self.generation.number})
        self.journal.close()

    def _rules_that_stay(self) -> Rules:
        """What the guardian does with the rules in the kernel when the agent stops for good."""
        firewall = self.settings.firewall
        if self.generation is None:
            return "keep"  # this run has applied none; those of an earlier run stay
        if firewall.on_stop == "remove":
            return "remove"
        opened = endpoints.intercept_port(self.settings) and firewall.fail == "open"
        return "unredirect" if opened else "keep"

    def _task(self, work: Any, name: str) -> None:
        """Run a coroutine as a task. If it fails, the agent stops."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("task failed, the agent stops: %s", task.get_name(), exc_info=error)
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
        """Read all files and put them into effect, or return why not. `why`: for the event log."""
        outcome = await self.reloads.reload(first=why == "start")
        repeated = why == RETRIED and self.last is not None and self.last.errors == outcome.errors
        self.last, self.last_at = outcome, time.monotonic()
        self.rolled_back &= not outcome.ok
        if not repeated:
            self._log_outcome(outcome, why)
        return outcome

    async def rollback(self) -> Outcome:
        """Put the previous generation into effect, until the next change."""
        outcome = await self.reloads.rollback()
        if outcome.ok:
            self.last, self.last_at = outcome, time.monotonic()
            self.rolled_back = True
            self._log_outcome(outcome, "rollback")
        return outcome

    async def pause(self, *, begin: Pause | None = None, end: list[Pause] | None = None) -> Outcome:
        """Begin or end pauses; arguments as of `Pauses.change`."""
        outcome = await self.reloads.pause(partial(self.pauses.change, begin=begin, end=end))
        if outcome.ok:
            self._pausing.set()
        return outcome

    async def _end_pauses(self) -> None:
        """End each pause at its time."""
        while True:
            self._pausing.clear()
            end = self.pauses.next_end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pausing.wait(), end and max(end - self._loop.time(), 0.0))
            if expired := self.pauses.expired():
                outcome = await self.pause(end=expired)
                self._log_ended(expired if outcome.ok else ())
                for problem in outcome.errors:
                    log.error("a pause cannot be ended, retrying: %s", problem)
                    await asyncio.sleep(1.0)

    def _log_ended(self, ended: Iterable[Pause]) -> None:
        for pause in ended:
            self.journal.event({"event": "policy", "verb": "resume", **event_members(pause), "why": "its time was over"})

    def _log_outcome(self, outcome: Outcome, why: str) -> None:
        """Write a change or a failure to the event log and to the log."""
        if outcome.ok and not outcome.changed:
            return
        event: dict[str, Any] = {"event": "reload", "ok": outcome.ok, "why": why, "generation": outcome.generation}
        if outcome.errors:
            event["errors"] = list(map(str, outcome.errors[:MAX_LOGGED]))
        event["problems"] = len(outcome.problems)
        self.journal.event(event)
        for problem in outcome.errors[:MAX_LOGGED]:
            log.error("%s", problem)
        for problem in outcome.problems[:MAX_LOGGED]:
            log.warning("%s", problem)
        if (more := max(len(outcome.errors), len(outcome.problems)) - MAX_LOGGED) > 0:
            log.warning("%d more problems; `embargo check` shows all", more)
        if outcome.ok and self.generation is not None:
            image = self.generation.image
            log.info(
                "generation %d is in force: %d names and %d networks in its lists",
                outcome.generation,
                len(image),
                image.networks,
            )
            self.follower.watch()
        elif self.generation is not None:
            log.error("the reload failed; generation %d stays in force", outcome.generation)

    async def _reload_on_signal(self) -> None:
        await self.reload("SIGHUP")

    async def _summarise(self) -> None:
        """Log once a minute how many attempts were blocked. Single attempts are in the event log only."""
        before: Counter[str] = Counter()
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            now = await self.hits()
            if blocked := now - before:
                parts = (f"{name} {count}" for name, count in blocked.most_common(20))
                log.info("blocked in the last minute: %s", ", ".join(parts))
            before = now

    async def hits(self) -> Counter[str]:
        """Attempts per class, counted by resolvers and guardian."""
        await asyncio.gather(self.workers.stats(), self.firewall_stats())
        return self.counted("hits")

    def counted(self, kind: str) -> Counter[str]:
        """The counters of one kind over all processes since the start, as of their last reports. No counter ever falls."""
        total: Counter[str] = Counter()
        for child in (*self.workers.children, *([self.guarding.child] if self.guarding is not None else [])):
            total.update(child.counts.of(kind))
        return total

    async def firewall_stats(self) -> Guarded | None:
        """The state and counters of the firewall; None without a firewall, or if the guardian does not answer."""
        return await self.guarding.stats() if self.guarding is not None else None

    # ── events of the children ───────────────────────────────────────────────────────────────────────────────────────

    def _record_events(self, child: Child, told: list[Event], lost: int) -> None:
        if lost:
            self.journal.note_lost(lost)
        if told:
            self.journal.write(told)
