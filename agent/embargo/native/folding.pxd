"""What attempts are folded by, as `judgement.Attempt` has it: what `fastpath` and `attempts` share."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from embargo.native.octets cimport put, write16, write32

cdef enum:
    FOLDED_BY = 9  # octets of `Attempt.kind` behind the qname
    OTHER = 16  # octets of `Attempt.other`


cdef inline Py_ssize_t put_kind(
    uint8_t *out, const uint8_t *name, Py_ssize_t length, uint32_t qtype, uint16_t class_, uint32_t judged
) noexcept nogil:
    """Write what a blocked query is folded by; its octets."""
    out = put(out, name, length)
    write16(out, qtype)
    write16(out + 2, class_)
    out[4] = 0  # it was not passed
    write32(out + 5, judged)
    return length + FOLDED_BY


cdef inline void put_other(uint8_t *out, uint16_t class_, uint32_t judged, uint32_t source, uint32_t line) noexcept nogil:
    """Write the OTHER octets by which it is folded beyond a client's share of the log."""
    out[0] = 0
    write16(out + 1, class_)
    out[3] = 0  # it was not passed
    write32(out + 4, judged)
    write32(out + 8, source)
    write32(out + 12, line)
