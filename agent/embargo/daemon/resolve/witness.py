"""What a worker reports to the guardian: the addresses of answers, and the addresses behind blocked names.

Answers of unblocked names are gathered for a moment and reported together. When one holds an address that is blocked because
of another name, its reply waits until the guardian has freed that address; the page of marks, which both share, says which
addresses these are. Blocked names that clients ask for are looked up in the background, and again whenever the answer has
expired, for a day after the last query.
"""

import asyncio
import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from embargo import names
from embargo.daemon.process.answered import Marks, gather, pack
from embargo.daemon.process.backlog import Backlog
from embargo.daemon.process.channel import Answered, Channel, ChannelError
from embargo.daemon.process.sightings import Flush, Flushed, Free, Leads, Pass, Ready
from embargo.dns import message
from embargo.dns.engine import Resolved
from embargo.dns.judgement import Rules
from embargo.dns.screening import Passing
from embargo.dns.shares import Places, Turns
from embargo.firewall import learning
from embargo.lists.policy import Decision
from embargo.names import Name

FLUSH_SECONDS = 0.1  # that an answer may wait to be reported with others
MAX_UNSENT = 1 << 20  # octets kept for a guardian that does not read for a moment
REPEAT_SECONDS = 60.0  # within which a name with the same address is not reported again; a blocked name is not looked up sooner
MAX_REPORTED = 8192  # addresses remembered for that
WATCH_SECONDS = 86_400.0  # for which a blocked name is looked up again and again after a client has asked for it
MAX_WATCHED = 1024  # names
MIN_INTERVAL, MAX_INTERVAL = 60.0, 300.0  # seconds between two look-ups of a name; its TTL decides in between
FIRST_RETRY = 1.0  # seconds until a look-up without addresses is repeated; doubled each time, up to MAX_INTERVAL
BURST = 5  # look-ups at once; a flood of blocked names must not become one of questions to the upstream
BURST_SECONDS = 0.25  # between two bursts
IN_TURN = -math.inf  # no time is sooner


class _Watch(NamedTuple):
    """A blocked name that clients ask for."""

    until: float  # when it is no longer looked up
    due: float  # when it is looked up next
    since: float  # when it was looked up last; at first when it was asked for
    delay: float = 0.0  # since the last look-up, if that has given no addresses yet
    queued: float = math.inf  # the time of its entry in the heap; IN_TURN: it waits for its turn


