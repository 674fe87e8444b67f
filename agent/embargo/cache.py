"""Upstream answers and their remaining TTL.

A key is the question in lower case with the DO and CD bits (`message.Query.key`); a value is what stands behind the
question, ready to send but for its TTLs. Only upstream answers are kept, never a block. Each entry remembers which
judgement passed it whole (`judged`): after a change of policy the first hit judges it again, so a block acts at once.
Time comes in as `now`, seconds of a monotonic clock; nothing expires by itself. The cache is bounded by octets. The entry
stored longest ago goes first, unless it was asked for since: so a flood of names asked once does not push out the others.
"""

import struct

from embargo.message import Answer

OVERHEAD = 700  # octets of Python objects around an entry, measured with tracemalloc
PER_RECORD = 120  # and for each of its records
CHANCES = 32  # entries spared at once because they were asked for: bounds what one answer costs
NOBODY = -1  # the judgement of an entry that needs one every time


class Entry:
    """An answer, the moment it was stored, and its octets with the TTLs of the second they were last asked for."""

    __slots__ = ("_aged", "_body", "answer", "expires", "judged", "size", "stored", "used")

    def __init__(self, answer: Answer, now: float, judged: int, size: int) -> None:
        self.answer = answer
        self.stored = now
        self.expires = now + answer.lifetime
        self.judged = judged
        self.size = size
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

    def known_until(self, now: float) -> float:
        """Until when it may be given out without asking the cache again."""
        return self.expires

    def steady(self, now: float) -> float:
        """Until when the octets of now stay as they are."""
        return min(self.stored + int(now - self.stored) + 1, self.expires)


class Cache:
    def __init__(self, limit: int = 32 << 20) -> None:
        self._limit = limit
        self._entries: dict[bytes, Entry] = {}
        self.octets = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> Entry | None:
        """The live entry for a question, not counted: the fast path may decline it. The caller looks at `judged`."""
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            return None
        entry.used = True
        return entry

    def put(self, key: bytes, answer: Answer, now: float, judged: int) -> None:
        """Store an answer for its lifetime. One that may not be cached (TTL 0, no SOA) takes an older one out."""
        self.drop(key)
        if answer.lifetime <= 0:
            return
        size = len(key) + 2 * len(answer.body) + PER_RECORD * len(answer.ttls) + OVERHEAD
        self._entries[key] = Entry(answer, now, judged, size)
        self.octets += size
        self._shrink(now)

    def _shrink(self, now: float) -> None:
        chances = CHANCES
        while self.octets > self._limit:
            key, entry = next(iter(self._entries.items()))
            self.drop(key)
            if entry.used and chances and entry.expires > now:
                chances -= 1
                entry.used = False
                self._entries[key] = entry
                self.octets += entry.size

    def drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.octets -= entry.size

    def clear(self) -> None:
        self._entries.clear()
        self.octets = 0
