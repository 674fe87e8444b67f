"""Learnt addresses, in the kernel's sets, in the page of marks and on disk, as `learning.Book` decides about them.

Resolvers report which addresses names were answered with. An address behind a blocked name is marked first, so that no
further reply with it is sent before the guardian knows that reply; then every resolver is asked for what it has not
reported yet; then the book decides. The theory of it stands in `firewall.learning`.
"""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from embargo import names, verdicts
from embargo.daemon.guard.enforced import Enforced
from embargo.daemon.guard.memory import SNAPSHOT_SECONDS, Memory
from embargo.daemon.guard.resolvers import Resolvers
from embargo.daemon.process import answered
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Answered, Channel
from embargo.daemon.process.sightings import Free, Leads, Pass, Ready
from embargo.firewall import learning, nft, ruleset
from embargo.firewall.learning import Book, Reason
from embargo.firewall.ruleset import Spec
from embargo.firewall.table import TABLE
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from embargo.names import Name
from embargo.report import AboutAddress, Learning, LearntReason, Spared

MAX_EXPECTED = 65_536  # addresses whose block waits for the resolvers' reports, each as often as it was reported
MAX_PASSING = (
    16_384  # addresses behind names of the allow list that go ahead of the block sets; those of an earlier guardian end
)
PASS_GRACE_SECONDS = 60  # beyond a TTL: clients connect a moment after the answer, also after one with TTL 0, and flows last


class _Lead(NamedTuple):
    """A blocked name leads to these addresses, for so many seconds."""

    name: Name
    addresses: list[bytes]
    seconds: int


