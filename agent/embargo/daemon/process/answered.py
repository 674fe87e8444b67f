"""Answered addresses, as resolvers and guardian share them: packed records, and the page of marks.

A record holds a name, all addresses in the answer for it, and how long a client may use them. Its size is bounded by the DNS
message that it comes from, which has at most 65,535 octets. The page of marks tells which addresses may be blocked because of a
name, so that a resolver holds back only the replies that must wait for the guardian.
"""

import fcntl
import mmap
import os
import struct
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from embargo import names
from embargo.firewall import learning
from embargo.names import Name

MAX_ADDRESS_OCTETS = 65_535  # in one record: the length of a DNS message has 16 bits
_HEAD = struct.Struct("!IBHH")  # seconds, octets of the name, IPv4 addresses, IPv6 addresses
MAX_RECORD = _HEAD.size + 255 + MAX_ADDRESS_OCTETS  # octets; fits a packet of a channel (channel.MAX_PACKET)
PACKET_OCTETS = 16_384  # of records sent together (one larger record goes alone); the guardian reads as many in a millisecond


class Marks:
    """A bitmap in shared memory, indexed by a hash of the address: a set bit means that an address with this hash may be
    blocked because of a name. The guardian writes it, resolvers read it.

    If several addresses share a bit, some replies wait for the guardian without need. The guardian counts the addresses per
    bit and clears the bit with the last of them.
    """

    BITS = 1 << 19

    def __init__(self, fd: int, *, write: bool = False) -> None:
        self._page = mmap.mmap(fd, self.BITS // 8, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
        self._counts: Counter[int] = Counter()

    @classmethod
    def make(cls) -> int:
        """The descriptor of a new page, for the guardian. Sealed, since truncation would raise SIGBUS in all its readers."""
        fd = os.memfd_create("embargo-marks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, cls.BITS // 8)
        os.fchmod(fd, 0o600)  # otherwise another user could open it for writing through /proc
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd

    @staticmethod
    def for_reading(fd: int) -> int:
        """A read-only descriptor of the same page, for resolvers."""
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

    def __contains__(self, address: bytes) -> bool:
        bit = crc32(address) % self.BITS
        return bool(self._page[bit >> 3] >> (bit & 7) & 1)

    def clear(self) -> None:
        """Clear all marks, including those of an earlier guardian."""
        self._page[:] = bytes(self.BITS // 8)
        self._counts.clear()

    def set(self, addresses: Iterable[bytes]) -> None:
        """Mark these addresses and no others."""
        before, self._counts = self._counts, Counter(crc32(address) % self.BITS for address in addresses)
        for bit in self._counts.keys() - before.keys():
            self._page[bit >> 3] |= 1 << (bit & 7)
        for bit in before.keys() - self._counts.keys():
            self._page[bit >> 3] &= ~(1 << (bit & 7)) & 0xFF

    def add(self, address: bytes) -> None:
        """Mark an address. Marks of the same address add up."""
        bit = crc32(address) % self.BITS
        self._counts[bit] += 1
        self._page[bit >> 3] |= 1 << (bit & 7)

    def remove(self, address: bytes) -> None:
        """Remove one mark of an address."""
        bit = crc32(address) % self.BITS
        self._counts[bit] -= 1
        if self._counts[bit] <= 0:
            del self._counts[bit]
            self._page[bit >> 3] &= ~(1 << (bit & 7)) & 0xFF


def pack(name: Name, addresses: Sequence[bytes], seconds: int) -> bytes:
    """The record of the answer for a name. ValueError if the addresses have more octets than a DNS message can hold.

    `addresses`: 4 or 16 octets each, in network order.
    """
    four = [address for address in addresses if len(address) == 4]
    six = [address for address in addresses if len(address) == 16]
    packed = b"".join((*four, *six))
    if len(packed) > MAX_ADDRESS_OCTETS:
        raise ValueError(f"{len(addresses)} addresses do not fit into a DNS message")
    return _HEAD.pack(min(seconds, 0xFFFFFFFF), len(name), len(four), len(six)) + name + packed


def unpack(records: bytes) -> Iterator[tuple[Name, list[bytes], int]]:
    """(name, addresses, seconds) of each record; `seconds` is a day at most. ValueError if `pack` did not write it."""
    at = 0
    while at < len(records):
        if at + _HEAD.size > len(records):
            raise ValueError("the record is truncated")
        seconds, length, four, six = _HEAD.unpack_from(records, at)
        start = at + _HEAD.size + length
        at = start + 4 * four + 16 * six
        name = records[start - length : start]
        if at - start > MAX_ADDRESS_OCTETS:
            raise ValueError("more addresses than an answer can hold")
        if at > len(records) or not names.is_name(name):
            raise ValueError("the record is truncated or has no valid name")
        addresses = [records[i : i + 4] for i in range(start, start + 4 * four, 4)]
        addresses += [records[i : i + 16] for i in range(start + 4 * four, at, 16)]
        yield Name(name), addresses, min(seconds, learning.MAX_TTL_SECONDS)


def gather(packets: deque[bytes], record: bytes) -> bool:
    """Append a record to the last packet, or to a new one if it does not fit. Returns whether a new packet was made."""
    if packets and len(packets[-1]) + len(record) <= PACKET_OCTETS:
        packets[-1] += record
        return False
    packets.append(record)
    return True
