"""A query's question and OPT record: what `message` and `fastpath` share."""

from libc.stdint cimport uint8_t


cdef inline Py_ssize_t question_end(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    """Where the one question of a query ends, if it is of class IN and has a name that is spelt out; 0 for another one."""
    cdef Py_ssize_t at = 12
    if size < 17:
        return 0
    while p[at]:
        if p[at] > 63:
            return 0
        at += p[at] + 1
        if at >= size:
            return 0
    return at + 5 if at <= 266 and at + 5 <= size and not p[at + 3] and p[at + 4] == 1 else 0


cdef inline bint whole_opt(const uint8_t *opt, Py_ssize_t size) noexcept nogil:
    """Whether these octets are one OPT record: root owner, type 41, version 0, whole options."""
    cdef Py_ssize_t left, at = 11
    cdef int length
    if size < 11 or opt[0] or opt[1] or opt[2] != 41 or opt[6]:
        return False
    left = opt[9] << 8 | opt[10]
    if left + 11 != size:
        return False
    while left >= 4:
        length = 4 + (opt[at + 2] << 8 | opt[at + 3])
        at += length
        left -= length
    return not left


cdef inline int payload_of(const uint8_t *opt) noexcept nogil:
    """Octets of UDP payload that the client takes, within our bounds."""
    return min(max(opt[3] << 8 | opt[4], 512), 1232)
