# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `lists.scan`: a list file to columns, without an object a line.

A line that is not usual goes back to Python, where the meaning of lines is written down.
"""

from array import array

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcpy, memset

from embargo.native.octets cimport put

cdef enum:
    MAX_NAME = 255  # octets in wire form (RFC 1035 section 2.3.4)
    MAX_LABEL = 63
    MAX_LINE = 4096  # as in `lists`

cdef enum:
    LETTER = 1
    OTHER = 2  # a digit, _ or -

cdef uint8_t _KIND[256]  # of an octet in a usual name; 0 for any other octet
memset(_KIND, 0, 256)
for _octet in bytearray(b"abcdefghijklmnopqrstuvwxyz"):
    _KIND[_octet] = LETTER
for _octet in bytearray(b"0123456789_-"):
    _KIND[_octet] = OTHER


cdef inline Py_ssize_t _behind_blanks(const uint8_t *line, Py_ssize_t size, Py_ssize_t at) noexcept nogil:
    while at < size and (line[at] == c" " or line[at] == c"\t"):
        at += 1
    return at


cdef int _usual(const uint8_t *line, Py_ssize_t size, uint8_t *wire, int *sign) noexcept nogil:
    """Octets of the wire form of a usual line's name; 0 for a line without an entry, -1 for an unusual one."""
    cdef Py_ssize_t at, behind
    cdef int length
    if size > MAX_LINE:
        return -1
    if size and line[size - 1] == c"\r":
        size -= 1
    if memchr(line, c"\r", size) != NULL:
        return -1
    at = _behind_blanks(line, size, 0)
    if at == size or line[at] == c"#":
        return 0
    sign[0] = 1 if line[at] == c"=" else 2 if line[at] == c"!" else 0
    at += sign[0] != 0
    length = _name(line, size, &at, wire)
    behind = _behind_blanks(line, size, at)
    if behind < size and (line[behind] != c"#" or behind == at):  # a comment stands apart
        return -1
    return length


cdef int _name(const uint8_t *line, Py_ssize_t size, Py_ssize_t *at, uint8_t *wire) noexcept nogil:
    """Octets of the wire form of the usual name that stands here, -1 without one; `at` moves behind it."""
    cdef Py_ssize_t start = at[0], stop, label
    cdef int out = 0
    while True:
        stop = start
        while stop < size and _KIND[line[stop]]:
            stop += 1
        label = stop - start
        if label == 0 or label > MAX_LABEL or out + label + 2 > MAX_NAME:
            return -1
        wire[out] = <uint8_t>label
        memcpy(wire + out + 1, line + start, label)
        out += 1 + label
        if stop == size or line[stop] != c".":
            break
        start = stop + 1
    at[0] = stop
    wire[out] = 0
    return out + 1 if _KIND[line[start]] == LETTER else -1  # a top-level domain begins with a letter, an address does not


cdef bint _suspect(const uint8_t *wire, int size, suspects) except -1:
    """Whether this name may be a public suffix. Suspects are names, and *.name for those all of whose children may be."""
    cdef int behind = wire[0] + 1
    if wire[behind] == 0 or PyBytes_FromStringAndSize(<const char *>wire, size) in suspects:
        return True
    return b"\1*" + PyBytes_FromStringAndSize(<const char *>wire + behind, size - behind) in suspects


@cython.final
cdef class _Columns:
    """The usual lines that were read: their names end to end, and where each begins, its number and its sign."""

    cdef bytearray names, signs
    cdef object starts, lines  # arrays of uint32
    cdef uint8_t[::1] _names, _signs
    cdef uint32_t[::1] _starts, _lines
    cdef Py_ssize_t used, count

    def __init__(self, Py_ssize_t octets, Py_ssize_t lines):
        self.names, self.signs = bytearray(octets + 2 * lines), bytearray(lines)  # wire form is 2 octets longer than text
        self.starts, self.lines = array("I", bytes(4 * lines)), array("I", bytes(4 * lines))
        self._names, self._signs, self._starts, self._lines = self.names, self.signs, self.starts, self.lines
        self.used = self.count = 0

    cdef int add(self, const uint8_t *wire, int length, uint32_t number, int sign) except -1:
        if self.used + length > self._names.shape[0]:  # cannot be, by the remark above
            raise OverflowError("a list grows as it is read")
        put(&self._names[self.used], wire, length)
        self._starts[self.count] = <uint32_t>self.used
        self._lines[self.count] = number
        self._signs[self.count] = <uint8_t>sign
        self.used += length
        self.count += 1
        return 0

    cdef tuple taken(self):
        """(names, starts, lines, signs)"""
        names, signs = bytes(self._names[: self.used]), bytes(self._signs[: self.count])
        return names, self.starts[: self.count], self.lines[: self.count], signs


def scan(bytes data, int end, suspects):
    """The twin of `lists.scan`, with the usual lines as four columns. `end`: the octet that ends a line."""
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at = 0, stop
    cdef const uint8_t *found
    cdef uint8_t wire[MAX_NAME + 1]
    cdef int length, sign = 0
    cdef uint32_t number = 0
    cdef _Columns columns = _Columns(size, data.count(bytes([end])) + 1)
    cdef list odd = []
    while at <= size:
        number += 1
        found = <const uint8_t *>memchr(text + at, end, size - at)
        stop = found - text if found != NULL else size
        length = _usual(text + at, stop - at, wire, &sign)
        if length > 0 and suspects is not None and sign != 2 and _suspect(wire, length, suspects):
            length = -1
        if length < 0:
            odd.append((number, at, stop))
        elif length > 0:
            columns.add(wire, length, number, sign)
        at = stop + 1
    return *columns.taken(), odd
