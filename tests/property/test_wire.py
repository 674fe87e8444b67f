"""Netlink octets: what is put together comes apart again, and of any octets whatever nothing beyond them is read."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from embargo.firewall import wire

ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=6)
MESSAGES = st.lists(
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=60)), max_size=5
)
#: octets that are likely to be taken for lengths and kinds
SHORT = st.lists(st.sampled_from([0, 1, 3, 4, 5, 8, 12, 16, 17, 20, 0x40, 0x80, 0xFF]), max_size=80).map(bytes)


def written(rows: list[tuple[int, int, int, bytes]]) -> bytes:
    return b"".join(wire.message(*row) for row in rows)


@given(MESSAGES)
def test_messages_come_out_as_they_were_put_together(rows: list[tuple[int, int, int, bytes]]) -> None:
    assert list(wire.messages(written(rows))) == rows


@given(ATTRIBUTES)
def test_attributes_come_out_as_they_were_put_together(rows: list[tuple[int, bytes]]) -> None:
    octets = b"".join(wire.attribute(kind, value) for kind, value in rows)
    assert wire.attributes(octets) == dict(rows)
    assert list(wire.items(octets)) == [value for _, value in rows]
    assert wire.attributes(b"\xff" * 4 + octets, 4) == dict(rows)
    ((nested, value),) = wire.attributes(wire.nest(7, octets)).items()
    assert (nested, value) == (7, octets), "the flags of a kind are left out"


@given(MESSAGES, st.data())
def test_of_messages_that_are_cut_short_the_whole_ones_come(
    rows: list[tuple[int, int, int, bytes]], data: st.DataObject
) -> None:
    octets = written(rows)
    cut = data.draw(st.integers(0, len(octets)))
    whole, end = [], 0
    for row in rows:
        if end + 16 + len(row[3]) > cut:
            break
        whole.append(row)
        end += len(wire.message(*row))
    assert list(wire.messages(octets[:cut])) == whole


@given(ATTRIBUTES, st.data())
def test_of_attributes_that_are_cut_short_the_whole_ones_come(rows: list[tuple[int, bytes]], data: st.DataObject) -> None:
    octets = b"".join(wire.attribute(kind, value) for kind, value in rows)
    cut = data.draw(st.integers(0, len(octets)))
    whole, end = [], 0
    for kind, value in rows:
        if end + 4 + len(value) > cut:
            break
        whole.append((kind, value))
        end += len(wire.attribute(kind, value))
    assert wire.attributes(octets[:cut]) == dict(whole)
    assert list(wire.items(octets[:cut])) == [value for _, value in whole]


@given(st.one_of(SHORT, st.binary(max_size=200)), st.integers(0, 8))
def test_any_octets_are_read_within_their_bounds(octets: bytes, offset: int) -> None:
    found = list(wire.messages(octets))
    assert sum(16 + len(payload) for *_, payload in found) <= len(octets)
    at = 0
    for kind, flags, sequence, payload in found:
        length = struct.unpack_from("=I", octets, at)[0]
        assert (length, payload) == (16 + len(payload), octets[at + 16 : at + length])
        assert struct.unpack_from("=HHI", octets, at + 4) == (kind, flags, sequence)
        at += (length + 3) & ~3
    assert sum(4 + len(value) for value in wire.items(octets)) <= len(octets)
    values = wire.attributes(octets, offset)
    assert sum(4 + len(value) for value in values.values()) <= max(len(octets) - offset, 0)
    assert all(value in octets[offset:] for value in values.values())
