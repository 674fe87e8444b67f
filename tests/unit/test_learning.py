"""Which addresses are blocked because of a name, and which are not, without a clock or a kernel."""

import ipaddress
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo import names
from embargo.firewall import learning
from embargo.firewall.learning import (
    BLOCK_GRACE_SECONDS,
    GATHERING_SECONDS,
    IN_USE_SECONDS,
    MAX_NAMES,
    MIN_TTL_SECONDS,
    Book,
    Reason,
)
from embargo.lists.policy import Class, Network

A, B, C = b"\xcb\0\x71\1", b"\xcb\0\x71\2", bytes(15) + b"\7"
PAY, LOG, FREE = map(names.from_text, ("pay.alipay.example", "log.alipay.example", "free.test"))
CLASS = Class("alipay", "payment")


def reason(name: names.Name = PAY) -> Reason:
    return Reason(name, CLASS, "alipay/payment.list", 1, "alipay.example")


def nobody(name: names.Name) -> bool:
    del name
    return False


def blocked(book: Book, now: float) -> set[bytes]:
    return {address for address, _, _ in book.blocked(now)}


def test_what_is_behind_a_blocked_name_is_blocked_for_its_time_and_a_grace() -> None:
    book = Book()
    assert book.leads(reason(), [A, C], 300, 0.0) == [(A, 300 + BLOCK_GRACE_SECONDS), (C, 300 + BLOCK_GRACE_SECONDS)]
    assert set(book.blocked(0.0)) == {(A, CLASS, 300 + BLOCK_GRACE_SECONDS), (C, CLASS, 300 + BLOCK_GRACE_SECONDS)}
    assert book.reason(A, 299.0 + BLOCK_GRACE_SECONDS) == reason()
    assert book.reason(A, 300.0 + BLOCK_GRACE_SECONDS) is None
    assert blocked(book, 300.0 + BLOCK_GRACE_SECONDS) == set()
    assert book.learnt == 0


def test_an_answer_without_a_time_is_blocked_for_a_while_all_the_same() -> None:
    assert Book().leads(reason(), [A], 0, 0.0) == [(A, MIN_TTL_SECONDS + BLOCK_GRACE_SECONDS)]


def test_the_same_answer_again_makes_the_time_longer_and_never_shorter() -> None:
    book = Book()
    book.leads(reason(), [A], 3600, 0.0)
    assert book.leads(reason(), [A], 60, 10.0) == [(A, 3600 + BLOCK_GRACE_SECONDS - 10)]
    assert book.leads(reason(), [A], 3600, 100.0) == [(A, 3600 + BLOCK_GRACE_SECONDS)]


def test_an_address_of_an_unblocked_name_is_spared_until_long_after_its_answer() -> None:
    book = Book()
    assert book.answered(FREE, [A], 300, 0.0) == []
    assert book.leads(reason(), [A, B], 300, 299.0 + IN_USE_SECONDS) == [(B, 300 + BLOCK_GRACE_SECONDS)]
    assert [(s.address, s.blocked, s.neighbour) for s in book.spared] == [(A, PAY, FREE)]
    assert book.shared(A) == book.spared[0]
    assert book.counters["shared"] == 1
    assert book.leads(reason(), [A], 300, 300.0 + IN_USE_SECONDS) == [(A, 300 + BLOCK_GRACE_SECONDS)]


def test_an_unblocked_name_frees_its_address_once() -> None:
    book = Book()
    book.leads(reason(), [A, B], 300, 0.0)
    assert book.answered(FREE, [A], 60, 1.0) == [A]
    assert book.answered(FREE, [A], 60, 2.0) == []
    assert blocked(book, 2.0) == {B}
    assert book.leads(reason(), [A], 300, 3.0) == [], "it is in use now"


def test_without_a_memory_nothing_new_is_blocked_and_what_is_known_is_kept() -> None:
    book = Book(proving=GATHERING_SECONDS)
    assert book.leads(reason(), [A], 300, GATHERING_SECONDS - 1) == []
    assert book.counters["noted"] == 1
    assert book.leads(reason(), [A], 300, GATHERING_SECONDS) == [(A, 300 + BLOCK_GRACE_SECONDS)]
    book.proving = 2 * GATHERING_SECONDS
    assert book.leads(reason(), [A, B], 300, GATHERING_SECONDS + 1) == [(A, 300 + BLOCK_GRACE_SECONDS)], (
        "renewed, the other one noted"
    )


