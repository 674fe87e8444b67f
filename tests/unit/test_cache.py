"""Answers and their remaining TTL."""

from embargo.cache import OVERHEAD, Cache
from embargo.message import Answer

SECTIONS = (1, 0, 0)


def answer(ttl: int, body: bytes = b"") -> Answer:
    """A body that is one TTL, and some octets."""
    return Answer(0, SECTIONS, ttl.to_bytes(4) + body, ((0, ttl),), lifetime=ttl)


def test_ttls_age_by_whole_seconds() -> None:
    cache = Cache()
    cache.put(b"key", answer(100), 1000.0, 1)
    for now, left in ((1000.0, 100), (1000.9, 100), (1001.0, 99), (1099.5, 1), (1000.2, 100)):
        entry = cache.get(b"key", now)
        assert entry is not None
        assert int.from_bytes(entry.body(now)[:4]) == left


def test_an_entry_ends_with_its_lifetime() -> None:
    cache = Cache()
    cache.put(b"key", answer(10), 0.0, 1)
    assert cache.get(b"key", 9.99) is not None
    assert cache.get(b"key", 10.0) is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_what_may_not_be_cached_takes_the_older_answer_out() -> None:
    cache = Cache()
    cache.put(b"key", answer(10), 0.0, 1)
    cache.put(b"key", answer(0), 1.0, 1)
    assert cache.get(b"key", 1.0) is None
    assert (len(cache), cache.octets) == (0, 0)


def test_octets_are_bounded_and_the_oldest_goes_first() -> None:
    cache = Cache(limit=10 * (OVERHEAD + 400))
    for number in range(50):
        cache.put(number.to_bytes(2), answer(100, bytes(200)), 0.0, 1)
        assert cache.octets <= 10 * (OVERHEAD + 400)
    assert cache.get((0).to_bytes(2), 1.0) is None
    assert cache.get((49).to_bytes(2), 1.0) is not None


def test_octets_come_back_when_entries_go() -> None:
    cache = Cache()
    for _ in range(3):
        cache.put(b"key", answer(10, bytes(100)), 0.0, 1)
    assert len(cache) == 1
    cache.drop(b"key")
    cache.drop(b"key")
    assert cache.octets == 0
    cache.put(b"key", answer(10), 0.0, 1)
    cache.clear()
    assert (len(cache), cache.octets) == (0, 0)
