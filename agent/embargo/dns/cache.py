"""Upstream answers and their remaining TTL.

A key is the question in lower case with the DO and CD bits (`message.Query.key`); a value is the part of a message behind the
question, ready to send but for its TTLs. Only upstream answers are kept, never a block. Each entry remembers the judgement
by which nothing in it was claimed (`judged`): after a change of policy the first hit screens it again, so a block acts at
once. Time comes in as `now`, seconds of a monotonic clock; nothing expires by itself.

The cache is bounded by octets. A new entry stands in the probation queue, which has a tenth of the room. An entry that is hit
before it is evicted moves to the main queue; a key that is stored again soon after its eviction goes there at once. So a
flood of names that are asked for once evicts little else than other names asked for once (S3-FIFO, Yang et al., SOSP 2023).
Room is made before it is needed, with a bounded number of entries for each answer, so that no answer waits for a long
eviction.

Expired entries are kept for a day, as long as there is room, for the case that no upstream answers (RFC 8767).
"""

import math
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from embargo import names
from embargo.dns.message import AA, Answer, turning
from embargo.names import Name

OVERHEAD = 740  # octets of Python objects around an entry, measured with tracemalloc
PER_RECORD = 105  # and for each of its records
PER_LEAD = 165  # and for each owner in its answer section
STEPS = 32  # entries looked at for one answer, as long as the margin is not used up
MARGIN = 32  # the margin is one part in 32 of the room
PROBATION = 10  # the probation queue has one part in 10 of the room
GHOSTS = 8192  # evicted keys remembered in each of two halves
SCREEN_ALWAYS = -1  # in place of a judgement: the entry is screened at every hit
STALE_FOR = 86_400.0  # seconds an expired answer may still be given out (RFC 8767 section 5)
STALE_TTL = 30  # seconds that a client may keep such an answer (RFC 8767 section 4)
RETRY = 5.0  # seconds without asking again after no upstream has answered
REFRESH = 0.9  # the part of its lifetime after which a hit renews an entry
SHORTEST = 10  # seconds of lifetime below which no entry is renewed
MAX_WANTED = 256  # keys to be renewed at a time
_NOTHING = Answer(0)


class CachedAnswer:
    """An answer, when it was stored, and its octets with the TTLs of the second of the last hit."""

    __slots__ = (
        "_aged",
        "_body",
        "answer",
        "dropped",
        "expires",
        "judged",
        "key",
        "main",
        "refresh_at",
        "retry_at",
        "size",
        "stored",
        "turning",
        "used",
        "verdicts",
    )  # fmt: skip

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.used = False  # hit since it was stored, or since it was last spared from eviction
        self.main = False  # in the main queue, not on probation
        self.dropped = False  # left in its queue, but no longer in the cache

    def store(self, answer: Answer, now: float, judged: int) -> None:
        """Hold this answer from now on. `judged`: the number of the judgement by which nothing in it is claimed."""
        # a cached answer is not authoritative (RFC 1035 section 4.1.1)
        self.answer = answer = answer._replace(flags=answer.flags & ~AA) if answer.flags & AA else answer
        self.stored = now
        self.expires = now + answer.lifetime
        self.judged = judged
        #: what the engine found when it screened the answer, by judgement: `screening.Screened`, without the answer
        self.verdicts: dict[int, Any] | None = None
        self.size = (
            OVERHEAD + len(self.key) + 2 * len(answer.body) + PER_RECORD * len(answer.ttls) + PER_LEAD * len(answer.leads)
        )
        #: a second hit after this moment renews the entry, see `Cache.get`
        self.refresh_at = now + REFRESH * answer.lifetime if answer.lifetime >= SHORTEST else math.inf
        self.retry_at = 0.0
        self.used = False
        self.turning = turning(answer)
        self._aged = 0
        self._body = answer.body

    def body(self, now: float) -> bytes:
        """The answer's octets, every TTL less the whole seconds since it was stored."""
        age = int(now - self.stored)
        if age != self._aged:
            body = bytearray(self.answer.body)
            for offset, ttl in self.answer.ttls:
                struct.pack_into("!I", body, offset, max(ttl - age, 0))
            self._body = bytes(body)
            self._aged = age
        return self._body

    def stale(self) -> Answer:
        """The expired answer as it may be given out, with short TTLs."""
        body = bytearray(self.answer.body)
        for offset, _ in self.answer.ttls:
            struct.pack_into("!I", body, offset, STALE_TTL)
        ttls = tuple((offset, STALE_TTL) for offset, _ in self.answer.ttls)
        return self.answer._replace(body=bytes(body), ttls=ttls, flags=0)  # AD too: signatures may have expired

    def known_until(self, now: float) -> float:
        """Until when it may be given out without a call of `Cache.get`."""
        return self.refresh_at if now < self.refresh_at < self.expires else self.expires

    def steady(self, now: float) -> float:
        """Until when its octets stay as they are at `now`."""
        return min(self.stored + int(now - self.stored) + 1, self.known_until(now))