def test_guarded_addresses_are_never_blocked() -> None:
    book = Book()
    book.guarded = learning.guard([Network(4, int.from_bytes(A), int.from_bytes(A)), Network(6, 0, 100)])
    assert book.leads(reason(), [A, B, C], 300, 0.0) == [(B, 300 + BLOCK_GRACE_SECONDS)]
    assert book.counters["guarded"] == 2


def test_a_policy_that_blocks_less_frees_and_one_that_blocks_otherwise_explains_otherwise() -> None:
    book = Book()
    book.leads(reason(PAY), [A], 300, 0.0)
    book.leads(reason(LOG), [B], 300, 0.0)
    other = Reason(LOG, Class("alipay", "telemetry"), "alipay/telemetry.list", 7, "log.alipay.example")
    book.judge(lambda each: other if each.name == LOG else None, nobody, 1.0)
    assert blocked(book, 1.0) == {B}
    assert book.reason(B, 1.0) == other
    book.guarded = lambda address: True
    book.judge(lambda each: each, nobody, 1.0)
    assert blocked(book, 1.0) == set()


def test_who_becomes_blocked_is_no_neighbour_any_more() -> None:
    book = Book()
    book.answered(FREE, [A, B], 300, 0.0)
    book.answered(LOG, [B], 300, 1.0)
    book.judge(lambda each: each, lambda name: name == LOG, 2.0)
    assert book.leads(reason(LOG), [B], 300, 3.0) == [], "the other one lives there still"
    assert book.spared[-1].neighbour == FREE
    book.judge(lambda each: each, lambda name: name in (LOG, FREE), 4.0)
    assert book.leads(reason(LOG), [A, B], 300, 5.0) == [(A, 300 + BLOCK_GRACE_SECONDS), (B, 300 + BLOCK_GRACE_SECONDS)]


def test_neighbours_that_are_not_remembered_may_live_there_still() -> None:
    book = Book()
    for number in range(MAX_NAMES + 1):
        book.answered(names.from_text(f"n{number}.test"), [A], 300, 0.0)
    book.judge(lambda each: each, lambda name: True, 1.0)
    assert book.leads(reason(), [A], 300, 2.0) == []


def test_the_latest_names_of_an_address_are_remembered() -> None:
    book = Book()
    for number in range(MAX_NAMES + 2):
        book.answered(names.from_text(f"n{number}.test"), [A], 60, 0.0)
    book.answered(names.from_text("n3.test"), [A], 60, 0.0)
    assert [names.to_text(name) for name in book.names(A)] == ["n2.test", "n4.test", "n5.test", "n3.test"]
    assert book.names(B) == ()


def test_memory_is_bounded_and_a_full_one_blocks_nothing_new_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MAX_ADDRESSES", 3)
    monkeypatch.setattr(learning, "MAX_LEARNT", 2)
    addresses = [number.to_bytes(4) for number in range(1, 9)]
    book = Book()
    book.leads(reason(), addresses[:1], 300, 0.0)
    book.answered(FREE, addresses[1:4], 300, 0.0)
    assert len(book) == 3
    assert book.names(addresses[1]) == (), "of those that are not blocked, the one untouched for longest was forgotten"
    assert book.counters["forgotten"] == 1
    assert book.proving == GATHERING_SECONDS, "somebody may live where we do not know"
    book.answered(FREE, addresses[4:6], 300, 5.0)
    assert blocked(book, 5.0) == {addresses[0]}
    assert book.answered(FREE, addresses[:1], 300, 6.0) == addresses[:1], "who is blocked can still be freed"
    book = Book()
    assert len(book.leads(reason(), addresses[:3], 300, 0.0)) == 2
    assert book.counters["overflow"] == 1


def test_what_ends_in_a_moment_is_not_counted_on() -> None:
    book = Book()
    book.leads(reason(), [A], 60, 0.0)
    book.leads(reason(), [B], 600, 0.0)
    assert [
        book.lasting(now)
        for now in (0.0, 60.0 + BLOCK_GRACE_SECONDS - 1, 60.0 + BLOCK_GRACE_SECONDS, 600.0 + BLOCK_GRACE_SECONDS)
    ] == [2, 2, 1, 0]


