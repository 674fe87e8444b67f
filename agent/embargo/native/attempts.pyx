# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `attempts.Attempts.note`: attempts counted, and the first of each kind written as a line."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

from embargo.native.events cimport Kind
from embargo.native.fastpath cimport Known
from embargo.native.octets cimport put

from embargo import events

cdef enum:
    MAX_LINES = 1 << 16  # octets of event lines gathered before they are handed over
    ASKED = 256  # as in `attempts`
    KINDS = 256  # clients whose kinds a reply remembers: `attempts.CLIENTS`
    FOLDED_BY = 9  # octets of an attempt's kind behind its qname: see `judgement.Attempt`


@cython.final
cdef class Noting:
    """Attempts that are counted and written down until they are handed over: the twin of `attempts.Attempts.note`."""

    def __cinit__(self, attempts, Py_ssize_t classes):
        self._attempts, self._names = attempts, attempts.names
        self._tally, self._page = attempts.tally, attempts.page
        if self._tally.shape[0] < classes:
            raise ValueError("the tally is another judgement's")
        self._kinds, self._asked, self._most_kinds = attempts.folder.kinds, attempts.asked, events.MAX_KINDS
        self._head_of, self._closing = events.head, events.CLOSING.encode()
        self._head, self._wall = self._head_of(0.0).encode(), 0.0
        self._opening = events.opening("dns").encode() + b'"'
        self._lines = <uint8_t *>calloc(1, MAX_LINES)
        if not self._lines:
            raise MemoryError

    def __dealloc__(self):
        free(self._lines)

    cdef int hand_over(self) except -1:
        """Tell the worker's attempts what was noted since the last time."""
        if not self._noted:
            return 0
        lines = PyBytes_FromStringAndSize(<const char *>self._lines, self.written)
        noted, records = self._noted, self._records
        self._noted = self._records = self.written = 0
        self._attempts.logged(lines, records, noted)
        return 0

    cdef int note(self, Known known, str client, double now, double wall) except -1:
        """Count an attempt; the first of its kind is a line."""
        cdef PyObject *found
        cdef Kind kind
        self._noted += 1
        self._page[0] += 1  # a page of the supervisor's, which it reads if this process is killed
        self._tally[known.class_] += 1
        if known.kinds is not None:
            found = PyDict_GetItem(known.kinds, client)
            if found != NULL and (<Kind>found).open:
                (<Kind>found).again(wall)
                return 0
        kind = self._counted(known, client.encode(), now, wall)
        if kind is not None:
            if known.kinds is None or len(known.kinds) >= KINDS:
                known.kinds = {}
            known.kinds[client] = kind
        return 0

    cdef Kind _counted(self, Known known, bytes client, double now, double wall):
        """The kind that an attempt was counted in; None for a first one when too many kinds are held."""
        cdef Py_ssize_t named = PyBytes_GET_SIZE(known.kind) - FOLDED_BY
        cdef Kind kind
        key = client + b"\0" + (known.kind if self._names else known.kind[named:])
        kind = self._kinds.get(key)
        if kind is not None:
            kind.again(wall)
            return kind
        if len(self._asked) < ASKED:
            self._asked[known.kind[:named]] = None
        if wall != self._wall:
            self._head, self._wall = self._head_of(wall).encode(), wall
        members = self._write(known, client)
        if len(self._kinds) < self._most_kinds:
            kind = self._kinds[key] = Kind(members, now)
        return kind

    cdef str _write(self, Known known, bytes client):
        """Add the line of a first attempt; its members."""
        cdef bytes head = self._head
        cdef Py_ssize_t length = len(head) + len(self._opening) + len(client) + 1 + len(known.members) + len(self._closing)
        cdef uint8_t *begin
        cdef uint8_t *end
        if length > MAX_LINES:
            raise OverflowError("an event is longer than all that is gathered")
        if self.written + length > MAX_LINES:
            self.hand_over()
        begin = put(self._lines + self.written, PyBytes_AS_STRING(head), len(head))
        end = put(begin, PyBytes_AS_STRING(self._opening), len(self._opening))
        end = put(end, PyBytes_AS_STRING(client), len(client))
        end[0] = c'"'
        end = put(end + 1, PyBytes_AS_STRING(known.members), len(known.members))
        self.written = put(end, PyBytes_AS_STRING(self._closing), len(self._closing)) - self._lines
        self._records += 1
        return (<char *>begin)[: end - begin].decode("ascii")
