"""What resolvers and guardian share about answered addresses: packed records, and the page of marks.

A record holds a name, every address that it was answered with, and for how long a client may use them. Its size is bounded by
the DNS message that it comes from: no message has more than 65,535 octets, so neither have its addresses. The page says which
addresses may be blocked because of a name, so that a resolver holds back the few replies that must wait for the guardian.
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

MAX_ADDRESS_OCTETS = 65_535  # of one record: the length of a DNS message is 16 bits
_HEAD = struct.Struct("!IBHH")  # seconds, octets of the name, IPv4 addresses, IPv6 addresses
MAX_RECORD = _HEAD.size + 255 + MAX_ADDRESS_OCTETS  # octets; fits a packet of a channel (channel.MAX_PACKET)
PACKET_OCTETS = 16_384  # of records that are sent together, unless one alone has more: the guardian takes them in a millisecond


class Marks:
    """A page of bits in shared memory, one for an address that may be blocked because of a name. The guardian writes it.

    Several addresses share a bit: then a reply waits for the guardian although it need not. The guardian counts the addresses
    of a bit, so that the bit is cleared with the last of them.
    """

    BITS = 1 << 19

    def __init__(self, fd: int, *, write: bool = False) -> None:
        self._page = mmap.mmap(fd, self.BITS // 8, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
        self._counts: Counter[int] = Counter()

    @classmethod
    def make(cls) -> int:
        """The descriptor of a new page, for the guardian. Sealed: cutting it short would end every process that maps it."""
        fd = os.memfd_create("embargo-marks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, cls.BITS // 8)
        os.fchmod(fd, 0o600)  # else another user could open it for writing by way of /proc
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd

    @staticmethod
    def for_reading(fd: int) -> int:
        """Another descriptor of the page, which a resolver can only read."""
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)

    def __contains__(self, address: bytes) -> bool:
        bit = crc32(address) % self.BITS
        return bool(self._page[bit >> 3] >> (bit & 7) & 1)

    def clear(self) -> None:
        """Clear all marks, those of an earlier guardian too."""
        self._page[:] = bytes(self.BITS // 8)
        self._counts.clear()

    def set(self, addresses: Iterable[bytes]) -> None:
        """Mark exactly these addresses."""
        before, self._counts = self._counts, Counter(crc32(address) % self.BITS for address in addresses)
        for bit in self._counts.keys() - before.keys():
            self._page[bit >> 3] |= 1 << (bit & 7)
        for bit in before.keys() - self._counts.keys():
            self._page[bit >> 3] &= ~(1 << (bit & 7)) & 0xFF

    def add(self, address: bytes) -> None:
        """Mark an address, once more if it is marked."""
        bit = crc32(address) % self.BITS
        self._counts[bit] += 1
        self._page[bit >> 3] |= 1 << (bit & 7)

    def remove(self, address: bytes) -> None:
        """Take back one mark of an address."""
        bit = crc32(address) % self.BITS
        self._counts[bit] -= 1
        if self._counts[bit] <= 0:
            del self._counts[bit]
            self._page[bit >> 3] &= ~(1 << (bit & 7)) & 0xFF


def pack(name: Name, addresses: Sequence[bytes], seconds: int) -> bytes:
    """A record of a name's answer. ValueError for more octets of addresses than a DNS message can hold."""
    four = [address for address in addresses if len(address) == 4]
    six = [address for address in addresses if len(address) == 16]
    packed = b"".join((*four, *six))
    if len(packed) > MAX_ADDRESS_OCTETS:
        raise ValueError(f"{len(addresses)} addresses are more than an answer can hold")
    return _HEAD.pack(min(seconds, 0xFFFFFFFF), len(name), len(four), len(six)) + name + packed


def unpack(records: bytes) -> Iterator[tuple[Name, list[bytes], int]]:
    """(name, addresses, seconds) of each record; more than a day counts as a day. ValueError for what `pack` did not write."""
    at = 0
    while at < len(records):
        if at + _HEAD.size > len(records):
            raise ValueError("a record is cut short")
        seconds, length, four, six = _HEAD.unpack_from(records, at)
        start = at + _HEAD.size + length
        at = start + 4 * four + 16 * six
        name = records[start - length : start]
        if at > len(records) or not names.is_name(name):
            raise ValueError("a record is cut short, or has no name")
        addresses = [records[i : i + 4] for i in range(start, start + 4 * four, 4)]
        addresses += [records[i : i + 16] for i in range(start + 4 * four, at, 16)]
        yield Name(name), addresses, min(seconds, learning.MAX_TTL_SECONDS)


def gather(packets: deque[bytes], record: bytes) -> bool:
    """Put a record behind the others of the last packet, or in a new one where it does not fit. True: in a new one."""
    if packets and len(packets[-1]) + len(record) <= PACKET_OCTETS:
        packets[-1] += record
        return False
    packets.append(record)
    return True
