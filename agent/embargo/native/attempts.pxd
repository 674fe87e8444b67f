"""The twin of `attempts.Attempts.note`, for `intake`."""

from libc.stdint cimport uint8_t, uint64_t

from embargo.native.events cimport Kind
from embargo.native.fastpath cimport Known


cdef class Noting:
    cdef object _attempts, _head_of
    cdef bytes _head, _opening, _closing
    cdef double _wall  # the time in `_head`: all attempts of a batch have one
    cdef uint64_t[::1] _tally, _page
    cdef dict _kinds  # of the folder, by client and kind
    cdef dict _asked  # names of first attempts
    cdef bint _names  # whether the qname is a part of a kind
    cdef Py_ssize_t _most_kinds
    cdef long _noted, _records
    cdef uint8_t *_lines
    cdef Py_ssize_t written

    cdef int hand_over(self) except -1
    cdef int note(self, Known known, str client, double now, double wall) except -1
    cdef Kind _counted(self, Known known, bytes client, double now, double wall)
    cdef str _write(self, Known known, bytes client)
