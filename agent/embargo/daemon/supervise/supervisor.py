"""Starts the processes, runs the reloads in order, keeps the generations. It parses nothing that comes from the network.

One reload at a time: compile aside, verify, firewall, resolvers, link. The kernel switches before the resolvers; when a
step fails, those already taken are undone by applying the old generation again, and the reason is told to whoever asked,
to `status` and to the event log.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import embargo
from embargo import config
from embargo.config import Config
from embargo.daemon.compile import sources
from embargo.daemon.guard import netlink
from embargo.daemon.guard.netlink import NEEDS
from embargo.daemon.host import endpoints
from embargo.daemon.host.endpoints import ListenError, Sockets
from embargo.daemon.log.journal import Journal
from embargo.daemon.process import notify, privileges
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.child import Child, ChildError
from embargo.daemon.process.spawn import HERE, Spawn
from embargo.daemon.supervise import premises, surroundings, workshop
from embargo.daemon.supervise.follower import AGAIN, Follower
from embargo.daemon.supervise.generations import Generation, Store
from embargo.daemon.supervise.health import Health
from embargo.daemon.supervise.pausing import Pauses, told_of
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Settings, Workers
from embargo.daemon.supervise.workshop import Hindered
from embargo.errors import ConfigError, EmbargoError, FirewallError, ImageError, Problem, said
from embargo.firewall.table import TABLE
from embargo.lists import pauses
from embargo.lists.pauses import Pause
from embargo.lists.policy import Class

log = logging.getLogger(__name__)

NETLINK = "nftables"  # the name of the netlink socket in systemd's store
STAYS = "the generation before stays in force"
LEDGERS = "ledgers"  # in [state] dir: a page for each child that counts attempts
LEARNT = "learnt.jsonl"  # in [state] dir: the guardian's memory of addresses
APPLY = 60.0  # seconds for the firewall to take a generation
TOLD = 20  # problems told one by one; a list of another kind may have as many as lines
FIXED = ("state", "metrics", "dns.workers", "firewall.enabled")  # of the configuration: read at a start alone
MAX_WORKERS = 4  # of workers = "auto": more take memory and win little on a gateway


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reload."""

    ok: bool
    changed: bool
    generation: int
    errors: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()
    hindered: bool = False  # not by what the files say: the same may succeed later