@pytest.mark.parametrize(
    "told",
    [
        (b"\xff\0", ("a", "b"), "list", 1, "x.y"), (PAY[:-1], ("a", "b"), "list", 1, "x.y"),
        (PAY.upper(), ("a", "b"), "list", 1, "x.y"), (PAY, ("a",), "list", 1, "x.y"), (PAY, ("a", 5), "list", 1, "x.y"),
        (PAY, ("a", "b"), "x" * 5000, 1, "x.y"), (PAY, ("a", "b"), "list", -1, "x.y"),
        (PAY, ("a", "b"), "list", 1 << 40, "x.y"), (PAY, ("a", "b"), "list", 1.5, "x.y"),
        (PAY, ("a", "b"), "list", 1, "x..y"), (PAY, ("a", "b"), "list", 1, None),
    ],
)  # fmt: skip
def test_a_reason_that_no_list_can_have_given_is_none(told: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        learning.reason(*told)


def test_what_was_saved_is_restored() -> None:
    book, again = Book(), Book()
    book.leads(reason(), [A, C], 300, 0.0)
    book.answered(FREE, [B], 300, 0.0)
    book.leads(reason(), [b"\1\2\3\4"], 1, 0.0)
    rows = list(book.saved(100.0))
    again.restore(rows, 5000.0)
    assert {(a, s) for a, _, s in again.blocked(5000.0)} == {(a, s) for a, _, s in book.blocked(100.0)}
    assert again.reason(A, 5000.0) == reason()
    assert again.names(B) == (FREE,)
    assert sorted(map(str, again.saved(5000.0))) == sorted(map(str, rows))
    assert again.leads(reason(), [B], 300, 5000.0) == [], "it is still known to be in use"


@pytest.mark.parametrize(
    "row",
    [
        {}, {"address": "zz", "names": []}, {"address": "010203", "names": []}, {"address": "01020304"},
        {"address": "01020304", "names": ["zz"]}, {"address": "01020304", "names": [], "until": 5, "reason": ["00"]},
        {"address": "01020304", "names": [], "used": "5", "neighbour": "00"}, {"address": 5, "names": []},
    ],
)  # fmt: skip
def test_what_was_not_saved_by_us_is_refused(row: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Book().restore([row], 0.0)


Step = tuple[str, int, int, float]
STEPS = st.lists(
    st.tuples(st.sampled_from(["leads", "answered"]), st.integers(0, 3), st.integers(0, 7200), st.floats(0, 100_000)),
    max_size=40,
)


@given(STEPS)
def test_no_address_is_blocked_that_an_unblocked_name_used_lately(steps: list[Step]) -> None:
    book, used = Book(), dict[bytes, float]()
    now = 0.0
    for kind, which, ttl, pause in steps:
        now += pause
        address = bytes([192, 0, 2, which])
        if kind == "leads":
            book.leads(reason(), [address], ttl, now)
        else:
            book.answered(FREE, [address], ttl, now)
            used[address] = max(used.get(address, 0.0), now + max(ttl, MIN_TTL_SECONDS) + IN_USE_SECONDS)
        assert not [a for a in blocked(book, now) if now < used.get(a, 0.0)]
        assert book.learnt == len(blocked(book, now))
        assert all(seconds > 0 for _, _, seconds in book.blocked(now))
    assert len(set(itertools.chain(used, blocked(book, now)))) <= 4


@pytest.mark.parametrize(
    ("name", "address", "spelt"),
    [
        ("203-0-113-20.nip.example", "203.0.113.20", True), ("203.0.113.20.nip.example", "203.0.113.20", True),
        ("app-203-0-113-20.nip.example", "203.0.113.20", True), ("ip203x0x113x20.example", "203.0.113.20", True),
        ("cb007114.nip.example", "203.0.113.20", True), ("20.113.0.203.in-addr.example", "203.0.113.20", True),
        ("203-0-113-2.nip.example", "203.0.113.20", False), ("1203-0-113-20.nip.example", "203.0.113.20", False),
        ("203-0-113.example", "203.0.113.20", False), ("shop.example", "203.0.113.20", False), (".", "0.0.0.0", False),
        ("2001-db8--20.sslip.example", "2001:db8::20", True), ("20010db8" + "0" * 22 + "20.example", "2001:db8::20", True),
        ("2001-0db8-0000-0000-0000-0000-0000-0020.example", "2001:db8::20", True), ("db8.example", "2001:db8::20", False),
    ],
)  # fmt: skip
def test_a_name_that_spells_an_address_is_no_neighbour(name: str, address: str, spelt: bool) -> None:
    """Anybody can have one for any address."""
    packed, found = ipaddress.ip_address(address).packed, names.from_text(name)
    assert learning.spells(found, packed) is spelt
    for first in ("answered", "leads"):
        book = Book()
        if first == "answered":
            book.answered(found, [packed], 300, 0.0)
        learnt = book.leads(reason(), [packed], 300, 1.0)
        freed = book.answered(found, [packed], 300, 2.0)
        assert bool(learnt) is (spelt or first == "leads")
        assert bool(freed) is (not spelt and first == "leads")
