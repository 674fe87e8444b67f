from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef class Finder:
    cdef const uint32_t[::1] slots  # four words each: hash, 1 + offset in blob, line, source and kind
    cdef const uint8_t[::1] _blob
    cdef uint64_t _homes
    cdef Py_ssize_t _count
    cdef uint64_t _octets

    cdef Py_ssize_t search(self, const uint8_t *name, Py_ssize_t size) noexcept nogil
    cpdef Py_ssize_t find(self, bytes name) except -2
