"""The only process that may change the firewall. It parses netlink, and bounded messages of our own processes.

The supervisor sends what is to be enforced: the policy image as a descriptor, the switchboard, the firewall's settings. The
guardian lays the table down (`Guardian`), keeps learnt addresses in it (`learnt`), judges open flows again (`flows`) and
explains the drops that the kernel logs (`droplog`). When the supervisor is gone it ends and leaves the rules where they are:
what the kernel does while no guardian runs stands in the rules.

One writer. All that is sent to the kernel is sent from here: a large change in steps, and between two of them what cannot
wait: an address learnt, freed or let through.
"""

import asyncio
import contextlib
import dataclasses
import gc
import ipaddress
import mmap
import os
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from embargo import events, verdicts
from embargo.daemon.guard import conntrack, orders
from embargo.daemon.guard.droplog import Attribution, DropLog
from embargo.daemon.guard.enforced import Enforced
from embargo.daemon.guard.flows import Flows
from embargo.daemon.guard.learnt import LearntAddresses
from embargo.daemon.process import channel, privileges
from embargo.daemon.process.channel import Channel, Events, Failed, Received
from embargo.daemon.process.outbox import Ledger, Outbox
from embargo.daemon.process.sightings import TO_GUARDIAN
from embargo.errors import FirewallError
from embargo.firewall import nft, ruleset, spans
from embargo.firewall.nft import Shape
from embargo.firewall.ruleset import RESERVED, Spec
from embargo.firewall.table import TABLE, Begins, Mark
from embargo.lists.image import Image
from embargo.records import Done
from embargo.report import AboutAddress

FAILED = 70  # the exit status of a guardian that met an error it has no answer to
HEAL_SECONDS = 0.2  # between two looks at the kernel's generation
EARLY_SECONDS = 2.0  # by which the kernel may end an element before the book does
LARGE_ELEMENTS = 100_000  # a larger ruleset is counted through at most once in
COUNT_SECONDS = 10.0
RECONCILE_SECONDS = 10.0  # between two comparisons of the kernel's counters with the records of its log
RECORD_SECONDS = 0.3  # after which the record of a packet has come
SHARING_SECONDS, ALONE_SECONDS = 0.0005, sys.getswitchinterval()  # that a thread keeps the interpreter when another waits


