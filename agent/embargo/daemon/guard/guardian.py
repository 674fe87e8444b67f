"""The only process that may change the firewall. It parses netlink, and bounded messages of our own processes.

The supervisor sends what is to be enforced: the policy image as a descriptor, the switchboard, the firewall's settings. The
resolvers tell which addresses names were answered with and what is behind blocked ones. The guardian lays the table down,
keeps the learnt addresses in it, and gives the drop log attribution. When the supervisor is gone it ends and leaves the
rules where they are: what the kernel does without us stands in the rules.

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
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from embargo import events, names, verdicts
from embargo.daemon.guard import conntrack
from embargo.daemon.guard.conntrack import Conntrack, Flow
from embargo.daemon.guard.droplog import Attribution, DropLog
from embargo.daemon.guard.informants import Informants
from embargo.daemon.guard.memory import EVERY, Memory
from embargo.daemon.guard.netlink import Nftables
from embargo.daemon.process import answered, privileges
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Channel, orders
from embargo.daemon.process.outbox import Ledger, Outbox
from embargo.errors import FirewallError
from embargo.firewall import learning, nft, ruleset, spans
from embargo.firewall.learning import Book, Reason
from embargo.firewall.nft import Shape
from embargo.firewall.ruleset import RESERVED, Own, Spec
from embargo.firewall.table import TABLE, Begins, Mark
from embargo.lists.image import Image
from embargo.lists.policy import Action, Class, Switchboard

FAILED = 70  # the exit status of a guardian that does not understand what happened
HEAL = 0.2  # seconds between two looks at the kernel's generation
ENDING = 2.0  # seconds by which the kernel may have an element's end before us
LARGE = 100_000  # elements; a larger ruleset is counted through no more often than
COUNTING = 10.0  # seconds
JUDGE_AGAIN = 0.1  # seconds after an address was learnt until open flows are judged again
RECONCILE = 10.0  # seconds between two comparisons of what the kernel counts with what it tells
UNDER_WAY = 0.3  # seconds after which the record of a packet has come
CUT_AFTER = 5.0  # seconds after which connections to learnt addresses are deleted: they are refused already, this frees room
PASS_GRACE = 60  # seconds; clients connect a moment after an answer, also after one with TTL 0, and flows last
SHARING, ALONE = 0.0005, sys.getswitchinterval()  # seconds that a thread keeps the interpreter when another waits
MAX_PASSING = 64  # addresses that one answer lets through


class Guardian:
    def __init__(self, channel: Channel, ledger: Ledger) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._kernel = Nftables()
        self._writing = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._wanted: Spec | None = None
        self._shape: Shape | None = None
        self._work_out: Callable[[int], Spec] = lambda generation: Spec(generation, (), {})
        self._seen = 0  # the kernel's generation after our own last look
        self._counted_at = 0.0
        self._book = Book()
        self._memory: Memory | None = None
        self._marks: Marks | None = None
        self._expected: Counter[bytes] = Counter()  # addresses that may be blocked in a moment
        self._learn = False
        self._clients: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
        self._resolvers = Informants(self._take, self._note_trouble)
        self._outbox = Outbox(self._send_events, ledger)
        self._drops = DropLog(self._outbox, self._book)
        self._patterns: bool | None = None
        self._marking: bool | None = None
        self._clean: set[int] = set()  # values that no flow carries in its mark
        self._judging: asyncio.TimerHandle | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble = ""
        self.restored = 0
        self.cut = 0  # connections that the kernel was told to forget
        self.flowtables: list[str] = []
        self._heal()
        self._spawn(self._save())
        self._loop.call_later(RECONCILE, self._reconcile)

    def report(self, message: dict[str, Any]) -> bool:
        try:
            self._channel.send(message)
        except BlockingIOError:
            return False
        except OSError:
            return True  # nobody is left to tell
        return True

    def _send_events(self, lines: bytes, lost: int, attempts: int) -> bool:
        try:
            self._channel.send_events(lines, lost, attempts)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _tell(self, what: str, **members: Any) -> None:
        self._outbox.add(events.encode({"event": "firewall", "what": what, **members}, time.time()), 0)

    def use(self, sock: socket.socket) -> None:
        """Speak to the kernel by this socket, which others keep: the table has its owner while none of us runs."""
        self._kernel.close()
        self._kernel = Nftables(sock)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def apply(self, order: dict[str, Any], fd: int) -> dict[str, Any]:
        """Put a generation in force. FirewallError leaves the old one there."""
        board = Switchboard(tuple(map(Action, order["switchboard"])))
        async with self._writing, _beside_others():
            try:
                image = await asyncio.to_thread(Image, memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)))
            finally:
                os.close(fd)
            self._drops.listen(order["log_group"])
            self._recall(order["state"])
            self._kernel.claim(TABLE, alone=order["protect"])
            work_out = partial(
                ruleset.spec, image, board, lan=order["lan"], except_=order["except"], fail=order["fail"],
                intercept_port=order["intercept_port"], log_group=order["log_group"],
                ct_mark=self._ct_mark(order), patterns=self._can_look_inside(),
                own=tuple(Own(*each) for each in order["own"]),
                system=order["system"], exempt=[(n, tuple(Class(*each) for each in off)) for n, off in order["exempt"]],
            )  # fmt: skip
            wanted = await asyncio.to_thread(work_out, self._next_mark())  # a second for a million; others must not wait
            wanted, elements = (
                dataclasses.replace(wanted, judgement=self._kernel.judgement(TABLE) + 1),
                sum(map(spans.count, wanted.ranges.values())),
            )
            self._learn, self._clients = order["learn"], tuple(map(ipaddress.ip_network, order["clients"]))
            self._book.guarded = verdicts.guard(image, order["protected"])
            actions = {str(class_): action for class_, action in wanted.classes}
            self._loop.call_later(UNDER_WAY, self._compare, self._counted())  # of classes that may end here
            self._drops.explain_by(Attribution(order["generation"], image, actions, order["names"]))
            decide, blocked = verdicts.judge(image, board, learn=self._learn), verdicts.names_blocked(image, board)
            await self._replace(wanted, lambda: self._book.judge(decide, blocked, self._loop.time()))
            self._work_out = work_out
            self._drops.begin(self._counted())
        if order["fail"] == "open":
            self.alive()
        self.flowtables = self._kernel.flowtables()
        self._spawn(self._cut(verdicts.blocks(image, board)))
        self._spawn(self._prepare_next())
        return {"elements": elements}

    async def _replace(self, wanted: Spec, decide: Callable[[], None]) -> None:
        """Lay this down, with what is learnt by the time that it comes in force."""
        value = ruleset.value_of(wanted.judgement, wanted.ct_mark) if wanted.ct_mark else 0
        await self._free_value(value, wanted.ct_mark)
        table = await asyncio.to_thread(ruleset.build, wanted)

        def last() -> list[nft.Message]:
            decide()
            return nft.learnt_elements(wanted.generation, TABLE, self._learnt(wanted))

        def switched() -> None:  # what has a million elements is not kept
            self._wanted, self._shape = dataclasses.replace(wanted, ranges={}), nft.shape(table)
            self._clean.discard(value)
            self._mark_all()

        steps = self._kernel.replacing(table, last, switched)
        with contextlib.closing(steps):
            for pause in steps:
                await asyncio.sleep(pause)
        self._seen = self._kernel.generation_id()

    def _learnt(self, wanted: Spec) -> Iterable[tuple[bytes, Action, int]]:
        on = dict(wanted.classes)
        found = self._book.blocked(self._loop.time())
        return ((address, on[class_], seconds) for address, class_, seconds in found if class_ in on)

    def _next_mark(self) -> int:
        """What tells the new sets from those in force. Not the generation: a new guardian applies the same one again."""
        marks = [name.rpartition("_")[2] for name in self._kernel.sets(TABLE)]
        return 1 + max((int(mark) for mark in marks if mark.isascii() and mark.isdecimal()), default=0)

    def _ct_mark(self, order: dict[str, Any]) -> int:
        """The bits of the connection mark that we may use; none where connections would be tracked because of us alone."""
        mask = int(order["ct_mark"])
        if mask and self._marking is None:
            self._marking = self._kernel.can(Mark(mask, mask))
        tracked = (order["intercept_port"] and order["lan"]) or conntrack.in_use()
        return mask if tracked and self._marking else 0

    def _can_look_inside(self) -> bool:
        if self._patterns is None:  # from Linux 5.17 on
            self._patterns = self._kernel.can(*(Begins(start) for start in ruleset.HTTPDNS))
        return self._patterns

    def pass_addresses(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Addresses behind names on the allow list go ahead of the block sets for so many seconds, and a grace."""
        for name, width in (("allow4", 4), ("allow6", 16)):
            keys = [(bytes.fromhex(a), seconds + PASS_GRACE) for a, seconds in addresses if len(a) == 2 * width]
            if keys:
                self._kernel.transact(nft.timed_elements(TABLE, name, keys))

    def alive(self) -> None:
        """Somebody answers: for the next seconds port 53 may be redirected (fail = "open")."""
        if self._wanted is not None and self._wanted.lan:
            self._kernel.transact(nft.alive(TABLE, (*self._wanted.lan, RESERVED)))

    def intact(self) -> bool:
        """Are our rules in force, by what the kernel says? While they are being replaced the old ones are."""
        return self._writing.locked() or (self._shape is not None and self._kernel.intact(self._shape))

    def about(self, address: bytes) -> dict[str, Any]:
        """What is known of an address beside the lists."""
        told: dict[str, Any] = {
            "passing": address in self._kernel.keys(TABLE, "allow4" if len(address) == 4 else "allow6"),
            "names": [names.to_text(name) for name in self._book.names(address)],
        }
        reason = self._book.reason(address, self._loop.time())
        if reason is not None:
            name, class_, path, line, rule = reason
            told["learnt"] = {
                "app": class_.app, "function": class_.function, "list": path, "line": line, "rule": rule,
                "name": names.to_text(name),
            }  # fmt: skip
        spared = self._book.shared(address)
        if spared is not None:
            told["spared"] = {"name": names.to_text(spared.blocked), "neighbour": names.to_text(spared.neighbour)}
        return told

    def stats(self) -> dict[str, Any]:
        now = self._loop.time()
        spared = [
            (_text(each.address), names.to_text(each.blocked), names.to_text(each.neighbour)) for each in self._book.spared
        ]
        return {
            "counters": {name: list(both) for name, both in self._kernel.counters(TABLE).items()},
            "present": self._kernel.has_table(TABLE),
            "owned": self._kernel.owned,
            "restored": self.restored,
            "cut": self.cut,
            "flowtables": self.flowtables,
            "patterns": bool(self._patterns),
            "hits": dict(self._drops.hits),
            "noted": self._drops.noted,
            "lost": self._drops.lost,
            "learning": {
                "on": self._learn, "addresses": self._book.learnt, "known": len(self._book),
                "proving": max(round(self._book.proving - now), 0), "spared": spared,
                "counters": dict(self._book.counters), "trouble": self._memory.trouble if self._memory else "",
            },
        }  # fmt: skip

    async def stop(self, rules: str) -> None:
        """`rules`: keep all of them, keep the block sets but not the redirect, or remove everything."""
        counted = self._counted()
        await asyncio.sleep(UNDER_WAY if counted else 0)
        self._compare(counted)
        async with self._writing:
            self._wanted = None  # nothing is restored any more
            if rules == "remove":
                self._kernel.remove(TABLE)
            elif rules == "unredirect":
                self._kernel.transact([nft.flush_set(TABLE, "alive")])
        if self._memory is not None:
            async with self._saving:
                self._memory.save(self._loop.time())
            self._memory.close()
        self._drops.flush()
        await self._outbox.empty(1.0)

    # ── what the resolvers tell ──────────────────────────────────────────────────────────────────────────────────────

    def meet(self, channel: Channel, marks: int) -> None:
        """A resolver is at the other end of this channel; `marks`: the page in which it sees what may be blocked."""
        if self._marks is None:
            self._marks = Marks(marks, write=True)
            self._marks.clear()
            self._mark_all()
        self._resolvers.meet(channel)

    def _take(self, channel: Channel, told: dict[str, Any]) -> None:
        now = self._loop.time()
        match told.get("op"):
            case "answered":
                for name, addresses, seconds in answered.unpack(told["records"]):
                    self._release(self._book.answered(name, addresses, seconds, now))
            case "leads":
                [(name, addresses, seconds)] = answered.unpack(bytes.fromhex(told["record"]))
                reason = learning.reason(name, told["class"], told["list"], told["line"], told["rule"])
                self._expect(addresses)
                self._resolvers.when_all_is_told(partial(self._lead, reason, addresses, seconds))
            case "free":
                try:
                    [(name, addresses, seconds)] = answered.unpack(bytes.fromhex(told["record"]))
                    self._release(self._book.answered(name, addresses, seconds, now))
                finally:
                    channel.send({"op": "ready", "number": told["number"]})
            case "pass":
                try:
                    longest = learning.LONGEST
                    self.pass_addresses([(str(a), int(max(0, min(s, longest)))) for a, s in told["addresses"][:MAX_PASSING]])
                finally:
                    channel.send({"op": "ready", "number": told["number"]})

    def _expect(self, addresses: list[bytes]) -> None:
        """From now on no reply with one of these is sent before it is known here."""
        self._expected.update(addresses)
        if self._marks is not None:
            for address in addresses:
                self._marks.add(address)

    def _lead(self, reason: Reason, addresses: list[bytes], seconds: int) -> None:
        """A blocked name led to these, and whatever was answered with one of them before is known."""
        action = dict(self._wanted.classes).get(reason.class_) if self._wanted is not None and self._learn else None
        learnt = self._book.leads(reason, addresses, seconds, self._loop.time()) if action is not None else []
        blocked = {address for address, _ in learnt}
        self._expected.subtract(addresses)
        self._expected += Counter()
        if self._marks is not None:
            for address in addresses:
                if address not in blocked:
                    self._marks.remove(address)
        if action is not None:
            self._block(learnt, action)

    def _block(self, learnt: list[tuple[bytes, int]], action: Action) -> None:
        """These addresses, marked already, are blocked from now on, and open flows in a moment."""
        wanted = self._wanted
        if not learnt or wanted is None:
            return
        rows = [(address, action, seconds) for address, seconds in learnt]
        self._kernel.transact(nft.learnt_elements(wanted.generation, TABLE, rows))
        if self._memory is not None:
            self._memory.note([address for address, _ in learnt], self._loop.time())
        if self._judging is None:
            self._judging = self._loop.call_later(JUDGE_AGAIN, lambda: self._spawn(self._judge_again()))

    def _release(self, freed: list[bytes]) -> None:
        """These addresses are not blocked any more: somebody else lives there."""
        if not freed or self._wanted is None:
            return
        for family, width in ((4, 4), (6, 16)):
            keys = [address for address in freed if len(address) == width]
            for action in {action for _, action in self._wanted.classes}:
                self._kernel.drop_keys(TABLE, f"{ruleset.LEARNT[action].set_}{family}_{self._wanted.generation}", keys)
        self._mark_all()
        if self._memory is not None:
            self._memory.note(freed, self._loop.time())

    def _mark_all(self) -> None:
        if self._marks is not None:
            blocked = (address for address, _, _ in self._book.blocked(self._loop.time()))
            self._marks.set(chain(blocked, self._expected.elements()))

    # ── open flows ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge_again(self) -> None:
        """Open flows meet all rules once more: what they were let through by is another judgement now."""
        self._judging = None
        async with self._writing:
            wanted = self._wanted
            if wanted is not None and wanted.ct_mark:
                again = dataclasses.replace(wanted, judgement=wanted.judgement + 1)
                value = ruleset.value_of(again.judgement, again.ct_mark)
                await self._free_value(value, again.ct_mark)
                self._kernel.transact([*nft.judge_again(TABLE, wanted, again)])
                self._clean.discard(value)
                self._wanted = again
                self._seen = self._kernel.generation_id()
        if self._cutting is None:
            self._cutting = self._loop.call_later(CUT_AFTER, lambda: self._spawn(self._cut_learnt()))
        await self._prepare_next()

    async def _prepare_next(self) -> None:
        """Free the number that the next judgement will have, so that it need not wait for it."""
        async with self._writing:  # else it might be given out while this looks for flows that have it
            wanted = self._wanted
            if wanted is not None and wanted.ct_mark:
                await self._free_value(ruleset.value_of(wanted.judgement + 1, wanted.ct_mark), wanted.ct_mark)

    async def _cut_learnt(self) -> None:
        self._cutting = None
        if self._wanted is not None:
            learnt = {address for address, action, _ in self._learnt(self._wanted) if action is Action.BLOCK}
            await self._cut(learnt.__contains__)

    async def _free_value(self, value: int, mask: int) -> None:
        """No flow may carry a number that is about to be given out: idle since it was in use before, it was never judged."""
        if not mask or value in self._clean:
            return

        def sweep() -> None:
            with contextlib.closing(Conntrack()) as table:
                table.unmark(list(table.flows(value, mask)), mask)

        try:
            await asyncio.to_thread(sweep)
            self._clean.add(value)
        except FirewallError as error:
            self._note_trouble(str(error))

    async def _cut(self, judge_: Callable[[bytes], bool]) -> None:
        """Let the kernel forget the connections of policed clients to blocked addresses."""
        if not conntrack.in_use():
            return
        clients, excepted = self._clients, self._excepted()
        passing = {address for name in ("allow4", "allow6") for address in self._kernel.keys(TABLE, name)}

        def ours(flow: Flow) -> bool:
            if not conntrack.blocked(flow, lambda address: address not in passing and judge_(address)):
                return False
            source = ipaddress.ip_address(flow.source)
            other = ipaddress.ip_address(flow.answers)
            mine = not clients or any(a in network for network in clients for a in (source, other))
            return mine and not any(a in network for network in excepted for a in (source, other))

        def cut() -> int:
            with contextlib.closing(Conntrack()) as table:
                return table.delete([flow for flow in table.flows() if ours(flow)])

        try:
            self.cut += await asyncio.to_thread(cut)
        except FirewallError as error:
            self._note_trouble(str(error))

    def _excepted(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """Clients some of whose flows to blocked addresses are none of our business."""
        wanted = self._wanted
        if wanted is None:
            return []
        return [ipaddress.ip_network(text) for text in (*wanted.except_, *(network for network, _ in wanted.exempt))]

    # ── what others do ───────────────────────────────────────────────────────────────────────────────────────────────

    def _heal(self) -> None:
        """Somebody may have flushed the ruleset: lay ours down again. Asking for the kernel's generation costs microseconds."""
        self._loop.call_later(HEAL, self._heal)
        if self._wanted is None or self._shape is None or self._writing.locked():
            return
        try:
            seen = self._kernel.generation_id()
            if seen == self._seen:
                return
            if not self._kernel.intact(self._shape) or (not self._kernel.owned and not self._elements_there(self._shape)):
                self._spawn(self._restore())
            self._seen = seen
            self.flowtables = self._kernel.flowtables()
        except FirewallError as error:
            self._note_trouble(f"table missing: {error}")

    def _elements_there(self, shape: Shape) -> bool:
        """Are all of them there? A large ruleset takes a while to count, so not each time that others change theirs."""
        now = self._loop.time()
        if shape.elements > LARGE and now < self._counted_at + COUNTING:
            return True
        self._counted_at = now
        return self._kernel.whole(shape, learnt=self._book.lasting(self._loop.time() + ENDING))

    async def _restore(self) -> None:
        async with self._writing:
            if self._wanted is None:
                return
            what = "rules changed" if self._kernel.has_table(TABLE) else "table removed"
            try:
                self._kernel.claim(TABLE, alone=self._kernel.owned)
                again = await asyncio.to_thread(self._work_out, self._next_mark())
                await self._replace(dataclasses.replace(again, judgement=self._wanted.judgement + 1), lambda: None)
            except FirewallError as error:
                self._seen = 0
                self._note_trouble(f"{what} by others, not restored: {error}")
                return
        self.restored += 1
        self._trouble = ""
        self._tell(f"{what} by others, restored")

    def _note_trouble(self, what: str) -> None:
        """Once for as long as it lasts."""
        if what != self._trouble:
            self._trouble = what
            self._tell(what)

    # ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _recall(self, path: str) -> None:
        if self._memory is None or self._memory.path != path:
            self._memory = Memory(path, self._book)
            self._memory.recall(self._loop.time())
            self._memory.save(self._loop.time())

    async def _save(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            if self._memory is not None:
                async with self._saving:
                    await self._memory.save_beside(self._loop.time())
            self._mark_all()  # what has had its time is not waited for any more

    # ── the drop log ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _reconcile(self) -> None:
        """Compare what the kernel counts with what it tells, as soon as the records of these packets have come."""
        self._loop.call_later(RECONCILE, self._reconcile)
        counted = self._counted()
        self._loop.call_later(UNDER_WAY, self._compare, counted)

    def _compare(self, counted: dict[str, int]) -> None:
        self._drops.read()
        self._drops.reconcile(counted)

    def _counted(self) -> dict[str, int]:
        """Packets by class."""
        if self._wanted is None:
            return {}
        try:
            found = self._kernel.counters(TABLE)
        except FirewallError as error:
            self._note_trouble(str(error))
            return {}
        classes = [*(class_ for class_, _ in self._wanted.classes), *(each.class_ for each in ruleset.LEARNT.values())]
        classes += ruleset.LISTED.values()
        names_ = {ruleset.chain_name(class_): str(class_) for class_ in classes}
        return {names_[name]: packets for name, (packets, _) in found.items() if name in names_}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, FirewallError):
            self._note_trouble(str(error))
        elif error is not None:  # not to be survived: the supervisor starts another, and the rules stay
            traceback.print_exception(error)
            os._exit(FAILED)


@contextlib.asynccontextmanager
async def _beside_others() -> AsyncIterator[None]:
    """A large ruleset is worked out while others ask for an address, and they must not wait for it.

    Whoever waits for the interpreter is to have it after half a millisecond, not five: an answer asks for it several times.
    And columns have no cycles that were worth looking for.
    """
    gc.disable()
    sys.setswitchinterval(SHARING)
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(ALONE)


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


async def obey(guardian: Guardian, order: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Carry out one order; the members of the answer."""
    match order["op"]:
        case "apply":
            return await guardian.apply(order, fds[0])
        case "meet":
            channel, marks = fds
            guardian.meet(Channel(socket.socket(fileno=channel)), marks)
            os.close(marks)
        case "use":
            guardian.use(socket.socket(fileno=fds[0]))
        case "alive":
            guardian.alive()
        case "intact":
            return {"intact": guardian.intact()}
        case "about":
            return guardian.about(bytes.fromhex(order["address"]))
        case "stats":
            return guardian.stats()
        case "stop":
            await guardian.stop(order["rules"])
    return {}


async def serve(channel: Channel, ledger: Ledger) -> None:
    privileges.keep((privileges.CAP_NET_ADMIN,))
    async with contextlib.aclosing(orders(channel)) as inbox, asyncio.TaskGroup() as applying:
        guardian = Guardian(channel, ledger)
        async for order, fds in inbox:
            work = carry_out(guardian, order, fds)
            if order["op"] == "apply":  # it takes seconds for a million, and whether we are alive is asked meanwhile
                applying.create_task(work)
            else:
                await work
            if order["op"] == "stop":
                return


async def carry_out(guardian: Guardian, order: dict[str, Any], fds: list[int]) -> None:
    try:
        answer = {"op": "done", "id": order.get("id"), **await obey(guardian, order, fds)}
    except FirewallError as error:
        answer = {"op": "error", "id": order.get("id"), "error": str(error)}
    while order.get("id") is not None and not guardian.report(answer):  # drops may have filled the channel
        await asyncio.sleep(0.01)


def main() -> None:
    asyncio.run(serve(Channel(socket.socket(fileno=int(sys.argv[1]))), Ledger(int(sys.argv[2]))))


if __name__ == "__main__":
    main()
