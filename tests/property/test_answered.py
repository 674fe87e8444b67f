"""Answered addresses: a record is read as it was written, and nothing else is taken for a record."""

import fcntl
import itertools
import mmap
import os
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from embargo import names
from embargo.daemon.process import answered, channel
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Answered, Channel
from embargo.firewall import learning

NAMES = st.lists(st.binary(min_size=1, max_size=20), max_size=6).map(
    lambda labels: names.Name(b"".join(bytes([len(label)]) + label.lower() for label in labels) + b"\0")
)
ADDRESSES = st.lists(st.binary(min_size=4, max_size=4), max_size=40), st.lists(st.binary(min_size=16, max_size=16), max_size=20)
RECORDS = st.lists(st.tuples(NAMES, *ADDRESSES, st.integers(0, 0xFFFFFFFF)), max_size=5)
Row = tuple[names.Name, list[bytes], list[bytes], int]


@given(RECORDS)
def test_unpacking_reverses_packing(rows: list[Row]) -> None:
    packed = b"".join(answered.pack(name, [*six, *four], seconds) for name, four, six, seconds in rows)
    expected = [(name, [*four, *six], min(seconds, learning.MAX_TTL_SECONDS)) for name, four, six, seconds in rows]
    assert list(answered.unpack(packed)) == expected


@pytest.mark.parametrize(("four", "six"), [(31, 8), (16_383, 0), (0, 4095), (8000, 2000)])
def test_all_addresses_of_an_answer_arrive(four: int, six: int) -> None:
    """As many as a DNS message can hold, with a name of the maximum length, in one packet."""
    name = names.Name((b"\x3f" + b"n" * 63) * 3 + b"\x3d" + b"n" * 61 + b"\0")
    addresses = [*(n.to_bytes(4) for n in range(four)), *(n.to_bytes(16) for n in range(six))]
    record = answered.pack(name, addresses, 1 << 40)
    assert list(answered.unpack(record)) == [(name, addresses, learning.MAX_TTL_SECONDS)]
    assert len(record) <= answered.MAX_RECORD < channel.MAX_PACKET
    ours, theirs = channel.pair()
    with theirs:
        ours.send(Answered(record))
        assert Channel(theirs, (Answered,)).receive() == (Answered(record), None, [])
    ours.close()


def test_more_addresses_than_a_message_can_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into a DNS message"):
        answered.pack(names.ROOT, [bytes(4)] * 16_384, 60)


@given(st.lists(st.tuples(NAMES, st.integers(0, 16_383)), max_size=30))
def test_records_are_gathered_in_packets_that_fit(rows: list[tuple[names.Name, int]]) -> None:
    packets: deque[bytes] = deque()
    for name, count in rows:
        before = len(packets)
        assert answered.gather(packets, answered.pack(name, [bytes(4)] * count, 60)) is (len(packets) > before)
    assert all(len(packet) <= channel.MAX_PACKET - 1 for packet in packets)
    assert all(len(one) + len(two) > answered.PACKET_OCTETS for one, two in itertools.pairwise(packets)), (
        "none is begun in vain"
    )
    found = [(name, len(addresses)) for packet in packets for name, addresses, _ in answered.unpack(packet)]
    assert found == rows


@given(RECORDS, st.data())
def test_truncated_records_are_refused(rows: list[Row], data: st.DataObject) -> None:
    packed = b"".join(answered.pack(name, [*four, *six], seconds) for name, four, six, seconds in rows)
    ends = {0}
    for name, four, six, seconds in rows:
        ends.add(max(ends) + len(answered.pack(name, [*four, *six], seconds)))
    cut = data.draw(st.integers(0, len(packed)))
    if cut in ends:
        list(answered.unpack(packed[:cut]))
    else:
        with pytest.raises(ValueError, match="truncated"):
            list(answered.unpack(packed[:cut]))


@given(RECORDS.filter(bool), st.data())
def test_records_with_octets_changed_are_unpacked_or_refused(rows: list[Row], data: st.DataObject) -> None:
    """Valid records in which some octets were changed, inserted or removed."""
    octets = bytearray(b"".join(answered.pack(name, [*four, *six], seconds) for name, four, six, seconds in rows))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not octets:
            return
    try:
        for name, addresses, seconds in answered.unpack(bytes(octets)):
            event("unpacked")
            assert names.from_text(names.to_text(name)) == name
            assert all(len(address) in (4, 16) for address in addresses)
            assert 0 <= seconds <= learning.MAX_TTL_SECONDS
    except ValueError:
        event("refused")


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[Marks, Marks]]:
    fd = Marks.make()
    reading = Marks.for_reading(fd)
    yield Marks(fd, write=True), Marks(reading)
    os.close(fd)
    os.close(reading)


STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "set"]), st.lists(st.integers(0, 40), max_size=5)), max_size=20)


@given(STEPS)
def test_the_page_has_every_marked_address_and_no_longer_the_removed_ones(
    pages: tuple[Marks, Marks], steps: list[tuple[str, list[int]]]
) -> None:
    ours, theirs = pages
    ours.clear()
    held: set[bytes] = set()
    for kind, numbers in steps:
        addresses = {number.to_bytes(4) for number in numbers}
        if kind == "set":
            ours.set(addresses)
            held = addresses
        elif kind == "add":
            for address in addresses - held:
                ours.add(address)
            held |= addresses
        else:
            for address in addresses & held:
                ours.remove(address)
            held -= addresses
        assert all(address in theirs for address in held)
        assert [n for n in range(41) if n.to_bytes(4) in theirs and n.to_bytes(4) not in held] == [], "these do not share bits"


def test_a_worker_cannot_write_the_page(pages: tuple[Marks, Marks]) -> None:
    with pytest.raises(TypeError):
        pages[1].add(bytes(4))


def test_the_page_cannot_be_truncated_and_a_worker_cannot_make_it_writable() -> None:
    fd = Marks.make()
    reading = Marks.for_reading(fd)
    size = Marks.BITS // 8
    for length in (0, size - 1, size + 1):
        for each in (fd, reading):
            with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
                os.ftruncate(each, length)
    with pytest.raises(PermissionError):
        mmap.mmap(reading, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(reading).st_mode & 0o777 == 0o600, "nor can another user open it anew"
    os.close(fd)
    os.close(reading)
