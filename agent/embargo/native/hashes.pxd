"""Hashes of names, and rows in the order of their hashes: what `columns` and `image` share."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset


cdef extern from "native.h":
    void embargo_crc_init() nogil  # once in each module that hashes
    uint32_t embargo_crc(const unsigned char *data, size_t length) nogil
    void embargo_crc_suffixes(const unsigned char *data, size_t length, uint32_t *suffixes) nogil  # at most 256 octets


cdef inline uint64_t *by_hash(uint64_t *keys, uint64_t *spare, Py_ssize_t count) noexcept nogil:
    """Keys in the order of their upper 32 bits, equal ones as they were: a radix sort. One of the two arrays."""
    cdef Py_ssize_t bucket[2048]
    cdef Py_ssize_t i, total, held
    cdef int shift
    cdef uint64_t *other
    for shift in range(32, 64, 11):
        memset(bucket, 0, sizeof(bucket))
        for i in range(count):
            bucket[keys[i] >> shift & 2047] += 1
        total = 0
        for i in range(2048):
            held = bucket[i]
            bucket[i] = total
            total += held
        for i in range(count):
            spare[bucket[keys[i] >> shift & 2047]] = keys[i]
            bucket[keys[i] >> shift & 2047] += 1
        other = keys
        keys = spare
        spare = other
    return keys
