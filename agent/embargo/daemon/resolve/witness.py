"""What a worker tells the guardian: which addresses names were answered with, and what is behind those that are blocked.

Answers of unblocked names are gathered for a moment and told together. Where one holds an address that is blocked because
of another name, its reply waits until the guardian has freed that address; a page that both share tells which those are.
Blocked names that clients ask for are looked up in the background, again whenever the answer's time is over, for as long
as somebody has asked lately.
"""

import asyncio
import heapq
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from embargo.daemon.process.answered import Marks, gather, pack
from embargo.daemon.process.channel import Answered, Channel, ChannelError
from embargo.daemon.process.sightings import Flush, Flushed, Free, Leads, Pass, Ready
from embargo.dns import message
from embargo.dns.engine import Resolved
from embargo.dns.judgement import Rules
from embargo.firewall import learning
from embargo.names import Name

FLUSH = 0.1  # seconds an answer may wait for others to be told
MAX_UNSENT = 32  # packets of answers kept for a guardian that does not read for a moment
REPEAT = 60.0  # seconds for which an address and name that were told need not be told again
MAX_TOLD = 8192  # addresses remembered for that
INTEREST = 86_400.0  # seconds for which a blocked name is looked up again after somebody asked for it
MAX_INTERESTS = 1024  # names
SOONEST, LATEST = 60.0, 300.0  # seconds between two look-ups of a name, in between as its answer says
BURST = 5  # look-ups at once; a flood of blocked names must not become one of questions to the upstream
PACE = 0.25  # seconds between two bursts


class _Interest(NamedTuple):
    until: float
    due: float


