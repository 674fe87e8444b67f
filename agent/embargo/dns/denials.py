"""Names that do not exist: a cached NXDOMAIN denies all types of its name, and all names below it (RFC 8020).

This index leads from a name to the cached answer that denies it. The cache knows nothing of it: a key that leads to no live
NXDOMAIN any more is noticed when it is looked up.
"""

from embargo import names
from embargo.dns import message
from embargo.dns.cache import Cache, CachedAnswer
from embargo.names import Name

MAX_NAMES = 4096  # of which the oldest is forgotten first; some 1 MiB


class Denials:
    """Which names the answers in a cache deny."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._keys: dict[bytes, bytes] = {}  # name with the octet of DO and CD → key of the cached answer

    def __len__(self) -> int:
        return len(self._keys)

    def note(self, key: bytes) -> None:
        """This key has an NXDOMAIN in the cache now. One behind an alias denies another name, and is not noted."""
        denied = key[:-3] + key[-1:]
        self._keys.pop(denied, None)
        if len(self._keys) >= MAX_NAMES:
            del self._keys[next(iter(self._keys))]
        self._keys[denied] = key

    def of(self, key: bytes, now: float) -> tuple[Name, CachedAnswer] | None:
        """The name at or above that of this key that does not exist, and the live answer that says so."""
        if not self._keys:
            return None
        for above in names.suffixes(Name(key[:-3])):
            denied = above + key[-1:]
            found = self._keys.get(denied)
            if found is None:
                continue
            entry = self._cache.get(found, now)
            if entry is not None and entry.answer.rcode == message.NXDOMAIN and not entry.answer.counts[0]:
                return above, entry
            del self._keys[denied]
        return None

    def flush(self, name: Name) -> None:
        """Forget what denies this name from above it."""
        for above in names.suffixes(name):
            for octet in range(4):
                self._keys.pop(above + bytes([octet]), None)
