# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `attempts.Attempts.note`: attempts counted in the kinds that are open."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint64_t

from embargo.native.events cimport Kind
from embargo.native.fastpath cimport Known
from embargo.native.octets cimport name_length

cdef enum:
    ASKED = 256  # as in `attempts`


@cython.final
cdef class Noting:
    """Attempts that are counted until they are handed over: the twin of `attempts.Attempts.note`. Python writes the records."""

    def __cinit__(self, attempts, Py_ssize_t classes):
        self._attempts, self._first = attempts, attempts.first
        self._tally, self._page = attempts.tally, attempts.page
        if self._tally.shape[0] < classes:
            raise ValueError("the tally is another judgement's")
        self._clients, self._asked = attempts.folder.clients, attempts.asked

    cdef int hand_over(self) except -1:
        """Tell the worker's attempts what was noted since the last time."""
        self.recorded = False
        if self._noted:
            noted, self._noted = self._noted, 0
            self._attempts.counted(noted)
        return 0

    cdef int note(self, Known known, str client, double now, double wall) except -1:
        """Count an attempt. Python counts the first one of a kind, and any for which no kind is open."""
        cdef PyObject *kinds = PyDict_GetItem(self._clients, client)
        cdef PyObject *kind
        self._tally[known.class_] += 1
        if kinds != NULL:
            kind = PyDict_GetItem(<object>kinds, known.key)
            if kind == NULL:  # attempts at further names are counted by entry, once a client has many kinds
                kind = PyDict_GetItem(<object>kinds, known.other)
                if kind != NULL and len(self._asked) < ASKED:
                    self._asked[_qname(known)] = None
            if kind != NULL:
                self._noted += 1
                self._page[0] += 1  # a page of the supervisor's, which it reads if this process is killed
                (<Kind>kind).again(wall)
                return 0
        self.hand_over()
        self.recorded = True
        self._first(client, known.key, known.other, known.members.decode, _qname(known), now, wall)
        return 0


cdef bytes _qname(Known known):
    """The name that was asked for: `kind` has the folded values and the answer's text behind it."""
    return known.kind[: name_length(<const uint8_t *>PyBytes_AS_STRING(known.kind))]