class Supervisor:
    def __init__(self, settings: Config, around: Surroundings, spawn: Spawn = HERE) -> None:
        """`spawn`: how resolvers and compilers begin; the guardian, who shares our capabilities, is always a child."""
        self.settings = settings
        self.spawn = spawn
        self.around = around
        self.store = Store(settings.state.dir)
        self.journal = Journal(settings.log.events, settings.log.max_bytes, settings.log.keep)
        self.sockets = Sockets()
        self._netlink: socket.socket | None = None
        self._inherit()
        self._ledgers = f"{settings.state.dir}/{LEDGERS}"
        self.workers = Workers(self._in_force, self._news, self._introduce, self._ledgers, spawn)
        self._marks = Marks.make()
        self._marks_to_read = Marks.for_reading(self._marks)
        self.pauses = Pauses(f"{settings.state.dir}/{sources.LOCAL}", asyncio.get_running_loop().time)
        self._pausing = asyncio.Event()
        self.guardian = Child("guardian", "guardian", self._news, self._ledgers) if settings.firewall.enabled else None
        self.generation: Generation | None = None
        self.started = time.time()
        self.since = self.started
        self.last: Outcome | None = None
        self.last_at = 0.0
        self.guardian_restarts = 0
        self._begun = self._ending = False
        self._rules_gone = False
        self._failure: BaseException | None = None
        self._lock = asyncio.Lock()
        self._stop = asyncio.Event()
        self.follower = Follower(self)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def _inherit(self) -> None:
        """Take over what systemd has kept of an earlier run, or opened for us."""
        listening = []
        for name, fd in notify.inherited():
            if name == NETLINK:
                self._netlink = socket.socket(fileno=fd)
            else:
                listening.append((name, fd))
        for name in self.sockets.adopt(listening):
            log.warning("a socket that systemd passed on is of no use and is closed: %s", name)

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
        pause = premises.pause(self.settings.state.runtime) if notify.looked_after() else 0.0
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), pause)

    async def _start(self) -> None:
        choosing = privileges.CAP_SETUID in privileges.permitted() or self.spawn.gives_user
        self.workers.user = premises.user(self.settings.state.user) if self._worker_count() and choosing else None
        try:
            self.sockets.follow(self.around.endpoints, self._worker_count() or 1, self.around.interfaces)
        except ListenError as error:
            raise StartError(str(error)) from None
        if self.guardian is not None:
            await self._start_guardian(self.guardian)
        else:
            premises.warn_of_old_rules()
        try:
            self._tell_over(self.pauses.recall())
        except ValueError as error:
            log.error("%s", error)
        outcome = await self.reload("start")
        if self.generation is None:
            await self._start_from_last(outcome)
        expected = self.workers.uid
        try:
            await self.workers.run(self.sockets, self._worker_count())
            if self.workers.uid != expected:  # whose questions pass is another
                assert self.generation is not None
                await self._guard(self.generation, self.around)
        except ChildError as error:
            raise StartError(str(error)) from None
        privileges.settle()

    async def _start_guardian(self, guardian: Child) -> None:
        if privileges.CAP_NET_ADMIN not in privileges.permitted():
            raise FirewallError("firewall", NEEDS)
        if self._netlink is None:
            with privileges.raised(privileges.CAP_NET_ADMIN):
                self._netlink = netlink.opened()
            notify.store(NETLINK, [self._netlink.fileno()])
        await self._begin_guardian(guardian)
        self._task(self._keep_guardian(guardian), "keeper of the guardian")

    async def _begin_guardian(self, guardian: Child) -> None:
        """Start it with the socket that the table belongs to, which outlives it here and us in systemd's store."""
        assert self._netlink is not None
        await guardian.start()
        await guardian.ask("use", [self._netlink.fileno()])

    async def _start_from_last(self, outcome: Outcome) -> None:
        """The lists cannot be used as they are: the generation that was in force when the agent last ran stays in force."""
        number = self.store.current()
        try:
            if not number:
                raise ImageError("there is none")
            generation = self.pauses.on(self.store.load(number, self.settings))
        except ImageError:
            if outcome.hindered:  # that may be over at the next try; what files say is not
                raise StartError("\n".join(map(str, outcome.errors))) from None
            raise ConfigError(outcome.errors) from None
        await self._guard(generation, self.around)
        self.generation = generation
        log.error("the lists cannot be used; generation %d, the last good one, is in force", number)

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
        rules = "keep" if again else self._rules_that_stay()
        if rules != "keep":  # nothing may be led to sockets that nobody reads any longer
            await self._stop_guardian(rules)
        await self.workers.stop()
        await self._stop_guardian(rules)
        self.sockets.close()
        if self.generation is not None:
            self.journal.event({"event": "stop", "generation": self.generation.number})
        self.journal.close()

    async def _stop_guardian(self, rules: str) -> None:
        """End the guardian; what is to go from the kernel goes, also when it has just died."""
        self._ending = True
        guardian = self.guardian
        if guardian is None:
            return
        try:
            for _ in range(2):  # one that dies while it is asked has done nothing
                if not guardian.running and rules != "keep" and not self._rules_gone and self._netlink is not None:
                    await self._begin_guardian(guardian)
                self._rules_gone = await guardian.stop(rules=rules) or self._rules_gone
        except (ChildError, OSError) as error:
            log.critical("the rules stay in the kernel: %s; nft delete table inet %s removes them", error, TABLE)

    def _rules_that_stay(self) -> str:
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

    async def _keep_guardian(self, guardian: Child) -> None:
        """The rules outlive the guardian; a new one takes them over by applying the generation in force again."""
        while True:
            status = await guardian.wait()
            if self._ending or self._stop.is_set():
                return
            self.guardian_restarts += 1
            log.error("the guardian ended with status %d; it is started again, the rules stayed in force", status)
            self.journal.event({"event": "firewall", "what": "guardian restarted", "status": status})
            await asyncio.sleep(min(0.1 * self.guardian_restarts, 10.0))
            if self._ending:
                return
            try:
                await self._begin_guardian(guardian)
                async with self._lock:
                    if self.generation is not None:
                        await self._guard(self.generation, self.around)
                for resolver in self.workers.children:
                    await self._introduce(resolver)
            except (ChildError, OSError) as error:
                log.error("%s", error)
                guardian.kill()

    # ── what a worker starts with ────────────────────────────────────────────────────────────────────────────────────

    def _worker_count(self) -> int:
        if self.settings.dns.workers is None:
            return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        return self.settings.dns.workers

    def _in_force(self) -> tuple[Generation, Settings]:
        assert self.generation is not None
        return self.generation, self._resolver_settings(self.generation)

    def _resolver_settings(self, generation: Generation) -> Settings:
        return surroundings.resolver_settings(generation.settings, self.around, generation.report)

    # ── reload ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def reload(self, why: str) -> Outcome:
        """Read everything again and put it in force, or say why not and leave what is in force there."""
        async with self._lock:
            outcome = await self._reload(why)
        told = why == AGAIN and self.last is not None and self.last.errors == outcome.errors
        self.last, self.last_at = outcome, time.time()
        if not told:
            self._tell(outcome, why)
        return outcome

    async def rollback(self) -> Outcome:
        """The generation before the one in force back in force, until the next change."""
        async with self._lock:
            old = self.generation
            assert old is not None
            number = self.store.before(old.number)
            try:
                if not number:
                    raise ImageError("there is no generation before this one")
                new = self.pauses.on(self.store.load(number, self.settings))
            except ImageError as error:
                return Outcome(False, False, old.number, (Problem("rollback", 0, str(error), ""),))
            try:
                await self._switch(old, new, self.around)
            except (ChildError, ListenError, OSError) as error:
                new.close()
                return Outcome(False, False, old.number, (Problem("rollback", 0, said(error), ""),))
        outcome = self.last = Outcome(True, True, number)
        self.last_at = time.time()
        self._tell(outcome, "rollback")
        return outcome

    async def pause(self, **change: Any) -> Outcome:
        """Begin or end pauses (`Pauses.change`): the same generation, judged by other switchboards."""
        async with self._lock:
            old = self.generation
            assert old is not None
            undo = self.pauses.change(**change)
            new = None
            try:
                new = self.pauses.on(dataclasses.replace(old, fd=os.dup(old.fd)))
                await self._switch(old, new, self.around)
            except (ChildError, ListenError, OSError) as error:
                if new is not None:
                    new.close()
                undo()
                return Outcome(False, False, old.number, (Problem("pause", 0, said(error), ""),))
        self._pausing.set()
        return Outcome(True, True, old.number)

    async def _end_pauses(self) -> None:
        """Each when its time has come."""
        while True:
            self._pausing.clear()
            end = self.pauses.next_end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pausing.wait(), end and max(end - self._loop.time(), 0.0))
            if over := self.pauses.over():
                outcome = await self.pause(end=over)
                self._tell_over(over if outcome.ok else ())
                for problem in outcome.errors:
                    log.error("%s; it is tried again", problem)
                    await asyncio.sleep(1.0)

    def _tell_over(self, ended: Iterable[Pause]) -> None:
        for each in ended:
            self.journal.event({"event": "policy", "verb": "resume", **told_of(each), "why": "its time was over"})

    async def _reload(self, why: str) -> Outcome:
        old = self.generation
        number = old.number if old is not None else 0
        seen = self.follower.look()  # before anything is read: a later change is another reload
        try:
            settings = self._read_settings() if why != "start" else self.settings
            around = await asyncio.to_thread(surroundings.look, settings)
            if loops := surroundings.asking_itself(settings, around):
                raise ConfigError(loops)
            made_from = workshop.fingerprint(settings, around, seen)
            last = self._last_one(settings, made_from) if old is None else None
            new = last or self._switched(old, settings, around, made_from)
            new = new or await self._compile(settings, around, made_from)
        except ConfigError as error:
            return Outcome(False, False, number, error.problems, hindered=isinstance(error, Hindered))
        except OSError as error:
            hint = STAYS if old is not None else ""
            return Outcome(False, False, number, (Problem("reload", 0, said(error), hint),), hindered=True)
        new = self.pauses.on(new)
        problems = tuple(Problem(*p) for p in new.report["problems"])
        if old is not None and self._same(old, new, around):
            self.around = around
            self.store.discard(new.number)
            new.close()
            return Outcome(True, False, number, (), problems)
        try:
            await self._switch(old, new, around)
        except (ChildError, ListenError, OSError) as error:
            if last is None:  # else it was there before, and the next start may have nothing else
                self.store.discard(new.number)
            new.close()
            if old is None and isinstance(error, EmbargoError):
                raise  # nothing is in force that could stay: the agent does not start
            return Outcome(False, False, number, (Problem("reload", 0, said(error), STAYS),), hindered=True)
        return Outcome(True, True, new.number, (), problems)

    def _read_settings(self) -> Config:
        try:
            with open(self.settings.file, "rb") as file:
                settings = config.parse(file.read(), self.settings.file)
        except OSError as error:
            raise Hindered([Problem(self.settings.file, 0, f"it cannot be read: {error.strerror}", "")]) from None
        fixed = [
            Problem(settings.file, 0, f"{name}: it cannot change while the agent runs", "restart the agent")
            for name in FIXED
            if attrgetter(name)(self.settings) != attrgetter(name)(settings)
        ]
        if fixed:
            raise ConfigError(fixed)
        return settings

    def _last_one(self, settings: Config, made_from: str) -> Generation | None:
        """At a start: the generation that was in force before, if it was made from the very same."""
        with contextlib.suppress(ImageError):
            last = self.store.load(self.store.current(), settings)
            if last.report.get("fingerprint") == made_from:
                return last
            last.close()
        return None

    def _switched(self, old: Generation | None, settings: Config, around: Surroundings, made_from: str) -> Generation | None:
        """The image in force under other settings, if it would be compiled from the very same."""
        if old is None or old.report.get("material") != workshop.material(settings, around, self.follower.seen):
            return None
        report = workshop.switched(old.report, old.image.classes, settings) | {"fingerprint": made_from}
        try:
            return self.store.load(self.store.again(old.number, report), settings, verified=old.image.digest)
        except (ImageError, OSError):  # it is not on the disk any more
            return None

    async def _compile(self, settings: Config, around: Surroundings, made_from: str) -> Generation:
        """A new generation on disk and in memory, not yet in force."""
        try:
            directory = self.store.workshop()
        except OSError as error:
            raise Hindered([Problem(error.filename or settings.state.dir, 0, f"{error.strerror}", "")]) from None
        material = workshop.material(settings, around, self.follower.seen)
        order = workshop.order(settings, around) | {"directory": directory, "fingerprint": made_from, "material": material}
        answer = await workshop.run(self.spawn, order)
        if "errors" in answer:
            raise ConfigError([Problem(*p) for p in answer["errors"]])
        try:
            return self.store.load(self.store.number(directory), settings, verified=answer["digest"])
        except (ImageError, OSError) as error:
            raise Hindered([Problem(settings.state.dir, 0, str(error), "is the disk full?")]) from None

    def _same(self, old: Generation, new: Generation, around: Surroundings) -> bool:
        """Would nothing change but the number?"""
        settings = surroundings.resolver_settings(new.settings, around, new.report)
        return (
            old.report["digest"] == new.report["digest"]
            and (old.board, old.exempt) == (new.board, new.exempt)
            and old.settings == new.settings
            and settings == self._resolver_settings(old)
            and (around.endpoints, around.system) == (self.around.endpoints, self.around.system)
            and surroundings.protected(new.settings, around) == surroundings.protected(old.settings, self.around)
        )

    async def _switch(self, old: Generation | None, new: Generation, around: Surroundings) -> None:
        """The steps of a change, undone in the other order when one fails."""
        before = self.settings, self.around
        logged = new.settings.log
        try:
            self.journal.configure(logged.events, logged.max_bytes, logged.keep)
            await self._guard(new, around)
            self.settings, self.around, self.generation = new.settings, around, new
            if old is not None:
                await self.workers.adopt(new, self._resolver_settings(new))
                if self.sockets.follow(around.endpoints, self._worker_count() or 1, around.interfaces):
                    await self.workers.renew()
            if old is None or old.number != new.number:  # a pause writes nothing here: it ends on a full disk too
                self.store.make_current(new.number)
        except (ChildError, ListenError, OSError):
            self.settings, self.around = before
            self.generation = old
            if old is not None:
                await self._undo(old)
            raise
        if not around.upstreams:
            log.warning("there is no upstream: names that are not blocked cannot be answered; set [dns] upstream")
        if old is None or old.number != new.number:
            self.since = time.time()
        if old is not None:
            old.close()

    async def _undo(self, old: Generation) -> None:
        """Each half by itself: one that cannot be put back is no reason to leave the other."""
        logged = old.settings.log
        with contextlib.suppress(OSError):
            self.journal.configure(logged.events, logged.max_bytes, logged.keep)
        for half in (self.workers.adopt(old, self._resolver_settings(old)), self._guard(old, self.around)):
            try:
                await half
            except ChildError as error:
                log.critical("the old generation could not be put back everywhere: %s", error)

    async def _guard(self, generation: Generation, around: Surroundings) -> None:
        """The firewall's part of a generation."""
        if self.guardian is None:
            return
        settings = generation.settings
        firewall = settings.firewall
        everything, some = _exempt(generation)
        clients = [each.network for each in around.interfaces if each.name in firewall.lan]
        await self.guardian.ask(
            "apply", [generation.fd], APPLY, generation=generation.number, lan=list(firewall.lan), clients=clients,
            switchboard=list(map(int, generation.board.actions)), intercept_port=endpoints.intercept_port(settings),
            fail=firewall.fail, log_group=firewall.log_group, learn=firewall.learn, ct_mark=firewall.ct_mark,
            protect=firewall.protect, protected=[network for network, _ in surroundings.protected(settings, around)],
            state=f"{settings.state.dir}/{LEARNT}", names=_clients(generation.report["hosts"]),
            own=surroundings.own_questions(settings, around, self.workers.uid), system=[each.address for each in around.system],
            exempt=some, **{"except": [*firewall.except_, *everything]},
        )  # fmt: skip

    async def _introduce(self, resolver: Child) -> None:
        """Let a resolver and the guardian speak to each other; without that, nothing is learnt, and nobody fails."""
        if self.guardian is None or not self.guardian.running or not resolver.running:
            return  # whoever comes later is introduced then
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            try:
                await self.guardian.ask("meet", [ours.fileno(), self._marks])
                await resolver.ask("meet", [theirs.fileno(), self._marks_to_read])
            except ChildError as error:
                log.error("%s", error)

    def _tell(self, outcome: Outcome, why: str) -> None:
        """A reload that changed something or failed is an event and a message."""
        if outcome.ok and not outcome.changed:
            return
        event: dict[str, Any] = {"event": "reload", "ok": outcome.ok, "why": why, "generation": outcome.generation}
        if outcome.errors:
            event["errors"] = list(map(str, outcome.errors[:TOLD]))
        event["problems"] = len(outcome.problems)
        self.journal.event(event)
        for problem in outcome.errors[:TOLD]:
            log.error("%s", problem)
        for problem in outcome.problems[:TOLD]:
            log.warning("%s", problem)
        if (more := max(len(outcome.errors), len(outcome.problems)) - TOLD) > 0:
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
            await asyncio.sleep(60.0)
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
        """What all processes have counted since our start, by what they said last: it never falls."""
        found: Counter[str] = Counter()
        for child in (*self.workers.children, self.guardian):
            if child is not None:
                found.update(child.counts.of(kind))
        return found

    async def firewall_stats(self) -> dict[str, Any]:
        if self.guardian is None or not self.guardian.running:
            return {}
        try:
            stats = await self.guardian.ask("stats", seconds=2.0)
        except ChildError:
            return {}
        hits = {("hits", name): count for name, count in stats["hits"].items()}
        self.guardian.counts.heard(hits | {("firewall", name): stats[name] for name in ("restored", "cut")})
        return stats

    # ── news from the children ───────────────────────────────────────────────────────────────────────────────────────

    def _news(self, child: Child, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "events":
                lines: bytes = message["lines"]
                if message["lost"]:
                    self.journal.note_lost(message["lost"])
                if lines:
                    self.journal.lines(lines, lines.count(b"\n"))


def _exempt(generation: Generation) -> tuple[list[str], list[tuple[str, list[Class]]]]:
    """For the firewall: clients for whom nothing acts, and those for whom these classes do not."""
    everything, some = [], []
    for each in generation.exempt:
        if any(each.board.actions):
            some.append((each.network, pauses.passed(each, generation.board, generation.image.classes)))
        else:
            everything.append(each.network)
    return everything, some


def _clients(hosts: dict[str, list[str]]) -> dict[str, str]:
    """Local records the other way: names of clients by address."""
    return {address: name for name, addresses in reversed(hosts.items()) for address in addresses}
