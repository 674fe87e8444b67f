"""The kernel's log records, decoded: what it sends is read, and no octets whatever are more than passed over."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo.daemon.guard import nflog
from embargo.daemon.guard.nflog import Record


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, kind: int = 0x400) -> bytes:
    """One NFULNL_MSG_PACKET."""
    payload = struct.pack("=BBH", 2, 0, 0) + b"".join(attributes)
    data = struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload
    return data + bytes(-len(data) % 4)


TCP4 = bytes.fromhex("4500003c00004000400600000a000001cb007107") + struct.pack("!HH", 40000, 443) + bytes(16)
V6 = b"\x20\1" + bytes(13)
UDP6 = bytes.fromhex("6000000000101140") + V6 + b"\1" + V6 + b"\2" + struct.pack("!HH", 5, 853)
PREFIX = attribute(10, b"embargo alipay/payment\0")


def test_a_record_holds_what_an_event_needs() -> None:
    mac = attribute(8, b"\0\6\0\0" + bytes.fromhex("0242c0000201") + b"\0\0")
    parts = (PREFIX, attribute(4, b"\0\0\0\3"), attribute(5, b"\0\0\0\4"), mac, attribute(12, b"\0\0\0\7"), attribute(9, TCP4))
    records, first, last = nflog.decode(message(*parts))
    assert (first, last) == (7, 7)
    assert records == [Record("alipay/payment", 4, b"\x0a\0\0\1", b"\xcb\0\x71\7", 6, 40000, 443, "02:42:c0:00:02:01", 3, 4)]


def test_ipv6_and_packets_without_ports() -> None:
    ((record,), *_) = nflog.decode(message(PREFIX, attribute(9, UDP6)))
    assert (record.family, record.proto, record.dport) == (6, 17, 853)
    fragment = bytearray(TCP4)
    fragment[6:8] = b"\0\x10"
    ((record,), *_) = nflog.decode(message(PREFIX, attribute(9, bytes(fragment))))
    assert (record.sport, record.dport) == (0, 0)


@pytest.mark.parametrize(
    ("headers", "proto", "dport"),
    [
        ([(0, b"\0" * 7)], 17, 853),  # hop-by-hop options
        ([(0, b"\0" * 7), (60, b"\0" * 7)], 17, 853),
        ([(60, b"\1" + b"\0" * 14)], 17, 853),  # options of 16 octets
        ([(44, b"\0\0\0" + b"\0" * 4)], 17, 853),  # the first fragment has the ports
        ([(44, b"\0\0\x08" + b"\0" * 4)], 17, 0),  # a later one has not
        ([(44, b"\0\0\x08" + b"\0" * 4)] * 2, 44, 0),  # what follows a later fragment's header is no header
        ([(0, b"\xff" + b"\0" * 6)], 17, 0),  # longer than what was kept of the packet
    ],
)
def test_ipv6_extension_headers_are_walked(headers: list[tuple[int, bytes]], proto: int, dport: int) -> None:
    kinds = [kind for kind, _ in headers] + [17]
    chain = b"".join(bytes([following]) + rest for following, (_, rest) in zip(kinds[1:], headers, strict=True))
    packet = UDP6[:6] + bytes([kinds[0]]) + UDP6[7:40] + chain + UDP6[40:]
    ((record,), *_) = nflog.decode(message(PREFIX, attribute(9, packet)))
    assert (record.proto, record.dport) == (proto, dport)


def test_several_in_a_datagram_and_what_is_not_ours() -> None:
    foreign = message(attribute(10, b"other\0"), attribute(9, TCP4), attribute(12, b"\0\0\0\x08"))
    mine = message(PREFIX, attribute(9, TCP4), attribute(12, b"\0\0\0\x09"))
    records, first, last = nflog.decode(mine + foreign + message(kind=3) + mine)
    assert (len(records), first, last) == (2, 9, 9)


@given(st.binary(max_size=400))
def test_any_octets_are_read_or_passed_over(data: bytes) -> None:
    nflog.decode(data)


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 200))
def test_a_torn_record_is_read_or_passed_over(at: int, value: int, cut: int) -> None:
    data = bytearray(message(PREFIX, attribute(4, b"\0\0\0\3"), attribute(9, TCP4)) * 3)
    data[at % len(data)] = value
    for record in nflog.decode(bytes(data[: len(data) - cut]))[0]:
        assert len(record.src) in (4, 16)
