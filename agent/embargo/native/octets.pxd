"""Reading and writing octets: inline functions that every twin compiles into itself."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy


cdef extern from "native.h":
    pass  # its macros let `cpython.bytes` be used in the stable ABI


cdef struct Text:
    const char *octets
    Py_ssize_t length


cdef inline uint8_t lower(uint8_t octet) noexcept nogil:
    """An ASCII letter in lower case; any other octet as it is."""
    return octet + 32 if 65 <= octet <= 90 else octet


cdef inline uint16_t read16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t read32(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline void write16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0], at[1] = value >> 8 & 255, value & 255


cdef inline void write32(uint8_t *at, uint32_t value) noexcept nogil:
    at[0], at[1], at[2], at[3] = value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255


cdef inline uint8_t *put(uint8_t *out, const void *octets, Py_ssize_t length) noexcept nogil:
    """Copy octets; where the next ones go."""
    memcpy(out, octets, length)
    return out + length


cdef inline uint8_t *put_number(uint8_t *out, uint32_t value) noexcept nogil:
    """Write a number in decimal digits; where the next octet goes."""
    cdef uint8_t digits[10]
    cdef int count = 0
    while True:
        digits[count] = 48 + value % 10
        count += 1
        value //= 10
        if not value:
            break
    while count:
        count -= 1
        out[0] = digits[count]
        out += 1
    return out


cdef inline int name_length(const uint8_t *name) noexcept nogil:
    """Octets of a name in wire form, its last zero included."""
    cdef int at = 0
    while name[at]:
        at += 1 + name[at]
    return at + 1


cdef inline object made(type kind, tuple values):
    """A named tuple, without a call of its own constructor."""
    return tuple.__new__(kind, values)


cdef inline uint8_t *put_text(uint8_t *out, const void *octets, Py_ssize_t length) noexcept nogil:
    """Write a JSON string of octets that need no escape."""
    out[0] = c'"'
    out = put(out + 1, octets, length)
    out[0] = c'"'
    return out + 1
