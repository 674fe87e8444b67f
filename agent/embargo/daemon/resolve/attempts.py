"""A worker's attempts: counted by class, folded, and handed to the outbox as records."""

import asyncio
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from embargo import events, records
from embargo.daemon.process.outbox import Outbox
from embargo.dns.judgement import Attempt, Rules
from embargo.events import Way
from embargo.names import Name

TICK = 0.25  # seconds between two looks for kinds whose window has passed
ASKED = 256  # names remembered until a tick hands them over
ASKED_A_TICK = 200  # handed over at once, some 12 ms in a flood; with fewer, a flood keeps the names of others waiting
KINDS_A_TICK = 1000  # written down at once, some 3 ms; all that a folder holds is through well within its window

_OPENING = events.opening("dns")
_NOBODY = '"event":"dns"'
_OTHERS = ',"others":true'


def _of_entry(members: str) -> str:
    """The members of an event without those of its name and answer."""
    values = records.from_json(f"{{{members[1:]}}}")
    return events.members(
        "dns", {key: json.dumps(value) for key, value in values.items() if key not in _NAMED} | {"others": "true"}
    )


_NAMED = ("qname", "qtype", "answer")


class Attempts:
    def __init__(self, outbox: Outbox) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self.folder = events.Folder()
        self._hits: Counter[str] = Counter()
        self._rules: Rules | None = None
        self.tally = array("Q")  # hits of the classes of `_rules`; the compiled fast path counts here too
        self.names = True
        self.asked: dict[bytes, None] = {}  # names of first attempts, not handed over yet; the compiled fast path adds to it
        self.on_asked: Callable[[list[Name]], None] = lambda asked: None
        self._timer = self._loop.call_later(TICK, self._tick)

    def adopt(self, rules: Rules, *, names: bool) -> None:
        """Attempts will mostly be those of these rules. Without `names` the qname stays out of the log."""
        self._hits = self._counted()
        self._rules, self.tally = rules, array("Q", bytes(8 * len(rules.image.classes)))
        self.names = names

    @property
    def page(self) -> memoryview:
        """The shared page with the number of attempts noted, which the compiled fast path counts up before `logged`."""
        return self._outbox.page

    @property
    def hits(self) -> dict[str, int]:
        """Attempts by class since the start."""
        return dict(self._counted())

    def _counted(self) -> Counter[str]:
        if self._rules is None:
            return self._hits
        found = {str(class_): count for class_, count in zip(self._rules.image.classes, self.tally, strict=True) if count}
        return self._hits + Counter(found)

    def counted(self, noted: int) -> None:
        """Log that the compiled fast path has counted so many more attempts in kinds that are open."""
        self.folder.noted += noted
        self._outbox.set_noted(self.folder.noted)

    def note(self, pairs: Iterable[tuple[str, Attempt]], now: float, wall: float) -> None:
        """Count and log what these clients tried."""
        rules, tally = self._rules, self.tally
        for client, attempt in pairs:
            if attempt.rules is not rules:  # a reply that waited while the rules changed
                self._note_late(attempt)
            elif attempt.decision is not None:
                tally[attempt.decision.class_] += 1
            key = attempt.kind if self.names else attempt.nameless
            if not self.folder.again(client, key, wall):
                self._not_open(client, attempt, key, now, wall)
        self._outbox.set_noted(self.folder.noted)

    def _not_open(self, client: str, attempt: Attempt, key: bytes, now: float, wall: float) -> None:
        """Count an attempt whose own kind is not open."""
        asked = attempt.qname if attempt.decision is not None else None
        if self.folder.again(client, attempt.other, wall):
            self._ask(asked)
        else:
            self.first(client, key, attempt.other, lambda: attempt.members(names=self.names), asked, now, wall)

    def _ask(self, name: bytes | None) -> None:
        if name is not None and len(self.asked) < ASKED:
            self.asked[name] = None

    def first(
        self, client: str, key: bytes, other: bytes, members: Callable[[], str], asked: bytes | None, now: float, wall: float
    ) -> None:  # fmt: skip
        """Count an attempt for which no kind is open. The compiled fast path calls it too.

        `key`: of its kind; `other`: of the kind of its entry, for attempts beyond the client's share; `members`: of its event,
        behind the client; `asked`: its name, if an entry claims that.
        """
        self._ask(asked)
        opening = f"{_OPENING}{events.quote(client)}"
        ways = (
            Way(key, lambda: opening + members()), Way(other, lambda: opening + _of_entry(members())),
            Way(b"", lambda: opening + _OTHERS), Way(b"", lambda: _NOBODY + _OTHERS),
        )  # fmt: skip
        line = self.folder.note(client, ways, now, wall)
        if line is not None:
            self._outbox.add(line)
        self._outbox.set_noted(self.folder.noted)

    def _note_late(self, attempt: Attempt) -> None:
        if attempt.decision is not None:
            self._hits[str(attempt.rules.image.classes[attempt.decision.class_])] += 1

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)  # first, so that an error below does not end the ticks
        if self.asked:
            asked = [Name(name) for name in islice(self.asked, ASKED_A_TICK)]
            for name in asked:
                del self.asked[name]
            self.on_asked(asked)
        for line, count in self.folder.due(self._loop.time(), KINDS_A_TICK):
            self._outbox.add(line, count)

    async def stop(self, seconds: float) -> None:
        """Fold no longer, and hand over what is held, for at most so long."""
        self._timer.cancel()
        for line, count in self.folder.flush():
            self._outbox.add(line, count)
        await self._outbox.empty(seconds)
