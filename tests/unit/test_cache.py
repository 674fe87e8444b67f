"""Answers and their remaining TTL."""

import gc
import tracemalloc

import dns.message
import dns.rrset
import pytest

from embargo import names
from embargo.dns import response
from embargo.dns.cache import MAX_WANTED, OVERHEAD, PER_RECORD, SHORTEST, STALE_FOR, STALE_TTL, STEPS, Cache
from embargo.dns.message import AA, AD, Answer
from support import twins

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


def test_what_is_remembered_has_no_authority() -> None:
    cache = Cache()
    cache.put(b"key", answer(10)._replace(flags=AA | AD), 0.0, 1)
    entry = cache.get(b"key", 1.0)
    assert entry is not None
    assert (entry.answer.flags, entry.stale().flags) == (AD, 0)


def test_an_entry_ends_with_its_lifetime() -> None:
    cache = Cache()
    cache.put(b"key", answer(10), 0.0, 1)
    assert cache.get(b"key", 9.99) is not None
    assert cache.get(b"key", 10.0) is None


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


def test_a_flood_of_names_asked_once_does_not_push_out_what_is_asked_for() -> None:
    size = OVERHEAD + PER_RECORD + 12
    cache = Cache(limit=100 * size)
    cache.put(b"hot", answer(1000), 0.0, 1)
    for number in range(1000):
        assert cache.get(b"hot", 1.0) is not None
        cache.put(number.to_bytes(4), answer(1000), 1.0, 1)
    assert cache.octets <= 100 * size
    assert cache.get((0).to_bytes(4), 1.0) is None


def test_what_is_not_asked_for_any_more_goes_in_the_end() -> None:
    cache = Cache(limit=10 * (OVERHEAD + PER_RECORD + 12))
    cache.put(b"once hot", answer(1000), 0.0, 1)
    cache.get(b"once hot", 1.0)
    for number in range(60):
        cache.put(number.to_bytes(4), answer(1000), 1.0, 1)
        cache.get(number.to_bytes(4), 1.0)
    assert cache.get(b"once hot", 1.0) is None


def test_five_thousand_hot_names_survive_a_million_that_are_asked_once() -> None:
    cache = Cache(limit=20_000 * (OVERHEAD + PER_RECORD + 12))
    hot = [b"hot %d" % number for number in range(5000)]
    for key in hot:
        cache.put(key, answer(3600), 0.0, 1)
        assert cache.get(key, 0.0) is not None
    cold = answer(3600)
    for number in range(1_000_000):
        cache.put(number.to_bytes(4), cold, 1.0, 1)
    assert all(cache.get(key, 2.0) is not None for key in hot)
    assert len(cache) <= 20_000


def test_a_key_that_is_stored_again_soon_after_eviction_stays() -> None:
    cache = Cache(limit=100 * (OVERHEAD + PER_RECORD + 12))
    for key in (b"seldom", *(number.to_bytes(4) for number in range(150))):
        cache.put(key, answer(1000), 0.0, 1)
    assert cache.get(b"seldom", 1.0) is None
    cache.put(b"seldom", answer(1000), 1.0, 1)
    for number in range(1000, 3000):
        cache.put(number.to_bytes(4), answer(1000), 1.0, 1)
    assert cache.get(b"seldom", 2.0) is not None


def test_names_that_are_stored_and_dropped_for_ever_leave_nothing_behind() -> None:
    cache = Cache()
    for _ in range(20_000):
        cache.put(b"key", answer(10), 0.0, 1)
        cache.put(b"key", answer(0), 0.0, 1)
    assert sum(map(len, cache._queues)) < 5000
    assert (len(cache), cache.octets) == (0, 0)


def test_a_name_that_is_renewed_for_ever_stands_in_its_queue_once() -> None:
    cache = Cache()
    for number in range(5000):
        cache.put(b"key", answer(10), float(number), 1)
    assert (sum(map(len, cache._queues)), len(cache)) == (1, 1)


def test_an_answer_after_its_time_is_kept_for_a_day() -> None:
    cache = Cache()
    cache.put(b"key", answer(10), 0.0, 1)
    assert cache.stale(b"key", 9.0) is None
    entry = cache.stale(b"key", 10.0)
    assert entry is not None
    assert entry.stale().body[:4] == STALE_TTL.to_bytes(4)
    assert entry.stale().ttls == ((0, STALE_TTL),)
    assert cache.get(b"key", 10.0) is None
    assert cache.stale(b"key", 10.0 + STALE_FOR) is None


def test_a_name_asked_for_near_its_end_is_wanted_once() -> None:
    cache = Cache()
    cache.put(b"key", answer(100), 0.0, 1)
    for now in (1.0, 89.0, 90.0, 95.0):
        cache.get(b"key", now)
    assert cache.wanted == [b"key"]
    cache.put(b"key", answer(100), 96.0, 1)
    assert cache.get(b"key", 190.0) is not None
    assert cache.wanted == [b"key"], "nobody asked for it since"
    cache.get(b"key", 190.0)
    assert cache.wanted == [b"key", b"key"]