class LearntAddresses:
    """`blocked` is called after an address became blocked; `trouble` reports a failure."""

    def __init__(self, enforced: Enforced, blocked: Callable[[], None], trouble: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._enforced = enforced
        self._blocked = blocked
        self._memory: Memory | None = None
        self._saving = asyncio.Lock()
        self._marks: Marks | None = None
        self._expected: Counter[bytes] = Counter()  # marked while the resolvers are asked about them
        self._expecting = 0  # addresses in all reports that wait
        self._passing: dict[bytes, float] = {}  # until when
        self.book = Book()
        self._resolvers = Resolvers(self._take, self._decide, trouble, self.book.counters)
        self._why: Callable[[Name], Reason | None] = lambda name: None
        self._allows: Callable[[Name], bool] = lambda name: False
        self.enabled = False  # whether anything is blocked because of a name

    def judge_by(self, image: Image, board: Switchboard, protected: Sequence[str], *, learn: bool) -> None:
        """Judge names, and the addresses behind them, by this policy from now on. `learn`: whether [firewall] learn is on."""
        self.enabled = learn
        self._why, self._allows = verdicts.why(image, board), verdicts.allows(image)
        self.book.guarded = verdicts.guard(image, board, protected)
        self.book.judge(verdicts.judge(image, board, learn=learn), verdicts.names_blocked(image, board), self._loop.time())

    # ── what the resolvers report ────────────────────────────────────────────────────────────────────────────────────

    def meet(self, channel: Channel, marks: int) -> None:
        """A resolver is at the other end of this channel. `marks`: descriptor of the page where it sees what may be blocked."""
        if self._marks is None:
            self._marks = Marks(marks, write=True)
            self._marks.clear()
            self.mark_all()
        self._resolvers.meet(channel)

    def _take(self, channel: Channel, record: Answered | Leads | Free | Pass) -> None:
        """One record of a resolver. ValueError for packed addresses that no resolver can have sent.

        A resolver may be compromised, or judge by another policy for a moment: what is blocked and what passes because of a
        name is decided here, by what the policy in force says of that name.
        """
        match record:
            case Answered(packed):
                self._learn_from(packed)
            case Leads(packed):
                [(name, addresses, seconds)] = answered.unpack(packed)
                self._consider(name, addresses, seconds)
            case Free(number, packed):
                try:
                    self._learn_from(packed)
                finally:
                    self._resolvers.send(channel, Ready(number))
            case Pass(number, packed):
                [(name, addresses, seconds)] = answered.unpack(packed)
                try:
                    self._pass(name, addresses, seconds)
                finally:
                    self._resolvers.send(channel, Ready(number))

    def _consider(self, name: Name, addresses: list[bytes], seconds: int) -> None:
        """A blocked name leads to these addresses: block them, when all that was answered with them has been reported."""
        if self._why(name) is None:
            self.book.counters["unclaimed"] += 1
        elif self._expecting + len(addresses) + 1 > MAX_EXPECTED:
            self.book.counters["crowded"] += 1
        else:
            self._expecting += len(addresses) + 1
            self._expect(addresses)
            self._resolvers.when_all_have_reported(_Lead(name, addresses, seconds))

    def _learn_from(self, packed: bytes) -> None:
        """These names were answered with these addresses."""
        for name, addresses, seconds in answered.unpack(packed):
            self._free(self.book.answered(name, addresses, seconds, self._loop.time()))

    def _pass(self, name: Name, addresses: list[bytes], seconds: int) -> None:
        """Let addresses behind a name of the allow list go ahead of the block sets for so many seconds, and a grace."""
        if not self._allows(name):
            self.book.counters["unallowed"] += 1
            return
        if not self._has_room(addresses):
            self.book.counters["passing_full"] += 1
            return
        self._passing.update(dict.fromkeys(addresses, self._loop.time() + seconds + PASS_GRACE_SECONDS))
        for set_, width in (("allow4", 4), ("allow6", 16)):
            keys = [(address, seconds + PASS_GRACE_SECONDS) for address in addresses if len(address) == width]
            if keys:
                self._enforced.kernel.transact(nft.timed_elements(TABLE, set_, keys))

    def _has_room(self, addresses: list[bytes]) -> bool:
        """Whether these addresses can pass too; those whose time is over make room."""
        if len(self._passing.keys() | set(addresses)) > MAX_PASSING:
            now = self._loop.time()
            self._passing = {address: until for address, until in self._passing.items() if until > now}
        return len(self._passing.keys() | set(addresses)) <= MAX_PASSING

    def _expect(self, addresses: list[bytes]) -> None:
        """From now on no reply with one of these is sent before the guardian has taken note of it."""
        self._expected.update(addresses)
        if self._marks is not None:
            for address in addresses:
                self._marks.add(address)

    def _unmark(self, addresses: Iterable[bytes]) -> None:
        if self._marks is not None:
            for address in addresses:
                self._marks.remove(address)

    def _decide(self, leads: list[_Lead]) -> None:
        """Blocked names led to these addresses, and all that was answered with them before has been reported."""
        self._expecting -= sum(len(lead.addresses) + 1 for lead in leads)
        spec, now = self._enforced.spec, self._loop.time()
        actions = dict(spec.classes) if spec is not None and self.enabled else {}
        rows: dict[bytes, tuple[bytes, Action, int]] = {}
        for name, addresses, seconds in leads:
            reason = self._why(name)  # another policy may have come
            action = actions.get(reason.class_) if reason is not None else None
            if reason is not None and action is not None:
                blocked = self.book.leads(reason, addresses, seconds, now)
                rows |= {address: (address, action, left) for address, left in blocked}
            self._expected.subtract(addresses)
            self._unmark(address for address in addresses if address not in rows)
        self._expected += Counter()
        if spec is not None and rows:
            self._block(spec, list(rows.values()))

    def _block(self, spec: Spec, rows: list[tuple[bytes, Action, int]]) -> None:
        """Block these addresses, marked already, each for so many seconds."""
        self._enforced.kernel.transact(nft.learnt_elements(spec.generation, TABLE, rows))
        if self._memory is not None:
            self._memory.note([address for address, _, _ in rows], self._loop.time())
        self._blocked()

    def _free(self, freed: list[bytes]) -> None:
        """These addresses are not blocked any more: an unblocked name was answered with them."""
        spec = self._enforced.spec
        if not freed or spec is None:
            return
        for family, width in ((4, 4), (6, 16)):
            keys = [address for address in freed if len(address) == width]
            for action in {action for _, action in spec.classes}:
                self._enforced.kernel.drop_keys(TABLE, f"{ruleset.LEARNT[action].set_}{family}_{spec.generation}", keys)
        self.mark_all()
        if self._memory is not None:
            self._memory.note(freed, self._loop.time())

    # ── what is blocked ──────────────────────────────────────────────────────────────────────────────────────────────

    def mark_all(self) -> None:
        """Mark exactly what is blocked, or may be in a moment."""
        if self._marks is not None:
            blocked = (address for address, _, _ in self.book.blocked(self._loop.time()))
            self._marks.set(chain(blocked, self._expected.elements()))

    def elements(self, spec: Spec) -> Iterator[tuple[bytes, Action, int]]:
        """The blocked addresses of classes that act: (address, what is done about it, seconds left)."""
        actions = dict(spec.classes)
        blocked = self.book.blocked(self._loop.time())
        return ((address, actions[class_], seconds) for address, class_, seconds in blocked if class_ in actions)

    def refused(self) -> Iterator[bytes]:
        """The addresses whose packets are refused, not just logged."""
        spec = self._enforced.spec
        if spec is not None:
            yield from (address for address, action, _ in self.elements(spec) if action is Action.BLOCK)

    def about(self, address: bytes, *, passing: bool) -> AboutAddress:
        """What is remembered of an address: names, the reason that blocks it, the name that keeps it open."""
        reason, spared = self.book.reason(address, self._loop.time()), self.book.shared(address)
        learnt = None
        if reason is not None:
            name, class_, path, line, rule = reason
            learnt = LearntReason(class_.app, class_.function, path, line, rule, names.to_text(name))
        return AboutAddress(
            passing,
            tuple(names.to_text(name) for name in self.book.names(address)),
            learnt,
            _spared(spared) if spared is not None else None,
        )

    def stats(self) -> Learning:
        """What `status` shows of it."""
        book = self.book
        return Learning(
            self.enabled, book.learnt, len(book), max(round(book.proving - self._loop.time()), 0),
            tuple(map(_spared, book.spared)), dict(book.counters), self._memory.trouble if self._memory else "",
        )  # fmt: skip

    # ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def recall(self, path: str) -> None:
        """Read what was learnt before from this file, once, and keep it there from now on."""
        if self._memory is None or self._memory.path != path:
            self._memory = Memory(path, self.book)
            self._memory.recall(self._loop.time())
            self._memory.save(self._loop.time())

    async def save_always(self) -> None:
        """Write a snapshot now and then, for ever."""
        while True:
            await asyncio.sleep(SNAPSHOT_SECONDS)
            if self._memory is not None:
                async with self._saving:
                    await self._memory.save_beside(self._loop.time())
            self.mark_all()  # no reply waits for an address whose time is over

    async def stop(self) -> None:
        """Write the last snapshot."""
        if self._memory is not None:
            async with self._saving:
                self._memory.save(self._loop.time())
            self._memory.close()


def _spared(found: learning.Spared) -> Spared:
    """The same as text, for a report."""
    address = str(ipaddress.ip_address(found.address))
    return Spared(address, names.to_text(found.blocked), names.to_text(found.neighbour))