class Cache:
    """All entries. `limit`: octets of room.

    `on_wanted` is called when the first key enters `wanted`; the caller then takes that list and leaves an empty one.
    """

    def __init__(self, limit: int = 32 << 20, on_wanted: Callable[[], object] = lambda: None) -> None:
        self._limit = limit
        self._on_wanted = on_wanted
        self._enough = limit - limit // MARGIN
        self._entries: dict[bytes, CachedAnswer] = {}
        self._queues: tuple[deque[CachedAnswer], deque[CachedAnswer]] = deque(), deque()  # probation, main
        self._octets = [0, 0]  # of the entries in them
        self._dropped = 0  # entries that are left in a queue, but no longer in the cache
        self._ghosts: set[int] = set()
        self._old_ghosts: set[int] = set()
        self.wanted: list[bytes] = []  # keys of entries to be renewed
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def octets(self) -> int:
        """Octets taken, estimated."""
        return sum(self._octets)

    def get(self, key: bytes, now: float) -> CachedAnswer | None:
        """The live entry for a question. The caller looks at `judged`, and counts the hit: the fast path may decline it."""
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            return None
        if entry.used and now >= entry.refresh_at:
            self._want(key, entry)
        entry.used = True
        return entry

    def live(self, now: float) -> list[CachedAnswer]:
        """The entries whose answers have not expired."""
        return [entry for entry in self._entries.values() if entry.expires > now]

    def _want(self, key: bytes, entry: CachedAnswer) -> None:
        """A popular entry is about to expire: have it renewed, once."""
        entry.refresh_at = math.inf
        if not self.wanted:
            self._on_wanted()
        if len(self.wanted) < MAX_WANTED:
            self.wanted.append(key)

    def stale(self, key: bytes, now: float) -> CachedAnswer | None:
        """An expired entry that may still be given out when no upstream answers."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.expires <= now < entry.expires + STALE_FOR else None

    def put(self, key: bytes, answer: Answer, now: float, judged: int) -> None:
        """Store an answer for its lifetime. One that may not be cached (TTL 0, no SOA) removes an older one."""
        if answer.lifetime <= 0:
            self.drop(key)
            return
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = CachedAnswer(key)
            entry.main = hash(key) in self._ghosts or hash(key) in self._old_ghosts
            self._queues[entry.main].append(entry)
        else:
            self._octets[entry.main] -= entry.size
        entry.store(answer, now, judged)
        self._octets[entry.main] += entry.size
        if self._octets[0] + self._octets[1] > self._enough:
            self._shrink(now)

    def _shrink(self, now: float) -> None:
        """Evict: from the probation queue while it has more than its part, else from the main queue.

        An entry that was hit is spared once, unless the margin is used up and the search would take too long.
        """
        probation, main = self._queues
        steps = STEPS
        while (octets := self._octets[0] + self._octets[1]) > self._enough and (steps or octets > self._limit):
            queue = main if main and (self._octets[0] * PROBATION <= self._limit or main[0].expires <= now) else probation
            entry = queue.popleft()
            if entry.dropped:
                self._dropped -= 1
            elif steps and entry.used and entry.expires > now:
                self._octets[entry.main] -= entry.size
                self._octets[1] += entry.size
                entry.used, entry.main = False, True
                main.append(entry)
            else:
                if not entry.main:
                    self._remember(entry.key)
                self._octets[entry.main] -= entry.size
                del self._entries[entry.key]
            steps -= steps > 0

    def _remember(self, key: bytes) -> None:
        if len(self._ghosts) >= GHOSTS:
            self._old_ghosts, self._ghosts = self._ghosts, set()
        self._ghosts.add(hash(key))

    def drop(self, key: bytes) -> None:
        """Remove the entry of a key, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._octets[entry.main] -= entry.size
        entry.dropped = True
        entry.answer, entry._body = _NOTHING, b""
        self._dropped += 1
        if self._dropped > 1000 + len(self._entries):  # keys that are stored and dropped again and again
            for queue in self._queues:
                alive = [other for other in queue if not other.dropped]
                queue.clear()
                queue.extend(alive)
            self._dropped = 0

    def flush(self, name: Name) -> int:
        """Remove the answers for a name and all names below it, expired ones too. How many there were."""
        keys = [key for key in self._entries if names.is_below(key[:-3], name)]
        for key in keys:
            self.drop(key)
        return len(keys)

    def drop_private(self) -> None:
        """Remove the answers that had private addresses: which of them stay may have changed."""
        for key in [key for key, entry in self._entries.items() if entry.answer.private]:
            self.drop(key)

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        for queue in self._queues:
            queue.clear()
        self.wanted = []
        self._octets = [0, 0]
        self._dropped = 0
