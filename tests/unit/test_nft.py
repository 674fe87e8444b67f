"""A ruleset as messages: what is put in comes out again, and nothing outgrows its length field."""

import itertools
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo.firewall import change, nft, spans, wire
from embargo.firewall.nft import Message
from embargo.firewall.spans import Spans
from embargo.firewall.table import Element, Ruleset, Set

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
