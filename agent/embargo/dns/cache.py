"""Upstream answers and their remaining TTL.

A key is the question in lower case with the DO and CD bits (`message.Query.key`); a value is what stands behind the
question, ready to send but for its TTLs. Only upstream answers are kept, never a block. Each entry remembers which
judgement passed it whole (`judged`): after a change of policy the first hit judges it again, so a block acts at once.
Time comes in as `now`, seconds of a monotonic clock; nothing expires by itself.

The cache is bounded by octets. A new entry stands in the queue of those on probation, a tenth of the room; whoever is asked
for again before its end comes goes to the queue of the proven ones, and so does who comes back soon after he had to leave.
So a flood of names asked once pushes out no more than other names asked once (S3-FIFO, Yang et al., SOSP 2023). Room is made
before the last octet is taken, a bounded number of entries an answer, so that no answer waits for many others to go.

What has expired is kept for a day, as long as there is room, for the case that no upstream answers (RFC 8767).
"""

import math
import struct
from collections import deque
from collections.abc import Callable

from embargo.dns.message import AA, Answer

OVERHEAD = 740  # octets of Python objects around an entry, measured with tracemalloc
PER_RECORD = 105  # and for each of its records
PER_LEAD = 165  # and for each owner in its answer section
STEPS = 32  # entries looked at for one answer as long as there is a margin
MARGIN = 32  # the part of the room kept free for it, one in so many
PROBATION = 10  # the part of the room, one in so many
GHOSTS = 8192  # names remembered in each half after they had to leave
NOBODY = -1  # the judgement of an entry that needs one every time
STALE_FOR = 86_400.0  # seconds an expired answer may still be given out (RFC 8767 section 5)
STALE_TTL = 30  # seconds that a client may keep it
RETRY = 5.0  # seconds without asking again after no upstream answered
REFRESH = 0.9  # the part of its life after which a name that is asked for is fetched anew
SHORTEST = 10  # seconds of life that are worth it
MAX_WANTED = 256  # names to be fetched anew at a time
_NOTHING = Answer(0)


class Entry:
    """An answer, the moment it was stored, and its octets with the TTLs of the second they were last asked for."""

    __slots__ = (
        "_aged", "_body", "answer", "expires", "gone", "judged", "key", "proven", "refresh_at", "retry_at", "size", "stored",
        "used",
    )  # fmt: skip

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.used = False  # asked for since it was stored, or since it was last spared
        self.proven = False
        self.gone = False  # still in its queue, and nowhere else

    def store(self, answer: Answer, now: float, judged: int) -> None:
        # what is remembered is nobody's authority (RFC 1035 section 4.1.1)
        self.answer = answer = answer._replace(flags=answer.flags & ~AA) if answer.flags & AA else answer
        self.stored = now
        self.expires = now + answer.lifetime
        self.judged = judged
        self.size = (
            OVERHEAD + len(self.key) + 2 * len(answer.body) + PER_RECORD * len(answer.ttls) + PER_LEAD * len(answer.leads)
        )
        #: a hit after this is told the cache, see `Cache.near_expiry`
        self.refresh_at = now + REFRESH * answer.lifetime if answer.lifetime >= SHORTEST else math.inf
        self.retry_at = 0.0
        self.used = False
        self._aged = 0
        self._body = answer.body

    def body(self, now: float) -> bytes:
        """The answer's octets with every TTL less the whole seconds it has been here."""
        age = int(now - self.stored)
        if age != self._aged:
            body = bytearray(self.answer.body)
            for offset, ttl in self.answer.ttls:
                struct.pack_into("!I", body, offset, max(ttl - age, 0))
            self._body = bytes(body)
            self._aged = age
        return self._body

    def stale(self) -> Answer:
        """The answer after its time."""
        body = bytearray(self.answer.body)
        for offset, _ in self.answer.ttls:
            struct.pack_into("!I", body, offset, STALE_TTL)
        ttls = tuple((offset, STALE_TTL) for offset, _ in self.answer.ttls)
        return self.answer._replace(body=bytes(body), ttls=ttls, flags=0)  # signatures may be over too

    def known_until(self, now: float) -> float:
        """Until when it may be given out without asking the cache again."""
        return self.refresh_at if now < self.refresh_at < self.expires else self.expires

    def steady(self, now: float) -> float:
        """Until when the octets of now stay as they are."""
        return min(self.stored + int(now - self.stored) + 1, self.known_until(now))


