# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twins of `image.Finder` and `image.table`: a name looked up by its suffixes, and the slots of a million names."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from embargo.native.hashes cimport by_hash, embargo_crc, embargo_crc_init, embargo_crc_suffixes
from embargo.native.octets cimport name_length

embargo_crc_init()

cdef enum:
    LONG = 64  # octets of a name above which its suffixes are hashed in one pass


cdef class Finder:
    """The names of an image. It keeps the views; whatever they hold, it reads nothing outside them."""

    def __init__(self, const uint32_t[::1] slots, const uint8_t[::1] blob, uint64_t homes):
        self.slots, self._blob, self._homes = slots, blob, homes
        self._count = slots.shape[0] // 4
        self._octets = blob.shape[0]

    cdef Py_ssize_t search(self, const uint8_t *name, Py_ssize_t size) noexcept nogil:
        """256 times the slot of the first listed suffix, plus where in the name it begins; -1 without one."""
        cdef Py_ssize_t start = 0, slot, left
        cdef uint32_t hash_, begin
        cdef uint32_t suffixes[256]
        cdef bint long_ = LONG < size <= 256
        if long_:
            embargo_crc_suffixes(name, size, suffixes)
        while True:
            left = size - start
            hash_ = suffixes[start] if long_ else embargo_crc(name + start, left)
            slot = <Py_ssize_t>(<uint64_t>hash_ * self._homes >> 32)
            while slot < self._count:
                begin = self.slots[4 * slot + 1]
                if not begin or self.slots[4 * slot] > hash_:
                    break
                if self.slots[4 * slot] == hash_ and <uint64_t>begin - 1 + left <= self._octets:
                    if memcmp(&self._blob[begin - 1], name + start, left) == 0:
                        return slot << 8 | start
                slot += 1
            if not name[start]:
                return -1
            start += 1 + name[start]
            if start >= size:
                return -1

    cpdef Py_ssize_t find(self, bytes name) except -2:
        """The twin of `image.Finder.find`."""
        if PyBytes_GET_SIZE(name) > 255:
            raise ValueError("a name has at most 255 octets")
        return self.search(<const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))

    def unclaimed(self, bytes qname, leads, address):
        """The twin of `image.Finder.unclaimed`."""
        cdef bytes owner, target
        if self.find(qname) >= 0:
            return False
        for owner, targets, addresses in leads:
            if owner != qname and self.find(owner) >= 0:
                return False
            # a stranger's answer may name one target a thousand times
            for target in set(targets) if len(targets) > 1 else targets:
                if self.find(target) >= 0:
                    return False
            for packed in addresses:
                if address(packed):
                    return False
        return True


cdef inline Py_ssize_t _slot(uint64_t key, uint64_t homes, Py_ssize_t last) noexcept nogil:
    """Where a name with the hash of this key goes, when the one before it went to `last`: home, or the next after `last`."""
    cdef Py_ssize_t home = <Py_ssize_t>((key >> 32) * homes >> 32)
    return home if home > last else last + 1


cdef bytes _slots(
    uint64_t *order, Py_ssize_t count, uint64_t homes,
    const uint32_t[::1] starts, const uint32_t[::1] lines, const uint16_t[::1] sources, const uint8_t[::1] kinds,
):  # fmt: skip
    """The slots of names that are given in the order of their hashes: hash and number."""
    cdef Py_ssize_t i, slot = -1
    cdef uint32_t number
    cdef uint32_t *words
    cdef bytes slots
    for i in range(count):
        slot = _slot(order[i], homes, slot)
    slot = max(slot + 2, <Py_ssize_t>homes)  # the last slot is free
    slots = PyBytes_FromStringAndSize(NULL, 16 * slot)
    words = <uint32_t *>PyBytes_AS_STRING(slots)
    memset(words, 0, 16 * slot)
    slot = -1
    for i in range(count):
        number = <uint32_t>order[i]
        slot = _slot(order[i], homes, slot)
        words[4 * slot] = <uint32_t>(order[i] >> 32)
        words[4 * slot + 1] = starts[number] + 1
        words[4 * slot + 2] = lines[number]
        words[4 * slot + 3] = sources[number] | <uint32_t>kinds[number] << 16
    return slots


def table(
    bytes blob, const uint32_t[::1] starts, const uint32_t[::1] lines, const uint16_t[::1] sources,
    const uint8_t[::1] kinds, uint64_t homes,
):  # fmt: skip
    """The twin of `image.table`."""
    cdef Py_ssize_t count = starts.shape[0], i
    cdef const uint8_t *names = <const uint8_t *>PyBytes_AS_STRING(blob)
    cdef const uint8_t *name
    cdef uint64_t *keys = <uint64_t *>calloc(count + 1, sizeof(uint64_t))
    cdef uint64_t *spare = <uint64_t *>calloc(count + 1, sizeof(uint64_t))
    try:
        if not (keys and spare):
            raise MemoryError
        for i in range(count):
            name = names + starts[i]
            keys[i] = <uint64_t>embargo_crc(name, name_length(name)) << 32 | <uint64_t>i
        return _slots(by_hash(keys, spare, count), count, homes, starts, lines, sources, kinds)
    finally:
        free(keys)
        free(spare)
