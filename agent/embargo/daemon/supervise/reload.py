"""Changes of the policy in force: the new generation is compiled in another process, then takes effect in steps with undo.

One change at a time. The firewall changes before the resolvers, so that no name is blocked while its addresses are still open.
When a step fails, it and the earlier steps are undone in reverse order, and the old generation stays in force everywhere: event
log, firewall, resolvers, link on disk, listening sockets. Old generations are removed after all steps, which cannot fail.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from embargo import config
from embargo.config import Config
from embargo.daemon.compile.orders import Compile, Compiled
from embargo.daemon.host import endpoints
from embargo.daemon.host.endpoints import ListenError, Sockets
from embargo.daemon.host.watched import Snapshot
from embargo.daemon.log.journal import Journal
from embargo.daemon.process.child import ChildError
from embargo.daemon.process.spawn import Spawn
from embargo.daemon.supervise import surroundings, workshop
from embargo.daemon.supervise.generations import IMAGE, REPORT, Generation, Store
from embargo.daemon.supervise.guarding import Guarding
from embargo.daemon.supervise.inforce import InForce
from embargo.daemon.supervise.pausing import Pauses
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Workers
from embargo.daemon.supervise.workshop import TemporaryError
from embargo.errors import ConfigError, EmbargoError, ImageError, Problem, describe

log = logging.getLogger(__name__)

STAYS = "the previous generation stays in force"
FIXED = ("state", "metrics", "dns.workers", "firewall.enabled")  # options that take effect at a start only
STEP_ERRORS = (ChildError, ListenError, OSError)  # the errors by which a step may fail


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a change. `problems`: bad lines that were skipped; they do not prevent it."""

    ok: bool
    changed: bool
    generation: int
    errors: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()
    temporary: bool = False  # it failed because of the machine, not of the files: a retry may succeed


async def _nothing() -> None:
    pass


class Step(NamedTuple):
    """One step of a change. `undo` reverts what `do` has changed, also if `do` failed half way."""

    name: str
    do: Callable[[], Awaitable[object]]
    undo: Callable[[], Awaitable[object]] = _nothing


async def carry_out(steps: Sequence[Step]) -> None:
    """Do the steps in order. When one fails, undo it and the earlier ones in reverse order, and raise its error."""
    for count, step in enumerate(steps, start=1):
        try:
            await step.do()
        except STEP_ERRORS:
            for done in reversed(steps[:count]):
                try:
                    await done.undo()
                except STEP_ERRORS as error:  # go on: the others can still be undone
                    log.critical("after a failed reload, %s could not be restored: %s", done.name, error)
            raise


