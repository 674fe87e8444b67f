"""Netlink messages as octets: put together, and taken apart with every bound checked here (netlink(7)).

A datagram holds messages, a message holds attributes, and an attribute may hold attributes again. Each begins with its
length and kind in the machine's byte order, and the next one begins at a multiple of four octets. Numbers inside attributes
of netfilter are big-endian. What is cut short, or says that it is longer than what holds it, ends the walk.
"""

import struct
from collections.abc import Iterator

# flags of a message (linux/netlink.h)
REQUEST, ACK, DUMP_INTR, DUMP = 1, 4, 0x10, 0x300
CREATE, APPEND = 0x400, 0x800
# kinds of messages
ERROR, DONE = 2, 3

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, kind, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, kind
_NUMBER = struct.Struct("=i")
_NETFILTER = struct.Struct("!BBH")  # nfgenmsg: family, version, resource
NETFILTER_HEADER = _NETFILTER.size
_NESTED = 0x8000
_PADDING = (b"", bytes(3), bytes(2), bytes(1))  # to a multiple of four octets, by what is over
_KIND = 0x3FFF  # of an attribute, without its two flags


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence number, payload) of each message of a datagram."""
    offset, size, unpack = 0, len(data), _MESSAGE.unpack_from
    while offset + 16 <= size:
        length, kind, flags, sequence, _ = unpack(data, offset)
        end = offset + length
        if length < 16 or end > size:
            return
        yield kind, flags, sequence, data[offset + 16 : end]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0, header: int = 4) -> dict[int, bytes]:
    """Kind → value of the attributes from this offset on; of two of one kind the last.

    `header`: octets left out at the beginning of each. With 0 the values are whole attributes, ready to be sent back.
    """
    values = {}
    size, unpack = len(data), _ATTRIBUTE.unpack_from
    while offset + 4 <= size:
        length, kind = unpack(data, offset)
        end = offset + length
        if length < 4 or end > size:
            break
        values[kind & _KIND] = data[offset + header : end]
        offset += (length + 3) & ~3
    return values


def items(data: bytes) -> Iterator[bytes]:
    """The values of a list, whose attributes are all of one kind."""
    offset, size = 0, len(data)
    while offset + 4 <= size:
        length, _ = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > size:
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def string(value: bytes) -> str:
    """The text of an attribute, which ends with a zero octet. UnicodeDecodeError (a ValueError) for what is no UTF-8."""
    return value.rstrip(b"\0").decode()


def error(payload: bytes) -> int:
    """The errno of an ERROR message; 0 for an acknowledgement. struct.error for less than four octets."""
    (number,) = _NUMBER.unpack_from(payload)
    return -int(number)


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A message, padded so that another one can follow."""
    return _MESSAGE.pack(16 + len(payload), kind, flags, sequence, 0) + payload + _PADDING[len(payload) % 4]


def netfilter(family: int = 0, resource: int = 0) -> bytes:
    """What every payload of nfnetlink begins with. `resource`: what the message is about, such as the number of a log group."""
    return _NETFILTER.pack(family, 0, resource)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded so that another one can follow."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + _PADDING[len(value) % 4]


def nest(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def u32(kind: int, value: int) -> bytes:
    """An attribute with a number of 32 bits, big-endian."""
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def u64(kind: int, value: int) -> bytes:
    """An attribute with a number of 64 bits, big-endian."""
    return attribute(kind, struct.pack("!Q", value))


def text(kind: int, value: str) -> bytes:
    """An attribute with a text, which a zero octet ends."""
    return attribute(kind, value.encode() + b"\0")
