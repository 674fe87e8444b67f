"""A ruleset as messages: what is put in comes out again, nothing outgrows its length field, and the order of a change."""

import dataclasses
import itertools
import struct
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo.firewall import change, nft, ruleset, spans, wire
from embargo.firewall.change import Holding
from embargo.firewall.nft import Message
from embargo.firewall.ruleset import Spec
from embargo.firewall.spans import Spans
from embargo.firewall.table import Element, Ruleset, Set
from embargo.lists.policy import Action, Class
from golden import rulesets

PAY, LOGS = Class("alipay", "payment"), Class("alipay", "telemetry")
TOP = {4: (1 << 32) - 1, 6: (1 << 128) - 1}


def spans_of(family: int, given_: Iterable[Element]) -> dict[str, Spans]:
    return spans.gather((family, *each) for each in given_)[family]


def alone(each: Set) -> Ruleset:
    return Ruleset(1, (), (each,), ())


def elements(messages: list[Message]) -> list[dict[int, bytes]]:
    """The list elements of some messages, each as its attributes."""
    bodies = [wire.attributes(message.payload)[3] for message in messages]
    return [wire.attributes(element) for body in bodies for element in wire.items(body)]


def key(element: dict[int, bytes]) -> int:
    return int.from_bytes(wire.attributes(element[1])[1])


@st.composite
def ranges(draw: st.DrawFn, family: int) -> tuple[Element, ...]:
    """Disjoint and sorted, some of them touching, the ends of the address space among them."""
    some = st.one_of(st.integers(0, TOP[family]), st.sampled_from([0, 1, TOP[family] - 1, TOP[family]]))
    cuts = sorted(draw(st.sets(some, min_size=2, max_size=12)))
    pairs = [*itertools.pairwise(cuts), (cuts[-1], TOP[family] + 1)]
    return tuple(Element(first, behind - 1, "alipay_payment") for first, behind in pairs)


@pytest.mark.parametrize("family", [4, 6])
@given(data=st.data())
def test_ranges_are_a_first_key_and_the_key_behind_the_last(family: int, data: st.DataObject) -> None:
    given_ = data.draw(ranges(family))
    each = Set("network", f"ipv{family}_addr", spans_of(family, given_), interval=True, vmap=True)
    found: list[tuple[int, int]] = []
    for element in elements(list(itertools.chain(*change.fill(alone(each))))):
        if element.get(3) == struct.pack("!I", nft.INTERVAL_END):
            found[-1] = (found[-1][0], key(element) - 1)
        else:
            found.append((key(element), TOP[family]))  # without an end: to the top
    assert found == [(first, last) for first, last, _ in given_]


@given(st.sets(st.integers(0, TOP[6]), min_size=1))
def test_single_addresses_are_one_key_each_and_lead_to_their_chain(keys: set[int]) -> None:
    each = Set("address", "ipv6_addr", spans_of(6, (Element(k, k, "alipay_payment") for k in sorted(keys))), vmap=True)
    found = elements(list(itertools.chain(*change.fill(alone(each)))))
    assert [key(element) for element in found] == sorted(keys)
    verdicts = {wire.string(wire.attributes(wire.attributes(element[2])[2])[2]) for element in found}
    assert verdicts == {"alipay_payment"}


@pytest.mark.parametrize(("type_", "width"), [("ipv4_addr", 1), ("ipv4_addr", 8), ("ipv6_addr", 8)])
def test_many_elements_come_in_chunks_and_no_length_overflows(type_: str, width: int) -> None:
    many = spans_of(int(type_[3]), (Element(n, n + width - 1, "a" * 200) for n in range(0, 25_000 * 9, 9)))
    chunks = list(change.fill(alone(Set("many", type_, many, interval=width > 1, vmap=True))))
    sizes = [sum(3 not in element for element in elements(chunk)) for chunk in chunks]
    assert sizes == [change.CHUNK_ELEMENTS, change.CHUNK_ELEMENTS, 5000], "what is lost to an overflow is missing here"


def test_timed_elements_hold_both_times_in_milliseconds() -> None:
    (element,) = elements(nft.timed_elements("embargo", "allow4", [(b"\xcb\0\x71\7", 70)]))
    assert (key(element), element[4], element[5]) == (0xCB007107, struct.pack("!Q", 70_000), struct.pack("!Q", 70_000))