class Reloads:
    """`snapshot` takes a snapshot of the watched files; `workers_wanted`: the number of resolvers in the configuration."""

    def __init__(
        self, in_force: InForce, store: Store, journal: Journal, sockets: Sockets, workers: Workers, guarding: Guarding | None,
        pauses: Pauses, spawn: Spawn, snapshot: Callable[[], Snapshot], workers_wanted: Callable[[], int],
        changing: asyncio.Lock,
    ) -> None:  # fmt: skip
        self._now = in_force
        self._store = store
        self._journal = journal
        self._sockets = sockets
        self._workers = workers
        self._guarding = guarding
        self._pauses = pauses
        self._spawn = spawn
        self._snapshot = snapshot
        self._workers_wanted = workers_wanted
        self._changing = changing
        self.since = time.monotonic()  # when the generation in force took effect

    # ── the changes ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def reload(self, *, first: bool = False) -> Outcome:
        """Read all files and put them into effect, or return why not. `first`: at a start, when nothing is in force yet."""
        async with self._changing:
            old = self._now.generation
            number = old.number if old is not None else 0
            files = self._snapshot()  # before anything is read, so that later changes cause another reload
            try:
                settings = self._now.settings if first else self._read_settings()
                around = await asyncio.to_thread(surroundings.look, settings)
                if loops := surroundings.asking_itself(settings, around):
                    raise ConfigError(loops)
                new, on_disk = await self._make(old, settings, around, files)
            except ConfigError as error:
                return Outcome(False, False, number, error.problems, temporary=isinstance(error, TemporaryError))
            except OSError as error:
                hint = STAYS if old is not None else ""
                return Outcome(False, False, number, (Problem("reload", 0, describe(error), hint),), temporary=True)
            return await self._put_in_force(old, self._pauses.applied_to(new), around, on_disk=on_disk)

    async def _put_in_force(self, old: Generation | None, new: Generation, around: Surroundings, *, on_disk: bool) -> Outcome:
        """`on_disk`: the generation was made by an earlier run; it is kept, as the next start may need it."""
        problems = new.report.problems
        if old is not None and self._same(old, new, around):
            self._now.around = around
            self._store.discard(new.number)
            new.close()
            return Outcome(True, False, old.number, (), problems)
        try:
            await self._switch(old, new, around)
        except STEP_ERRORS as error:
            if not on_disk:
                self._store.discard(new.number)
            new.close()
            if old is None and isinstance(error, EmbargoError):
                raise  # no generation is in force: the agent cannot start
            number = old.number if old is not None else 0
            return Outcome(False, False, number, (Problem("reload", 0, describe(error), STAYS),), temporary=True)
        return Outcome(True, True, new.number, (), problems)

    async def fall_back(self) -> Generation:
        """At a start whose lists cannot be used, or whose generation the resolvers refuse: put the last one before into effect.
        ImageError if there is none.
        """
        refused = self._now.generation
        number = self._store.current() if refused is None else self._store.before(refused.number)
        if not number:
            raise ImageError("there is no earlier generation")
        generation = self._pauses.applied_to(self._store.load(number, self._now.settings))
        if self._guarding is not None:
            await self._guarding.apply(generation, self._now.around)
        self._now.generation = generation
        if refused is not None:
            self._store.make_current(number)  # for the next start, if this one fails after all
            refused.close()
        return generation

    async def rollback(self) -> Outcome:
        """Put the previous generation into effect, until the next change."""
        async with self._changing:
            old = self._now.generation
            assert old is not None
            number = self._store.before(old.number)
            try:
                if not number:
                    raise ImageError("there is no earlier generation")
                new = self._pauses.applied_to(self._store.load(number, self._now.settings))
            except ImageError as error:
                return Outcome(False, False, old.number, (Problem("rollback", 0, str(error), ""),))
            return await self._replace(old, new, "rollback")

    async def pause(self, change: Callable[[], Callable[[], None]]) -> Outcome:
        """Begin or end pauses: the same generation with other switchboards. `change` does it and returns its undo."""
        async with self._changing:
            old = self._now.generation
            assert old is not None
            try:
                undo = change()
            except OSError as error:
                return Outcome(False, False, old.number, (Problem("pause", 0, describe(error), ""),))
            try:
                new = self._pauses.applied_to(old.again())
            except OSError as error:
                undo()
                return Outcome(False, False, old.number, (Problem("pause", 0, describe(error), ""),))
            outcome = await self._replace(old, new, "pause")
            if not outcome.ok:
                undo()
            return outcome

    async def _replace(self, old: Generation, new: Generation, what: str) -> Outcome:
        try:
            await self._switch(old, new, self._now.around)
        except STEP_ERRORS as error:
            new.close()
            return Outcome(False, False, old.number, (Problem(what, 0, describe(error), ""),))
        return Outcome(True, True, new.number)

    # ── making a generation ──────────────────────────────────────────────────────────────────────────────────────────

    def _read_settings(self) -> Config:
        """The configuration as its file has it now. ConfigError, also if an option of FIXED has changed."""
        file = self._now.settings.file
        try:
            with open(file, "rb") as opened:
                settings = config.parse(opened.read(), file)
        except OSError as error:
            raise TemporaryError([Problem(file, 0, f"it cannot be read: {error.strerror}", "")]) from None
        changed = [
            Problem(file, settings.line(*name.split(".")), f"{name} cannot change while the agent runs", "restart the agent")
            for name in FIXED
            if attrgetter(name)(self._now.settings) != attrgetter(name)(settings)
        ]
        if changed:
            raise ConfigError(changed)
        return settings

    async def _make(
        self, old: Generation | None, settings: Config, around: Surroundings, files: Snapshot
    ) -> tuple[Generation, bool]:
        """(the new generation, whether it was already on disk). ConfigError, OSError."""
        made_from = workshop.fingerprint(settings, around, files)
        material = workshop.material(settings, around, files)
        if old is None:
            if last := self._from_last_run(settings, made_from):
                return last, True
        elif old.report.material == material and (reused := self._with_same_image(old, settings, made_from)):
            return reused, False
        return await self._compile(settings, around, made_from, material), False

    def _from_last_run(self, settings: Config, made_from: str) -> Generation | None:
        """At a start: the generation of the last run, if it was made from the same files and settings."""
        with contextlib.suppress(ImageError):
            last = self._store.load(self._store.current(), settings)
            if last.report.fingerprint == made_from:
                return last
            last.close()
        return None

    def _with_same_image(self, old: Generation, settings: Config, made_from: str) -> Generation | None:
        """A generation with the image in force and other settings; None if the image is no longer on disk. ConfigError."""
        report = workshop.switched(old.report, old.image.classes, settings, made_from)
        try:
            return self._store.load(self._store.again(old.number, report), settings, verified=old.image.digest)
        except (ImageError, OSError):
            return None

    async def _compile(self, settings: Config, around: Surroundings, made_from: str, material: str) -> Generation:
        """A new generation from a compiler process. ConfigError, OSError."""
        try:
            directory = self._store.workshop()
        except OSError as error:
            raise TemporaryError([Problem(error.filename or settings.state.dir, 0, f"{error.strerror}", "")]) from None
        protected = tuple(surroundings.protected(settings, around))
        order = Compile(settings.text, settings.file, protected, made_from, material)
        answer = await workshop.run(self._spawn, order, [f"{directory}/{name}" for name in (IMAGE, REPORT)])
        assert isinstance(answer, Compiled)
        try:
            return self._store.load(self._store.number(directory), settings, verified=answer.digest)
        except (ImageError, OSError) as error:
            raise TemporaryError([Problem(settings.state.dir, 0, str(error), "is the disk full?")]) from None

    def _same(self, old: Generation, new: Generation, around: Surroundings) -> bool:
        """Whether only the number would change."""
        before = self._now.around
        return (
            old.report.digest == new.report.digest
            and (old.board, old.exempt) == (new.board, new.exempt)
            and old.settings == new.settings
            and InForce.resolver_settings(new, around) == InForce.resolver_settings(old, before)
            and (around.endpoints, around.system) == (before.endpoints, before.system)
            and surroundings.protected(new.settings, around) == surroundings.protected(old.settings, before)
        )

    # ── the switch ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _switch(self, old: Generation | None, new: Generation, around: Surroundings) -> None:
        """Put the new generation into effect. One of STEP_ERRORS if that fails: then the old one stays in force."""
        await carry_out(self._steps(old, new, around))
        if not around.upstreams:
            log.warning("no upstream is configured or known, so only blocked and local names are answered; set [dns] upstream")
        if old is None or old.number != new.number:
            self.since = time.monotonic()
        if old is not None:
            old.close()
        self._store.prune()

    def _steps(self, old: Generation | None, new: Generation, around: Surroundings) -> list[Step]:
        before = dataclasses.replace(self._now)
        steps = [
            Step("the event log", lambda: self._log_as(new.settings), lambda: self._log_as(before.settings)),
            Step("the firewall", lambda: self._guard(new, around), lambda: self._guard(old, before.around)),
            Step("the resolvers", lambda: self._judge_by(new.settings, around, new), lambda: self._judge_by_all_of(before)),
        ]
        if old is None or old.number != new.number:  # not for a pause, which must be able to end while the disk is full
            linked = self._store.current()
            steps.append(Step("the link to the generation", lambda: self._link(new.number), lambda: self._link(linked)))
        if old is not None:  # the last step: it closes sockets, which are opened anew if a resolver does not come back
            moved = [False]
            steps.append(
                Step("the listening sockets", lambda: self._listen(around, moved), lambda: self._listen(before.around, moved))
            )
        return steps

    async def _log_as(self, settings: Config) -> None:
        self._journal.configure(settings.log.events, settings.log.max_bytes, settings.log.keep)

    async def _guard(self, generation: Generation | None, around: Surroundings) -> None:
        if self._guarding is not None and generation is not None:
            await self._guarding.apply(generation, around)

    async def _judge_by(self, settings: Config, around: Surroundings, generation: Generation | None) -> None:
        """Set what is in force before the resolvers are told, so that one that starts meanwhile starts with it."""
        self._now.settings, self._now.around, self._now.generation = settings, around, generation
        if generation is not None:
            await self._workers.adopt(generation, InForce.resolver_settings(generation, around))

    async def _judge_by_all_of(self, before: InForce) -> None:
        await self._judge_by(before.settings, before.around, before.generation)

    async def _listen(self, around: Surroundings, moved: list[bool]) -> None:
        """`moved`: whether the resolvers have to start anew, now or when this is undone."""
        moved[0] |= self._sockets.follow(around.endpoints, self._workers_wanted() or 1, around.interfaces)
        endpoints.warn(self._now.settings, around.interfaces)
        if moved[0]:
            await self._workers.renew()

    async def _link(self, number: int) -> None:
        if number:  # 0: the first start, which had no link before
            self._store.make_current(number)