def test_an_answer_of_a_few_seconds_is_not_renewed() -> None:
    cache = Cache()
    cache.put(b"key", answer(SHORTEST - 1), 0.0, 1)
    for _ in range(3):
        cache.get(b"key", 8.9)
    assert cache.wanted == []


def test_what_is_wanted_is_bounded() -> None:
    cache = Cache()
    for number in range(2 * MAX_WANTED):
        cache.put(number.to_bytes(2), answer(100), 0.0, 1)
        for _ in range(2):
            cache.get(number.to_bytes(2), 95.0)
    assert len(cache.wanted) == MAX_WANTED
    cache.clear()
    assert cache.wanted == []


def test_what_is_over_goes_although_it_was_asked_for() -> None:
    cache = Cache(limit=10 * (OVERHEAD + PER_RECORD + 12))
    cache.put(b"old", answer(5), 0.0, 1)
    cache.get(b"old", 1.0)
    for number in range(9):
        cache.put(number.to_bytes(4), answer(1000), 6.0, 1)
    assert cache.stale(b"old", 6.0) is None
    assert cache.get((0).to_bytes(4), 6.0) is not None


def test_what_is_over_goes_before_what_was_asked_for_once() -> None:
    """Although it had proven itself."""
    cache = Cache(limit=100 * (OVERHEAD + PER_RECORD + 12))
    for number in range(200):  # half of them are asked for again and stay
        key = number.to_bytes(4)
        cache.put(key, answer(10), 0.0, 1)
        if number % 2:
            cache.get(key, 0.0)
    proven = [number for number in range(1, 150, 2) if cache.get(number.to_bytes(4), 1.0) is not None]
    assert len(proven) > 50
    fresh = [number.to_bytes(4) for number in range(1000, 1060)]
    for key in fresh:
        cache.put(key, answer(1000), 20.0, 1)
    assert all(cache.get(key, 20.0) is not None for key in fresh)


def test_one_answer_waits_for_few_others_to_go() -> None:
    """Even when all that is there was asked for, and nothing is lost for it that is asked for again."""
    cache = Cache(limit=2000 * (OVERHEAD + PER_RECORD + 12))
    keys = [number.to_bytes(4) for number in range(1500)]
    for key in keys:
        cache.put(key, answer(1000), 0.0, 1)
        cache.get(key, 0.0)
    for number in range(2000, 4000):
        before = len(cache._queues[1])
        cache.put(number.to_bytes(4), answer(1000), 0.0, 1)
        assert len(cache._queues[1]) <= before + STEPS
        assert cache.octets <= 2000 * (OVERHEAD + PER_RECORD + 12)
    assert all(cache.get(key, 1.0) is not None for key in keys)


def test_what_was_dropped_holds_no_octets() -> None:
    """It may stand in its queue for a while yet."""
    tracemalloc.start()
    cache = Cache()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(900):
        cache.put(number.to_bytes(4), answer(10, bytes(60_000)), 0.0, 1)
        cache.put(number.to_bytes(4), answer(0), 0.0, 1)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(cache) == 0
    assert used < 1_000_000


def test_one_answer_larger_than_the_cache_is_not_kept() -> None:
    cache = Cache(limit=1000)
    cache.put(b"large", answer(100, bytes(4000)), 0.0, 1)
    assert (len(cache), cache.octets) == (0, 0)


@pytest.mark.parametrize("aliases", [0, 1, 3, 8])
@pytest.mark.parametrize("addresses", [0, 1, 4, 16])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_octets_of_an_entry_are_estimated_within_a_quarter(
    aliases: int, addresses: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        twins.without(monkeypatch)
    wires = [real(number, aliases, addresses) for number in range(100)]
    gc.collect()  # empties Python's free lists: what is taken from there is not traced
    tracemalloc.start()
    cache = Cache()
    before = tracemalloc.get_traced_memory()[0]
    for wire, question in wires:
        cache.put(question[:-2] + b"\0", response.parse(wire, question), 0.0, 1)
    for _, question in wires:
        entry = cache.get(question[:-2] + b"\0", 5.0)
        assert entry is not None
        entry.body(5.0)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert used * 0.75 < cache.octets < used * 1.25


def real(number: int, aliases: int, addresses: int) -> tuple[bytes, bytes]:
    """A response with a chain of aliases and some addresses, or an SOA, and its question."""
    owner = f"host{number}.some.example.test."
    made = dns.message.make_response(dns.message.make_query(owner, "A"))
    for step in range(aliases):
        target = f"edge{number}-{step}.cdn.example."
        made.answer.append(dns.rrset.from_text(owner, 300, "IN", "CNAME", target))
        owner = target
    for last in range(addresses):
        made.answer.append(dns.rrset.from_text(owner, 300, "IN", "A", f"192.0.{number % 256}.{last}"))
    if not addresses:
        soa = "ns.example.test. mail.example.test. 1 2 3 4 300"
        made.authority.append(dns.rrset.from_text("test." if not aliases else "example.", 900, "IN", "SOA", soa))
    return made.to_wire(), names.from_text(f"host{number}.some.example.test") + b"\0\1\0\1"


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
