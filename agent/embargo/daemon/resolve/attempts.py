"""A worker's attempts: counted by class, folded, written as event lines and handed to the outbox."""

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterable

from embargo import events
from embargo.daemon.process.outbox import Outbox
from embargo.dns.judgement import Attempt, Rules
from embargo.names import Name

TICK = 0.25  # seconds between two looks for kinds whose window has passed
CLIENTS = 256  # whose kinds an attempt remembers; forged addresses must not fill memory
ASKED = 256  # names remembered between two ticks
KINDS_A_TICK = 1000  # written down at once, some 3 ms; all that a folder holds is through well within its window

_OPENING = events.opening("dns")


class Attempts:
    def __init__(self, outbox: Outbox) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self.folder = events.Folder()
        self._hits: Counter[str] = Counter()
        self._rules: Rules | None = None
        self.tally = array("Q")  # hits of the classes of `_rules`; the compiled fast path counts here too
        self.names = True
        self.asked: dict[bytes, None] = {}  # names of first attempts since the last tick; the compiled fast path adds to it
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

    def logged(self, lines: bytes, records: int, noted: int) -> None:
        """Log what the compiled fast path has counted: these lines, so many records; so many more attempts in all."""
        self.folder.noted += noted
        if records:
            self._outbox.add(lines, records)
        self._outbox.set_noted(self.folder.noted)

    def note(self, pairs: Iterable[tuple[str, Attempt]], now: float, wall: float) -> None:
        """Count and log what these clients tried."""
        folder, rules, tally, lines = self.folder, self._rules, self.tally, []
        for client, attempt in pairs:
            if attempt.rules is not rules:  # a reply that waited while the rules changed
                self._note_late(attempt)
            elif attempt.decision is not None:
                tally[attempt.decision.class_] += 1
            kind = attempt.kinds.get(client)
            if kind is not None and kind.open:
                kind.again(wall)
                folder.noted += 1
            elif line := self._first(client, attempt, now, wall):
                lines.append(line)
        if lines:
            self._outbox.add(b"".join(lines), len(lines))
        self._outbox.set_noted(folder.noted)

    def _first(self, client: str, attempt: Attempt, now: float, wall: float) -> bytes:
        """The line of an attempt that this client did not make before, as far as the attempt knows."""
        key = client.encode() + b"\0" + (attempt.kind if self.names else attempt.kind[len(attempt.qname) :])
        line, kind = b"", self.folder.again(key, wall)
        if kind is None:
            if attempt.decision is not None and len(self.asked) < ASKED:
                self.asked[attempt.qname] = None
            members = f"{_OPENING}{events.quote(client)}{attempt.members(names=self.names)}"
            line, kind = self.folder.open(key, members, now, wall)
        if kind is not None:
            if len(attempt.kinds) >= CLIENTS:
                attempt.kinds.clear()
            attempt.kinds[client] = kind
        return line

    def _note_late(self, attempt: Attempt) -> None:
        if attempt.decision is not None:
            self._hits[str(attempt.rules.image.classes[attempt.decision.class_])] += 1

    def _tick(self) -> None:
        if self.asked:
            asked = [Name(name) for name in self.asked]
            self.asked.clear()
            self.on_asked(asked)
        for line, count in self.folder.due(self._loop.time(), KINDS_A_TICK):
            self._outbox.add(line, count)
        self._timer = self._loop.call_later(TICK, self._tick)

    async def stop(self, seconds: float) -> None:
        """Fold no longer, and hand over what is held, for at most so long."""
        self._timer.cancel()
        for line, count in self.folder.flush():
            self._outbox.add(line, count)
        await self._outbox.empty(seconds)