class Guardian:
    """Carries out the supervisor's orders, and keeps the rules in force."""

    def __init__(self, supervisor: Channel, ledger: Ledger) -> None:
        self._channel = supervisor
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._enforced = Enforced()
        self._flows = Flows(self._enforced, lambda: self._learnt.refused(), self._spawn, self._note_trouble)
        self._learnt = LearntAddresses(self._enforced, self._flows.judge_soon, self._note_trouble)
        self._outbox = Outbox(self._send_events, ledger)
        self._drops = DropLog(self._outbox, self._learnt.book)
        self._shape: Shape | None = None
        self._work_out: Callable[[int], Spec] = lambda generation: Spec(generation, (), {})
        self._counted_at = 0.0
        self._patterns: bool | None = None  # whether this kernel knows a rule that looks into packets; None: not tried yet
        self._marking: bool | None = None  # whether it knows one that marks connections
        self._trouble = ""
        self.restored = 0
        self.flowtables: list[str] = []
        self._heal()
        self._spawn(self._learnt.save_always())
        self._loop.call_later(RECONCILE_SECONDS, self._reconcile)

    def send(self, record: object, number: int | None = None) -> bool:
        """Send this to the supervisor. False: its channel is full, try again."""
        try:
            self._channel.send(record, number=number)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the supervisor is gone
        return True

    def _send_events(self, lines: bytes, lost: int, attempts: int) -> bool:
        return self.send(Events(lost, attempts, lines))

    def _tell(self, what: str, **members: Any) -> None:
        self._outbox.add(events.encode({"event": "firewall", "what": what, **members}, time.time()), 0)

    def use(self, sock: socket.socket) -> None:
        """Speak to the kernel by this socket from now on."""
        self._enforced.use(sock)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def apply(self, order: orders.Apply, fd: int) -> orders.Applied:
        """Put a generation in force. FirewallError leaves the old one there. `fd`: of the image, closed here."""
        board, kernel = order.board, self._enforced.kernel
        async with self._enforced.changing, _sharing_the_interpreter():
            try:
                image = await asyncio.to_thread(Image, memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)))
            finally:
                os.close(fd)
            self._drops.listen(order.log_group)
            self._learnt.recall(order.memory)
            kernel.claim(TABLE, alone=order.protect)
            work_out = self._working_out(order, image)
            wanted = await asyncio.to_thread(work_out, self._next_generation())  # a million elements take a second
            wanted = dataclasses.replace(wanted, judgement=kernel.judgement(TABLE) + 1)
            elements = sum(map(spans.count, wanted.ranges.values()))
            self._loop.call_later(RECORD_SECONDS, self._compare, self._counted())  # of classes that may end here
            actions = {str(class_): action for class_, action in wanted.classes}
            self._drops.explain_by(Attribution(order.generation, image, actions, order.clients_by_address))
            self._flows.clients = tuple(map(ipaddress.ip_network, order.clients))
            await self._replace(wanted, partial(self._learnt.judge_by, image, board, order.protected, learn=order.learn))
            self._work_out = work_out
            self._drops.begin(self._counted())
        if order.fail == "open":
            self.alive()
        self.flowtables = kernel.flowtables()
        self._spawn(self._flows.delete(verdicts.blocks(image, board)))
        self._spawn(self._flows.prepare_next())
        return orders.Applied(elements)

    def _working_out(self, order: orders.Apply, image: Image) -> Callable[[int], Spec]:
        """A function that gives the Spec of an order, with this number for its sets."""
        return partial(
            ruleset.spec, image, order.board, lan=order.lan, except_=order.excepted, exempt=order.exempt, fail=order.fail,
            intercept_port=order.intercept_port, log_group=order.log_group, ct_mark=self._ct_mark(order),
            patterns=self._can_look_inside(), own=order.own, system=order.system,
        )  # fmt: skip

    async def _replace(self, wanted: Spec, decide: Callable[[], None]) -> None:
        """Put this in force. `decide` is called just before, and then the learnt addresses are added."""
        mark = await self._flows.free_value_of(wanted)
        table = await asyncio.to_thread(ruleset.build, wanted)

        def last() -> list[nft.Message]:
            decide()
            return nft.learnt_elements(wanted.generation, TABLE, self._learnt.elements(wanted))

        def switched() -> None:  # without the ranges, of which there may be a million
            self._enforced.spec, self._shape = dataclasses.replace(wanted, ranges={}), nft.shape(table)
            self._flows.in_use(mark)
            self._learnt.mark_all()

        steps = self._enforced.kernel.replacing(table, last, switched)
        with contextlib.closing(steps):
            for pause in steps:
                await asyncio.sleep(pause)
        self._enforced.look()

    def _next_generation(self) -> int:
        """The number in the names of the new sets. Not the order's: a new guardian applies the same generation again."""
        numbers = [name.rpartition("_")[2] for name in self._enforced.kernel.sets(TABLE)]
        return 1 + max((int(number) for number in numbers if number.isascii() and number.isdecimal()), default=0)

    def _ct_mark(self, order: orders.Apply) -> int:
        """The bits of the connection mark to use; 0 where the kernel would track connections because of our rules alone."""
        mask = order.ct_mark
        if mask and self._marking is None:
            self._marking = self._enforced.kernel.can(Mark(mask, mask))
        tracked = (order.intercept_port and order.lan) or conntrack.in_use()
        return mask if tracked and self._marking else 0

    def _can_look_inside(self) -> bool:
        if self._patterns is None:  # from Linux 5.17 on
            self._patterns = self._enforced.kernel.can(*(Begins(start) for start in ruleset.HTTPDNS))
        return self._patterns

    def alive(self) -> None:
        """Resolvers answer: for the next seconds port 53 may be redirected (fail = "open")."""
        spec = self._enforced.spec
        if spec is not None and spec.lan:
            self._enforced.kernel.transact(nft.alive(TABLE, (*spec.lan, RESERVED)))

    def intact(self) -> bool:
        """Whether our rules are in force, by what the kernel says. While they are being replaced the old ones are."""
        return self._enforced.changing.locked() or (self._shape is not None and self._enforced.kernel.intact(self._shape))

    def about(self, address: bytes) -> AboutAddress:
        """What is remembered of an address beside the lists."""
        passing = address in self._enforced.kernel.keys(TABLE, "allow4" if len(address) == 4 else "allow6")
        return self._learnt.about(address, passing=passing)

    def stats(self) -> orders.Guarded:
        """What is in force and was counted."""
        kernel = self._enforced.kernel
        return orders.Guarded(
            counters=kernel.counters(TABLE), present=kernel.has_table(TABLE), owned=kernel.owned, restored=self.restored,
            cut=self._flows.cut, flowtables=tuple(self.flowtables), patterns=bool(self._patterns),
            hits=dict(self._drops.hits), noted=self._drops.noted, lost=self._drops.lost, learning=self._learnt.stats(),
        )  # fmt: skip

    def meet(self, resolver: Channel, marks: int) -> None:
        """A resolver is at the other end of this channel. `marks`: descriptor of the page of marks."""
        self._learnt.meet(resolver, marks)

    async def stop(self, rules: str) -> None:
        """`rules`: keep all of them, keep the block sets but not the redirect, or remove everything."""
        counted = self._counted()
        await asyncio.sleep(RECORD_SECONDS if counted else 0)
        self._compare(counted)
        async with self._enforced.changing:
            self._enforced.spec = None  # nothing is restored any more
            if rules == "remove":
                self._enforced.kernel.remove(TABLE)
            elif rules == "unredirect":
                self._enforced.kernel.transact([nft.flush_set(TABLE, "alive")])
        await self._learnt.stop()
        self._drops.flush()
        await self._outbox.empty(1.0)

    # ── other processes that change the ruleset ──────────────────────────────────────────────────────────────────────

    def _heal(self) -> None:
        """Lay our rules down again when another process flushed them. Asking for the generation costs microseconds."""
        self._loop.call_later(HEAL_SECONDS, self._heal)
        enforced, kernel = self._enforced, self._enforced.kernel
        if enforced.spec is None or self._shape is None or enforced.changing.locked():
            return
        try:
            generation = kernel.generation_id()
            if generation == enforced.kernel_generation:
                return
            if not kernel.intact(self._shape) or (not kernel.owned and not self._elements_there(self._shape)):
                self._spawn(self._restore())
            enforced.kernel_generation = generation
            self.flowtables = kernel.flowtables()
        except FirewallError as error:
            self._note_trouble(f"table missing: {error}")

    def _elements_there(self, shape: Shape) -> bool:
        """Whether all elements are there. Counting many takes a while, so not each time that another table changes."""
        now = self._loop.time()
        if shape.elements > LARGE_ELEMENTS and now < self._counted_at + COUNT_SECONDS:
            return True
        self._counted_at = now
        return self._enforced.kernel.whole(shape, learnt=self._learnt.book.lasting(now + EARLY_SECONDS))

    async def _restore(self) -> None:
        kernel = self._enforced.kernel
        async with self._enforced.changing:
            before = self._enforced.spec
            if before is None:
                return
            what = "rules changed" if kernel.has_table(TABLE) else "table removed"
            try:
                kernel.claim(TABLE, alone=kernel.owned)
                again = await asyncio.to_thread(self._work_out, self._next_generation())
                await self._replace(dataclasses.replace(again, judgement=before.judgement + 1), lambda: None)
            except FirewallError as error:
                self._enforced.kernel_generation = 0  # so that the next look tries again
                self._note_trouble(f"{what} by others, not restored: {error}")
                return
        self.restored += 1
        self._trouble = ""
        self._tell(f"{what} by others, restored")

    def _note_trouble(self, what: str) -> None:
        """Report a failure as an event, once for as long as it lasts."""
        if what != self._trouble:
            self._trouble = what
            self._tell(what)

    # ── the drop log ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reconcile(self) -> None:
        """Compare the kernel's counters with the records of its log, as soon as the records of these packets have come."""
        self._loop.call_later(RECONCILE_SECONDS, self._reconcile)
        self._loop.call_later(RECORD_SECONDS, self._compare, self._counted())

    def _compare(self, counted: dict[str, int]) -> None:
        self._drops.read()
        self._drops.reconcile(counted)

    def _counted(self) -> dict[str, int]:
        """Packets by class, as the kernel's counters say."""
        spec = self._enforced.spec
        if spec is None:
            return {}
        try:
            counters = self._enforced.kernel.counters(TABLE)
        except FirewallError as error:
            self._note_trouble(str(error))
            return {}
        classes = [*(class_ for class_, _ in spec.classes), *(each.class_ for each in ruleset.LEARNT.values())]
        classes += ruleset.LISTED.values()
        names_ = {ruleset.chain_name(class_): str(class_) for class_ in classes}
        return {names_[name]: packets for name, (packets, _) in counters.items() if name in names_}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FirewallError):
            self._note_trouble(str(error))
        elif error is not None:  # the supervisor starts another guardian, and the rules stay meanwhile
            traceback.print_exception(error)
            os._exit(FAILED)