class Witness:
    """`resolve` looks a name up in the background, what comes of it is told to `hear`; False: it is not blocked any more."""

    def __init__(self, resolve: Callable[[Name, int], bool], ready: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolve = resolve
        self._ready = ready
        self._channel: Channel | None = None
        self._marks: Marks | None = None
        self._packets: deque[bytes] = deque()  # answers that are not sent yet
        self._told: dict[bytes, tuple[Name, ...]] = {}
        self._told_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._interests: dict[Name, _Interest] = {}  # who was asked for longest ago first
        self._due: list[tuple[float, Name]] = []
        self._next: asyncio.TimerHandle | None = None
        self._rest_until = 0.0
        self.learning = False
        self.counters: Counter[str] = Counter()

    @property
    def listening(self) -> bool:
        return self._channel is not None

    def meet(self, channel: Channel, marks: Marks) -> None:
        """A guardian, or the next one, listens at the other end."""
        self.close()
        channel.setblocking(False)
        self._channel, self._marks = channel, marks
        self._told.clear()
        self._loop.add_reader(channel.fileno(), self._readable)

    def close(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def stop(self) -> None:
        for timer in (self._timer, self._next):
            if timer is not None:
                timer.cancel()
        self._flush()
        self.close()

    def _readable(self) -> None:
        while self._channel is not None:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except (OSError, ChannelError):
                received = None
            if received is None:  # it ended; the supervisor introduces the next one
                self.close()
                return
            for fd in received.fds:
                os.close(fd)
            match received.record:
                case Ready(number):
                    self._ready(number)
                case Flush(number):
                    self._tell_all(number)

    def _send(self, record: object) -> bool:
        """Whether the guardian takes it."""
        if self._channel is None:
            return False
        try:
            self._channel.send(record)
        except OSError:  # it does not read, or is gone
            self.counters["untold"] += 1
            return False
        return True

    # ── what was answered ────────────────────────────────────────────────────────────────────────────────────────────

    def ask_to_pass(self, number: int, addresses: Iterable[tuple[bytes, int]]) -> bool:
        """Let these addresses go ahead of the block sets, each for so many seconds, then say that they do."""
        return self._send(Pass(number, tuple(addresses)))

    def ask_to_free(self, number: int, heard: Resolved) -> bool:
        """Free the addresses of this answer, then say that they are."""
        self._flush()
        return self._send(Free(number, pack(heard.qname, heard.addresses, heard.seconds)))

    def hear(self, heard: Resolved, rules: Rules) -> bool:
        """An upstream's answer. True when its reply has to wait until addresses in it are free."""
        if heard.decision is not None:
            self._tell_learnt(heard, rules)
            return False
        marks = self._marks
        if marks is not None and any(address in marks for address in heard.addresses):
            return True
        self._gather(heard)
        return False

    def _gather(self, heard: Resolved) -> None:
        now = self._loop.time()
        if len(self._told) >= MAX_TOLD or now > self._told_since + REPEAT:
            self._told.clear()
            self._told_since = now
        told, fresh = self._told, []
        for address in heard.addresses:
            known = told.get(address, ())
            if heard.qname not in known and len(known) < learning.MAX_NAMES:
                told[address] = (*known, heard.qname)
                fresh.append(address)
        if not fresh:
            return
        if gather(self._packets, pack(heard.qname, fresh, heard.seconds)) and len(self._packets) > 1:
            self._flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH, self._flush)

    def _flush(self) -> bool:
        """Tell all that is gathered. False: the guardian does not read, and is told later, unless it becomes too much."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._packets:
            if not self._send(Answered(self._packets[0])):
                if len(self._packets) > MAX_UNSENT:
                    self._packets.clear()
                    self._told.clear()  # it was not told
                self._timer = self._loop.call_later(FLUSH, self._flush)
                return False
            self._packets.popleft()
        return True

    def _tell_all(self, number: int) -> None:
        """The guardian is about to block an address, and must not miss who else was answered with it."""
        if self._flush():
            self._send(Flushed(number))

    def _tell_learnt(self, heard: Resolved, rules: Rules) -> None:
        decision = heard.decision
        assert decision is not None
        class_ = rules.image.classes[decision.class_]
        if heard.qname in self._interests and heard.addresses:
            self._again(heard.qname, self._loop.time() + max(heard.seconds, SOONEST))
        if heard.addresses and class_ not in learning.UNLEARNT:
            packed, source = pack(heard.qname, heard.addresses, heard.seconds), rules.image.sources[decision.source]
            self._send(Leads(packed, class_, source.path, decision.line, decision.rule))

    # ── blocked names that clients ask for ───────────────────────────────────────────────────────────────────────────

    def curious(self, asked: Iterable[Name]) -> None:
        """Clients asked for these, which are blocked or audited."""
        if not self.learning or self._channel is None:
            return
        now = self._loop.time()
        for name in asked:
            known = self._interests.pop(name, None)
            if known is None and len(self._interests) >= MAX_INTERESTS:
                del self._interests[next(iter(self._interests))]
            self._interests[name] = _Interest(now + INTEREST, known.due if known else now)
            if known is None:
                heapq.heappush(self._due, (now, name))
        self._wait()

    def _again(self, name: Name, due: float) -> None:
        """Look it up sooner than without an answer."""
        interest = self._interests[name]
        if due < interest.due:
            self._interests[name] = interest._replace(due=due)
            heapq.heappush(self._due, (due, name))
            self._wait()

    def _wait(self) -> None:
        """See to it that `_look_up` comes when the next one is due, and not too soon after the last burst."""
        if not self._due:
            return
        at = max(self._due[0][0], self._rest_until)
        if self._next is None or at < self._next.when():
            if self._next is not None:
                self._next.cancel()
            self._next = self._loop.call_at(at, self._look_up)

    def _look_up(self) -> None:
        """Look up the names whose time has come, a few at once."""
        self._next = None
        now, done = self._loop.time(), 0
        while self._due and self._due[0][0] <= now and done < BURST:
            due, name = heapq.heappop(self._due)
            interest = self._interests.get(name)
            if interest is None or interest.due != due:
                continue  # forgotten, or it stands there again
            wanted = now < interest.until and self.learning
            if not wanted or not (self._resolve(name, message.A) and self._resolve(name, message.AAAA)):
                del self._interests[name]
                continue
            done += 1
            self.counters["looked_up"] += 1
            self._interests[name] = interest._replace(due=now + LATEST)
            heapq.heappush(self._due, (now + LATEST, name))
        self._rest_until = now + PACE
        self._wait()