class Witness:
    """A worker's end of its channel to the guardian.

    `look_up` asks for a blocked name in the background, and its answer comes to `report`; False means that the name is no
    longer blocked. `ready` is called with the number of a `request_pass` or `request_free` that the guardian has carried out.
    """

    def __init__(self, look_up: Callable[[Name, int], bool], ready: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._look_up = look_up
        self._ready = ready
        self._channel: Channel | None = None
        self._backlog: Backlog | None = None
        self._marks: Marks | None = None
        self._packets: deque[bytes] = deque()  # answers that are gathered
        #: names with which an address was reported lately, by address; those behind blocked names by entry and address
        self._reported: dict[Hashable, tuple[Name, ...]] = {}
        self._reported_since = 0.0
        self._flush_timer: asyncio.TimerHandle | None = None
        self._watched: dict[Name, _Watch] = {}
        self._places: Places[Name] = Places(MAX_WATCHED, MAX_WATCHED, _itself)  # by zone, the names not asked for longest first
        self._turns: Turns[Name] = Turns(MAX_WATCHED, _itself)  # names that are due, by zone
        self._due: list[tuple[float, Name]] = []  # a heap; an entry is void when its name's watch is `queued` at another time
        self._look_up_timer: asyncio.TimerHandle | None = None
        self._no_burst_before = 0.0
        self.learning = False  # whether blocked names are looked up
        self.counters: Counter[str] = Counter()

    @property
    def connected(self) -> bool:
        """Whether a guardian is at the other end."""
        return self._channel is not None

    def connect(self, channel: Channel, marks: Marks) -> None:
        """Report to this guardian from now on; an earlier one has ended."""
        self.close()
        channel.setblocking(False)
        self._channel, self._marks, self._backlog = channel, marks, Backlog(channel, MAX_UNSENT)
        self._reported.clear()
        self._loop.add_reader(channel.fileno(), self._readable)

    def close(self) -> None:
        """Report to no guardian."""
        if self._channel is not None and self._backlog is not None:
            self._backlog.close()
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = self._backlog = None

    def stop(self) -> None:
        """Report what is gathered, and end."""
        for timer in (self._flush_timer, self._look_up_timer):
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
            if received is None:  # the guardian has ended; the supervisor connects the next one
                self.close()
                return
            match received.record:
                case Ready(number):
                    self._ready(number)
                case Flush(number):
                    self._report_all(number)

    def _send(self, record: object) -> bool:
        """Send a record, in order, when the guardian reads. False when it is lost, which is counted."""
        if self._backlog is None:
            return False
        if not self._backlog.send(record):
            self.counters["untold"] += 1
            self._reported.clear()  # some of it was not
            return False
        return True

    # ── addresses of answers ───────────────────────────────────────────────────────────────────────────────────────────

    def request_pass(self, number: int, passing: Passing) -> bool:
        """Ask for addresses to pass the block sets. False: the guardian cannot be asked."""
        return self._send(Pass(number, pack(passing.name, passing.addresses, passing.seconds)))

    def request_free(self, number: int, resolved: Resolved) -> bool:
        """Ask for the addresses of an answer to be freed. False: the guardian cannot be asked."""
        self._flush()
        return self._send(Free(number, pack(resolved.name, resolved.addresses, resolved.seconds)))

    def report(self, resolved: Resolved, rules: Rules) -> bool:
        """Report an answer. True when its reply must wait for `request_free`: an address in it may be blocked."""
        if resolved.decision is not None:
            self._report_blocked(resolved, resolved.decision, rules)
            return False
        marks = self._marks
        if marks is not None and any(address in marks for address in resolved.addresses):
            return True
        self._gather(resolved)
        return False

    def _gather(self, resolved: Resolved) -> None:
        """Report the addresses that were not reported for this name lately, together with others."""
        fresh = self._fresh(resolved, None)
        if not fresh:
            return
        if gather(self._packets, pack(resolved.name, fresh, resolved.seconds)) and len(self._packets) > 1:
            self._flush()
        elif self._flush_timer is None:
            self._flush_timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _fresh(self, resolved: Resolved, entry: Hashable) -> list[bytes]:
        """The addresses that were not reported for this name and entry lately, nor for as many names as are remembered."""
        now = self._loop.time()
        if len(self._reported) >= MAX_REPORTED or now > self._reported_since + REPEAT_SECONDS:
            self._reported.clear()
            self._reported_since = now
        fresh = []
        for address in resolved.addresses:
            key = address if entry is None else (entry, address)
            known = self._reported.get(key, ())
            if resolved.name not in known and len(known) < learning.MAX_NAMES:
                self._reported[key] = (*known, resolved.name)
                fresh.append(address)
        return fresh

    def _flush(self) -> bool:
        """Hand all that is gathered to the guardian's channel. False when some of it is lost."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        packets, self._packets = self._packets, deque()
        sent = [self._send(Answered(packet)) for packet in packets]
        return all(sent)

    def _report_all(self, number: int) -> None:
        """The guardian is about to block an address: it must know first which other names were answered with it."""
        if self._flush():
            self._send(Flushed(number))

    def _report_blocked(self, resolved: Resolved, decision: Decision, rules: Rules) -> None:
        """Report the addresses behind a blocked or audited name, which the guardian may block.

        Anybody's name may lead to a blocked one, so they are reported once for some names of an entry, not for each.
        """
        self._look_up_in(resolved.name, max(resolved.seconds, MIN_INTERVAL))
        if rules.image.classes[decision.class_] in learning.UNLEARNT:
            return
        fresh = self._fresh(resolved, (rules.judged, decision.source, decision.line))
        if fresh and not self._send(Leads(pack(resolved.name, fresh, resolved.seconds))):
            self._look_up_in(resolved.name, FIRST_RETRY)

    # ── blocked names that clients ask for ─────────────────────────────────────────────────────────────────────────────

    def watch(self, asked: Iterable[Name]) -> None:
        """Look these names up, which are blocked or audited: clients have just asked for them."""
        if not self.learning or self._channel is None:
            return
        now = self._loop.time()
        for name in asked:
            watch = self._watched.get(name)
            self._places.remove(name)
            while (gone := self._places.giving_way(None)) is not None:
                self._forget(gone)
            self._places.add(name, _zone(name), None)
            self._watched[name] = (watch or _Watch(0.0, now, now))._replace(until=now + WATCH_SECONDS)
            self._queue(name)
        self._schedule()

    def _look_up_in(self, name: Name, seconds: float) -> None:
        """Look a name up again in so many seconds, if clients ask for it: its addresses are known until then.

        No later than MAX_INTERVAL after the last look-up: queries for aliases of a name, which report it, do not put it off.
        """
        watch = self._watched.get(name)
        if watch is not None:
            due = min(self._loop.time() + seconds, watch.since + MAX_INTERVAL)
            self._watched[name] = watch._replace(due=due, delay=0.0)
            self._queue(name)
            self._schedule()

    def _queue(self, name: Name) -> None:
        """Put a name into the heap, unless it stands there already and is not due any sooner than that."""
        watch = self._watched[name]
        if watch.due < watch.queued:
            self._watched[name] = watch._replace(queued=watch.due)
            heapq.heappush(self._due, (watch.due, name))

    def _schedule(self) -> None:
        """Set the timer for the next look-up, not too soon after the last burst."""
        if not self._due and not self._turns:
            return
        at = max(0.0 if self._turns else self._due[0][0], self._no_burst_before)
        if self._look_up_timer is None or at < self._look_up_timer.when():
            if self._look_up_timer is not None:
                self._look_up_timer.cancel()
            self._look_up_timer = self._loop.call_at(at, self._look_up_due)

    def _look_up_due(self) -> None:
        """Look up the names that are due, a few at once, of one zone after the other."""
        self._look_up_timer = None
        now = self._loop.time()
        try:
            self._take_due(now)
            self._burst(now)
        finally:
            self._no_burst_before = now + BURST_SECONDS
            self._schedule()

    def _take_due(self, now: float) -> None:
        """Have the names whose time in the heap has come wait for their turn, or for the later time that they are due at."""
        while self._due and self._due[0][0] <= now:
            at, name = heapq.heappop(self._due)
            watch = self._watched.get(name)
            if watch is None or watch.queued != at:
                continue
            if watch.due > now:
                self._watched[name] = watch._replace(queued=math.inf)
                self._queue(name)
            else:
                self._watched[name] = watch._replace(queued=IN_TURN)
                self._turns.add(_zone(name), name, always=True)

    def _burst(self, now: float) -> None:
        """Look up some of the names whose turn it is."""
        done = 0
        while done < BURST and (name := self._turns.next()) is not None:
            watch = self._watched.get(name)
            if watch is None or watch.queued != IN_TURN:  # it was forgotten meanwhile
                continue
            if watch.due > now:  # a report has put it off
                self._watched[name] = watch._replace(queued=math.inf)
                self._queue(name)
                continue
            delay = min(2 * watch.delay, MAX_INTERVAL) or min(FIRST_RETRY, MAX_INTERVAL)
            self._watched[name] = watch._replace(due=now + delay, since=now, delay=delay, queued=math.inf)
            self._queue(name)
            wanted = now < watch.until and self.learning
            if not wanted or not (self._look_up(name, message.A) and self._look_up(name, message.AAAA)):
                self._forget(name)
                continue
            done += 1
            self.counters["looked_up"] += 1

    def _forget(self, name: Name) -> None:
        """Look a name up no longer."""
        self._places.remove(name)
        del self._watched[name]


def _zone(name: Name) -> str:
    """What a flood of names below one name has in common: the last two labels. Of the root name, the root name."""
    return (list(names.suffixes(name))[-2:] or [name])[0].decode("latin-1")


def _itself(zone: str) -> str:
    return zone