def test_nothing_to_say_is_no_message() -> None:
    assert nft.timed_elements("embargo", "allow4", []) == []
    assert list(change.fill(alone(Set("empty", "ipv4_addr")))) == []


# ── the way of a change ──────────────────────────────────────────────────────────────────────────────────────────────────


def holding(of: Ruleset) -> Holding:
    """What the kernel holds after this has been put in force."""
    hooks = {chain.name: chain.hook is not None for chain in of.chains}
    return Holding(True, [each.name for each in of.sets], hooks, of.counters)


def made(generation: int, class_: Class = PAY, **members: Any) -> Ruleset:
    ranges = ((4, 10, 10, class_), (4, 20, 29, class_), (6, 10, 10, class_), (6, 20, 29, class_))
    spec = Spec(generation, ((class_, Action.BLOCK),), spans.gather(ranges), log_group=1)
    return ruleset.build(dataclasses.replace(spec, **members))


def said(messages: Iterable[Message]) -> list[str]:
    return [message.about for message in messages]


@pytest.mark.parametrize("case", rulesets.CASES)
def test_the_change_neither_makes_nor_fills_nor_deletes_a_set(case: str) -> None:
    """A new interval set matches nothing in the transaction that fills it, and a deleted one nothing from then on."""
    new = rulesets.CASES[case]()
    for old in (change.NOTHING, holding(made(99, LOGS, lan=("lan0",), intercept_port=53))):
        assert {message.kind for message in change.switch(new, old)} == {nft.NEWCHAIN, nft.DELRULE, nft.NEWRULE}


@pytest.mark.parametrize("case", rulesets.CASES)
def test_before_the_change_no_rule_in_a_hook_is_touched(case: str) -> None:
    new = rulesets.CASES[case]()
    hooked = {f"add {what} {chain.name}" for chain in new.chains if chain.hook for what in ("chain", "rule")}
    for old in (change.NOTHING, holding(made(99, LOGS, lan=("lan0",), intercept_port=53))):
        assert not hooked & set(said(change.prepare(new, old)))
        assert not any(message.kind in (nft.DELRULE, nft.DELCHAIN, nft.DELSET) for message in change.prepare(new, old))


def test_a_class_that_stays_keeps_its_chain_until_the_change() -> None:
    old, new = made(1), made(2)
    assert "add rule alipay_payment" not in said(change.prepare(new, holding(old)))
    assert "add rule alipay_telemetry" in said(change.prepare(made(2, LOGS), holding(old)))


def test_what_remains_is_what_the_new_rules_do_not_use() -> None:
    old = made(1, lan=("lan0",), intercept_port=53)
    assert said(change.remains(made(2, LOGS), holding(old))) == [
        "flush chain alipay_payment", "flush chain prerouting",
        "delete set address4_1", "delete set network4_1", "delete set learnt4_1",
        "delete set address6_1", "delete set network6_1", "delete set learnt6_1",
        "delete set to_embedded_1", "delete set from_embedded_1", "delete set lan_1",
        "delete chain alipay_payment", "delete chain prerouting",
    ]  # fmt: skip
    assert said(change.remains(made(1), holding(made(1)))) == []


def test_a_hook_that_is_left_alone_is_emptied_by_the_change_and_a_class_is_not() -> None:
    """A packet still on the old rules may be on its way to the chain of its class."""
    flushed = said(change.switch(made(2, LOGS), holding(made(1, lan=("lan0",), intercept_port=53))))
    assert "flush chain prerouting" in flushed
    assert "flush chain alipay_payment" not in flushed


def test_additions_are_what_has_come_since() -> None:
    old, new = holding(made(1)), holding(made(2, LOGS))
    now = Holding(True, [*old.sets, *new.sets], {**old.chains, **new.chains}, [*old.counters, *new.counters])
    assert said(change.additions("embargo", old, now)) == [
        "delete set address4_2", "delete set network4_2", "delete set learnt4_2",
        "delete set address6_2", "delete set network6_2", "delete set learnt6_2",
        "delete set to_embedded_2", "delete set from_embedded_2",
        "flush chain alipay_telemetry", "delete chain alipay_telemetry", "delete counter alipay_telemetry",
    ]  # fmt: skip
    assert said(change.additions("embargo", change.NOTHING, now)) == ["delete table inet embargo"]
    assert said(change.additions("embargo", change.NOTHING, change.NOTHING)) == []