class Cache:
    """`wanting` is called when the first name is to be fetched anew; whoever takes `wanted` leaves an empty list there."""

    def __init__(self, limit: int = 32 << 20, wanting: Callable[[], object] = lambda: None) -> None:
        self._limit = limit
        self._wanting = wanting
        self._enough = limit - limit // MARGIN
        self._entries: dict[bytes, Entry] = {}
        self._queues: tuple[deque[Entry], deque[Entry]] = deque(), deque()  # on probation, proven
        self._held = [0, 0]  # octets in them
        self._gone = 0  # entries that stand in a queue and nowhere else
        self._ghosts: set[int] = set()
        self._old_ghosts: set[int] = set()
        self.wanted: list[bytes] = []  # keys to be fetched anew
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def octets(self) -> int:
        return sum(self._held)

    def get(self, key: bytes, now: float) -> Entry | None:
        """The live entry for a question, not counted: the fast path may decline it. The caller looks at `judged`."""
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            return None
        if entry.used and now >= entry.refresh_at:
            self.near_expiry(key, entry)
        entry.used = True
        return entry

    def held(self, now: float) -> list[Entry]:
        """The entries whose answers have not expired."""
        return [entry for entry in self._entries.values() if entry.expires > now]

    def near_expiry(self, key: bytes, entry: Entry) -> None:
        """Somebody who is asked for often will soon be gone: he is fetched anew before, once."""
        entry.refresh_at = math.inf
        if not self.wanted:
            self._wanting()
        if len(self.wanted) < MAX_WANTED:
            self.wanted.append(key)

    def stale(self, key: bytes, now: float) -> Entry | None:
        """An entry that has expired and may still be given out when nobody knows better."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.expires <= now < entry.expires + STALE_FOR else None

    def put(self, key: bytes, answer: Answer, now: float, judged: int) -> None:
        """Store an answer for its lifetime. One that may not be cached (TTL 0, no SOA) takes an older one out."""
        if answer.lifetime <= 0:
            self.drop(key)
            return
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key)
            entry.proven = hash(key) in self._ghosts or hash(key) in self._old_ghosts
            self._queues[entry.proven].append(entry)
        else:
            self._held[entry.proven] -= entry.size
        entry.store(answer, now, judged)
        self._held[entry.proven] += entry.size
        if self._held[0] + self._held[1] > self._enough:
            self._shrink(now)

    def _shrink(self, now: float) -> None:
        """Make room: from those on probation while they have more than their part, else from the proven ones.

        Who was asked for is spared, unless there is no margin left and looking for another would take too long.
        """
        probation, proven = self._queues
        steps = STEPS
        while (octets := self._held[0] + self._held[1]) > self._enough and (steps or octets > self._limit):
            queue = proven if proven and (self._held[0] * PROBATION <= self._limit or proven[0].expires <= now) else probation
            entry = queue.popleft()
            if entry.gone:
                self._gone -= 1
            elif steps and entry.used and entry.expires > now:
                self._held[entry.proven] -= entry.size
                self._held[1] += entry.size
                entry.used, entry.proven = False, True
                proven.append(entry)
            else:
                if not entry.proven:
                    self._remember(entry.key)
                self._held[entry.proven] -= entry.size
                del self._entries[entry.key]
            steps -= steps > 0

    def _remember(self, key: bytes) -> None:
        if len(self._ghosts) >= GHOSTS:
            self._old_ghosts, self._ghosts = self._ghosts, set()
        self._ghosts.add(hash(key))

    def drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._held[entry.proven] -= entry.size
        entry.gone = True
        entry.answer, entry._body = _NOTHING, b""
        self._gone += 1
        if self._gone > 1000 + len(self._entries):  # names that are stored and dropped again and again
            for queue in self._queues:
                alive = [each for each in queue if not each.gone]
                queue.clear()
                queue.extend(alive)
            self._gone = 0

    def clear(self) -> None:
        self._entries.clear()
        for queue in self._queues:
            queue.clear()
        self.wanted = []
        self._held = [0, 0]
        self._gone = 0
