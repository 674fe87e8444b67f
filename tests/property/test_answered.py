"""What workers and the guardian say to each other about addresses: the same on both sides, and nothing else is taken for it."""

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo import names
from embargo.daemon.process import answered
from embargo.daemon.process.answered import Marks
from embargo.firewall import learning

NAMES = st.lists(st.binary(min_size=1, max_size=20), max_size=6).map(
    lambda labels: names.Name(b"".join(bytes([len(label)]) + label.lower() for label in labels) + b"\0")
)
ADDRESSES = st.lists(st.binary(min_size=4, max_size=4), max_size=30), st.lists(st.binary(min_size=16, max_size=16), max_size=7)
RECORDS = st.lists(st.tuples(NAMES, *ADDRESSES, st.integers(0, 0xFFFFFFFF)), max_size=5)
Row = tuple[names.Name, list[bytes], list[bytes], int]


@given(RECORDS)
def test_what_is_packed_is_unpacked(rows: list[Row]) -> None:
    packed = b"".join(answered.pack(name, [*six, *four], seconds) for name, four, six, seconds in rows)
    expected = [(name, [*four, *six], min(seconds, learning.LONGEST)) for name, four, six, seconds in rows]
    assert list(answered.unpack(packed)) == expected


def test_an_answer_with_very_many_addresses_is_cut() -> None:
    four, six = [n.to_bytes(4) for n in range(100)], [n.to_bytes(16) for n in range(100)]
    ((_, found, _),) = answered.unpack(answered.pack(names.ROOT, [*four, *six], 1 << 40))
    assert found == [*four[:30], *six[:7]]


@given(RECORDS, st.data())
def test_what_is_cut_short_is_refused(rows: list[Row], data: st.DataObject) -> None:
    packed = b"".join(answered.pack(name, [*four, *six], seconds) for name, four, six, seconds in rows)
    ends = {0}
    for name, four, six, seconds in rows:
        ends.add(max(ends) + len(answered.pack(name, [*four, *six], seconds)))
    cut = data.draw(st.integers(0, len(packed)))
    if cut in ends:
        list(answered.unpack(packed[:cut]))
    else:
        with pytest.raises(ValueError, match="cut short"):
            list(answered.unpack(packed[:cut]))


@given(st.binary(max_size=200))
def test_any_octets_are_unpacked_or_refused(octets: bytes) -> None:
    try:
        for name, addresses, seconds in answered.unpack(octets):
            assert names.from_text(names.to_text(name)) == name
            assert all(len(address) in (4, 16) for address in addresses)
            assert 0 <= seconds <= learning.LONGEST
    except ValueError:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[tuple[Marks, Marks]]:
    fd = Marks.make()
    reading = Marks.for_reading(fd)
    yield Marks(fd, write=True), Marks(reading)
    os.close(fd)
    os.close(reading)


STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "set"]), st.lists(st.integers(0, 40), max_size=5)), max_size=20)


@given(STEPS)
def test_the_page_never_misses_an_address_and_forgets_those_that_went(
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


def test_nobody_can_cut_the_page_short_and_a_worker_can_write_it_by_no_way() -> None:
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
