"""The twin of `attempts.Attempts.note`, for `intake`."""

from libc.stdint cimport uint64_t

from embargo.native.fastpath cimport Known


cdef class Noting:
    cdef object _attempts, _first
    cdef uint64_t[::1] _tally, _page
    cdef dict _clients  # of the folder: kinds by client and key
    cdef dict _asked  # names of first attempts
    cdef long _noted
    cdef bint recorded  # Python was told of a first attempt, and may have set a timer

    cdef int hand_over(self) except -1
    cdef int note(self, Known known, str client, double now, double wall) except -1
