# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `message.parse_query`: the usual query taken apart."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from embargo.native.octets cimport lower, made, read16


def query(bytes packet, type kind):
    """The twin of `message.parse_query` for a plain query; None for a packet that Python has to look at. `kind`: `Query`."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packet), end = question_end(p, size), i
    cdef int payload = 512
    cdef bint edns, do = False
    cdef uint32_t qtype
    cdef uint8_t qname[256]
    if not end or p[2] & 0xFA or memcmp(p + 4, b"\0\1\0\0\0\0\0", 7) or p[11] > 1:
        return None
    qtype = read16(p + end - 4)
    if qtype == 0 or qtype == 41 or 249 <= qtype <= 254:
        return None
    edns = p[11] == 1
    if edns:
        if not whole_opt(p + end, size - end):
            return None
        payload, do = payload_of(p + end), p[end + 7] >> 7
    elif end != size:
        return None
    for i in range(12, end - 4):
        qname[i - 12] = lower(p[i])
    return made(kind, (
        read16(p), (p[2] & 1) << 8 | p[3] & 0x30, PyBytes_FromStringAndSize(<const char *>p + 12, end - 12),
        PyBytes_FromStringAndSize(<const char *>qname, end - 16), qtype, bool(edns), bool(do), payload,
    ))  # fmt: skip
