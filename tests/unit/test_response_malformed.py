"""Responses that are malformed: cut short, with pointers in circles, with the wrong RDATA for their type, too long."""

import struct

import pytest

from embargo.dns import response
from embargo.errors import MessageError
from support import twins
from support.playbook import answer
from support.responses import question_of


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_response_that_is_cut_short_is_truncated(cut: int) -> None:
    wire = answer("a.test", "A", "192.0.2.1").to_wire()
    records = wire[: wire.index(b"\xc0\0\2\1") + 4]
    assert response.parse(records[:-cut], wire[12:24]).truncated


@pytest.mark.parametrize("behind", [b"\0", b"x" * 100, b"\0\0\x29" + bytes(8)])
@pytest.mark.parametrize("accelerated", [True, False])
def test_octets_behind_the_last_record_are_ignored(behind: bytes, accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As five of five other resolvers do."""
    if not accelerated:
        twins.without(monkeypatch)
    wire = answer("a.test", "A", "192.0.2.1").to_wire()
    assert response.parse(wire + behind, wire[12:24]) == response.parse(wire, wire[12:24])


def test_pointers_that_run_forward_or_in_circles_are_malformed() -> None:
    wire = bytearray(answer("a.test", "A", "b.test CNAME c.test.").to_wire())
    at = wire.index(b"\1b")
    for target in (at, at + 40):
        broken = bytes(wire[:at]) + (0xC000 | target).to_bytes(2) + bytes(wire[at + 2 :])
        with pytest.raises(MessageError):
            response.parse(broken, bytes(wire[12:24]))


def raw(rtype: int, rdata: bytes) -> bytes:
    return b"\0\1\x81\x80\0\1\0\1\0\0\0\0" + b"\1a\0" + struct.pack("!HH", rtype, 1) + (
        b"\xc0\x0c" + struct.pack("!HHIH", rtype, 1, 60, len(rdata)) + rdata
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rtype", "rdata"),
    [
        (1, b"\1\2\3"), (1, b"\1\2\3\4\5"), (28, bytes(15)), (5, b""), (5, b"\1b\0x"), (5, b"\1b"), (15, b"\0"),
        (33, b"\0\1\0\1\0"), (35, b"\0\1\0\1\1s"), (35, b"\0\1\0\1\x0fs\0\0\0"), (64, b"\0\1\0\0\4\0\4\1"),
        (65, b"\0\1\0\0\4\0"),
        *((rtype, rdata) for rtype in (2, 3, 4, 5, 7, 8, 9, 12, 39) for rdata in (b"", b"\1b", b"\xc0\x1f", b"\1b\0x")),
        *((rtype, b"\1b\0" + rdata) for rtype in (14, 17) for rdata in (b"", b"\1b", b"\xc0\x22", b"\1b\0x")),
        *((rtype, b"\0\1" + rdata) for rtype in (18, 21, 36) for rdata in (b"", b"\1b", b"\xc0\x21", b"\1b\0x")),
        *((26, b"\0\1\1b\0" + rdata) for rdata in (b"", b"\1b", b"\xc0\x24", b"\1b\0x")),
        *((6, rdata + bytes(count)) for rdata in (b"\1b\0\1c\0", b"\xc0\x0c\xc0\x0c") for count in (0, 19, 21)),
        (6, b"\1b\0"), (6, b"\xc0\x1f\0" + bytes(20)), (6, b"\0\xc0\x20" + bytes(20)), (6, b"\1b"), (6, b""),
    ],
)  # fmt: skip
def test_rdata_that_is_not_what_its_type_says_is_malformed(rtype: int, rdata: bytes) -> None:
    packet = raw(rtype, rdata)
    with pytest.raises(MessageError):
        response.parse(packet, question_of(packet))


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize(
    ("rdata", "good"),
    [
        (b"\1b\0\1c\0" + bytes(20), True), (b"\xc0\x0c\xc0\x1f" + bytes(20), True), (b"\0\0" + bytes(20), True),
        (b"\1b\0\1c\0" + bytes(19), False), (b"\1b\0\1c\0" + bytes(21), False), (b"\xc0\x1f\0" + bytes(20), False),
        (b"\0\xc0\x20" + bytes(20), False), (b"\x40" + bytes(40), False), (b"\0" * 20, False),
    ],
)  # fmt: skip
def test_the_soa_of_what_does_not_exist_is_whole_or_malformed(
    rdata: bytes, good: bool, accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not accelerated:
        twins.without(monkeypatch)
    head = b"\0\1\x81\x83\0\1\0\0\0\1\0\0" + b"\1a\0\0\1\0\1"
    packet = head + b"\xc0\x0c" + struct.pack("!HHIH", 6, 1, 60, len(rdata)) + rdata
    if good:
        assert response.parse(packet, question_of(packet)).counts == (0, 1, 0)
    else:
        with pytest.raises(MessageError):
            response.parse(packet, question_of(packet))


@pytest.mark.parametrize(("octets", "fits"), [(56, True), (57, False)])
def test_a_name_is_not_made_too_long_by_the_one_it_points_to(octets: int, fits: bool) -> None:
    question = (b"\x3f" + b"a" * 63) * 3 + b"\x04test\0" + b"\0\2\0\1"
    target = bytes([octets]) + b"b" * octets + b"\xc0\x0c"
    packet = b"\0\1\x81\x80\0\1\0\1\0\0\0\0" + question + b"\xc0\x0c\0\2\0\1\0\0\0\x3c" + len(target).to_bytes(2) + target
    if fits:
        assert len(response.parse(packet, question).leads[0].targets[0]) == 255
    else:
        with pytest.raises(MessageError):
            response.parse(packet, question)


@pytest.mark.parametrize("count", [512, 600, 4000])
def test_any_number_of_records_is_taken(count: int) -> None:
    """A message has room for 4,000 addresses. Four of five other resolvers pass them on."""
    records = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4"
    packet = bytearray(raw(1, b"\1\2\3\4") + records * (count - 1))
    packet[6:8] = count.to_bytes(2)
    found = response.parse(bytes(packet), question_of(bytes(packet)))
    assert (len(found.ttls), len(found.leads[0].addresses)) == (count, count)