@contextlib.asynccontextmanager
async def _sharing_the_interpreter() -> AsyncIterator[None]:
    """A large ruleset is worked out in a thread while resolvers ask about addresses, and clients wait for these answers.

    A thread gets the interpreter after half a millisecond, not five, since an answer needs it several times. No garbage is
    collected meanwhile: columns of addresses form no cycles, and a search through them takes long.
    """
    gc.disable()
    sys.setswitchinterval(SHARING_SECONDS)
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(ALONE_SECONDS)


async def obey(guardian: Guardian, order: Any, fds: list[int]) -> object:
    """Carry out one order; its answer."""
    match order:
        case orders.Apply():
            return await guardian.apply(order, fds[0])
        case orders.Meet():
            resolver, marks = fds
            guardian.meet(Channel(socket.socket(fileno=resolver), TO_GUARDIAN), marks)
            os.close(marks)
        case orders.Use():
            guardian.use(socket.socket(fileno=fds[0]))
        case orders.Alive():
            guardian.alive()
        case orders.Intact():
            return orders.Intactness(guardian.intact())
        case orders.About(address):
            return guardian.about(address)
        case orders.Stats():
            return guardian.stats()
        case orders.Stop(rules):
            await guardian.stop(rules)
    return Done()


async def serve(supervisor: Channel, ledger: Ledger) -> None:
    """Give up all power but CAP_NET_ADMIN, and obey until the supervisor is gone or says stop."""
    privileges.keep((privileges.CAP_NET_ADMIN,))
    async with contextlib.aclosing(channel.orders(supervisor)) as inbox, asyncio.TaskGroup() as applying:
        guardian = Guardian(supervisor, ledger)
        async for received in inbox:
            work = carry_out(guardian, received)
            if isinstance(received.record, orders.Apply):  # a million elements take seconds; Alive and Intact come meanwhile
                applying.create_task(work)
            else:
                await work
            if isinstance(received.record, orders.Stop):
                return


async def carry_out(guardian: Guardian, received: Received) -> None:
    """Obey, and answer an order that has a number."""
    answer: object
    try:
        answer = await obey(guardian, received.record, received.fds)
    except FirewallError as error:
        answer = Failed(str(error))
    while received.number is not None and not guardian.send(answer, received.number):  # drops may have filled the channel
        await asyncio.sleep(0.01)


def main() -> None:
    """Arguments: the descriptors of a channel to the supervisor and of a page of counters."""
    asyncio.run(serve(Channel(socket.socket(fileno=int(sys.argv[1])), orders.ORDERS, takes=True), Ledger(int(sys.argv[2]))))


if __name__ == "__main__":
    main()
