# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `columns.sort_out`: the rows of all lists to plain names, without an object a row.

A row is one line at one name; rows are numbered through all parts. The rows of a name are a group, and the first of them is
its leader. What Python has to judge is handed back as names and places.
"""

from array import array

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from embargo.native.hashes cimport by_hash, embargo_crc, embargo_crc_init
from embargo.native.octets cimport name_length, put

embargo_crc_init()

cdef enum:  # signs of a line: see `columns`
    EXACT = 1
    EXCEPTION = 2

cdef enum:  # signs of a group, one bit each
    HAS_SUFFIX = 1
    HAS_EXACT = 2

cdef enum:  # states of a group, one bit each
    PLAIN = 1
    MIXED = 2
    ABOVE_MIXED = 4


cdef struct Part:
    const uint8_t *names
    const uint32_t *starts
    const uint32_t *lines
    const uint8_t *signs
    uint32_t uniform
    uint32_t source
    bint odd
    Py_ssize_t before  # rows of the parts before it
    Py_ssize_t rows


cdef struct Group:  # the rows of one name
    uint32_t uniform  # 0: they differ in kind, and Python has to judge
    uint8_t signs
    uint8_t state
    uint32_t best  # the row with the lowest source and line


@cython.final
cdef class _Rows:
    """All rows, in the order of the hashes of their names, and the groups that they form."""

    cdef Py_ssize_t count, octets, parts_count
    cdef Part *parts
    cdef uint16_t *part  # by row
    cdef uint64_t *keys  # hash and row
    cdef uint64_t *spare
    cdef uint64_t *order  # one of these two
    cdef uint32_t *first  # by the upper bits of a hash: where in `order` they begin
    cdef int shift  # of a hash, to its upper bits
    cdef uint32_t *leader  # by row
    cdef Group *groups  # by leader
    cdef list given  # what the pointers of `parts` point into

    def __cinit__(self, list given):
        cdef int bits = 1
        self.given, self.parts_count = given, len(given)
        for each in given:
            self.octets += len(each[0])
            self.count += len(each[1])
        if self.count >= 1 << 31 or self.parts_count >= 1 << 16:
            raise OverflowError("too many entries")
        while bits < 24 and 1 << bits < self.count:
            bits += 1
        self.shift = 32 - bits
        self.parts = <Part *>calloc(self.parts_count + 1, sizeof(Part))
        self.part = <uint16_t *>calloc(self.count + 1, sizeof(uint16_t))
        self.keys = <uint64_t *>calloc(self.count + 1, sizeof(uint64_t))
        self.spare = <uint64_t *>calloc(self.count + 1, sizeof(uint64_t))
        self.first = <uint32_t *>calloc((1 << bits) + 1, sizeof(uint32_t))
        self.leader = <uint32_t *>calloc(self.count + 1, sizeof(uint32_t))
        self.groups = <Group *>calloc(self.count + 1, sizeof(Group))
        if not (self.parts and self.part and self.keys and self.spare and self.first and self.leader and self.groups):
            raise MemoryError

    def __dealloc__(self):
        free(self.parts)
        free(self.part)
        free(self.keys)
        free(self.spare)
        free(self.first)
        free(self.leader)
        free(self.groups)

    def __init__(self, list given):
        cdef Py_ssize_t number, row, before = 0
        for number in range(self.parts_count):
            self._take(&self.parts[number], given[number], before)
            for row in range(self.parts[number].rows):
                self.part[before + row] = <uint16_t>number
            before += self.parts[number].rows
        for row in range(self.count):
            self.keys[row] = <uint64_t>embargo_crc(self.name(row), name_length(self.name(row))) << 32 | <uint64_t>row
        self.order = by_hash(self.keys, self.spare, self.count)
        self._begin()
        self._group()

    cdef int _take(self, Part *part, given, Py_ssize_t before) except -1:
        """Point into the columns of a part, which stay where they are as long as `given` lives."""
        cdef const uint8_t[::1] octets
        cdef const uint32_t[::1] words
        names, starts, lines, signs, part.uniform, part.source, part.odd = given
        part.before, part.rows = before, len(starts)
        if not part.rows:
            return 0
        octets = names
        part.names = &octets[0]
        octets = signs
        part.signs = &octets[0]
        words = starts
        part.starts = &words[0]
        words = lines
        part.lines = &words[0]
        return 0

    cdef inline const uint8_t *name(self, Py_ssize_t row) noexcept nogil:
        cdef Part *part = &self.parts[self.part[row]]
        return part.names + part.starts[row - part.before]

    cdef inline uint32_t line(self, Py_ssize_t row) noexcept nogil:
        cdef Part *part = &self.parts[self.part[row]]
        return part.lines[row - part.before]

    cdef inline uint32_t source(self, Py_ssize_t row) noexcept nogil:
        return self.parts[self.part[row]].source

    cdef void _begin(self) noexcept nogil:
        """Where in `order` the hashes of each bucket begin."""
        cdef Py_ssize_t i = 0, bucket
        for bucket in range((1 << 32 - self.shift) + 1):
            while i < self.count and <Py_ssize_t>(self.order[i] >> 32 >> self.shift) < bucket:
                i += 1
            self.first[bucket] = <uint32_t>i

    cdef void _group(self) noexcept nogil:
        """Find the leader of each row, and what the rows of a group have in common."""
        cdef Py_ssize_t i = 0, j, row
        while i < self.count:
            j = i
            while j < self.count and self.order[j] >> 32 == self.order[i] >> 32:
                row = <uint32_t>self.order[j]
                self.leader[row] = self._leader_among(row, i, j)
                self._join(row, &self.groups[self.leader[row]])
                j += 1
            i = j

    cdef uint32_t _leader_among(self, Py_ssize_t row, Py_ssize_t first, Py_ssize_t behind) noexcept nogil:
        """The leader with the name of this row, among rows with its hash; the row itself where there is none."""
        cdef Py_ssize_t i, other
        for i in range(first, behind):
            other = <uint32_t>self.order[i]
            if self.leader[other] == <uint32_t>other:
                if memcmp(self.name(other), self.name(row), name_length(self.name(row))) == 0:
                    return <uint32_t>other
        return <uint32_t>row

    cdef void _join(self, Py_ssize_t row, Group *group) noexcept nogil:
        """Count a row in its group."""
        cdef Part *part = &self.parts[self.part[row]]
        cdef uint8_t sign = part.signs[row - part.before]
        cdef uint32_t uniform = 0 if sign == EXCEPTION or part.odd else part.uniform
        cdef uint8_t has = HAS_EXACT if sign == EXACT else HAS_SUFFIX
        if self.leader[row] == <uint32_t>row:
            group.uniform, group.signs, group.state, group.best = uniform, has, 0, <uint32_t>row
            return
        if uniform != group.uniform:
            group.uniform = 0
        group.signs |= has
        if part.source < self.source(group.best) or (
            part.source == self.source(group.best) and self.line(row) < self.line(group.best)
        ):
            group.best = <uint32_t>row

    cdef Group *group_of(self, const uint8_t *name, int length) noexcept nogil:
        """The group of this name, NULL without one."""
        cdef uint32_t hash_ = embargo_crc(name, length)
        cdef Py_ssize_t i = self.first[hash_ >> self.shift]
        cdef Py_ssize_t row
        while i < self.count and <uint32_t>(self.order[i] >> 32) <= hash_:
            row = <uint32_t>self.order[i]
            if <uint32_t>(self.order[i] >> 32) == hash_ and self.leader[row] == <uint32_t>row:
                if memcmp(self.name(row), name, length) == 0:
                    return &self.groups[row]
            i += 1
        return NULL

    cdef bint sort_out(self) noexcept nogil:
        """Which names are plain, and which need Python: True when there are any of those."""
        cdef Py_ssize_t row
        cdef Group *group
        cdef bint mixed = False
        for row in range(self.count):
            if self.leader[row] != <uint32_t>row:
                continue
            group = &self.groups[row]
            if self._is_plain(group, self.name(row)):
                group.state |= PLAIN
            else:
                group.state |= MIXED
                self._mark_above(self.name(row))
                mixed = True
        return mixed

    cdef bint _is_plain(self, Group *group, const uint8_t *name) noexcept nogil:
        """Whether the lines at this name and above it are of one kind and none is an exception: see `columns.sort_out`."""
        cdef int length = name_length(name), at = 1 + name[0]
        cdef Group *above
        if not group.uniform or group.signs == (HAS_SUFFIX | HAS_EXACT):
            return False
        while at < length and name[at]:
            above = self.group_of(name + at, length - at)
            if above != NULL and (above.uniform != group.uniform or group.signs != HAS_SUFFIX):
                return False
            at += 1 + name[at]
        return True

    cdef void _mark_above(self, const uint8_t *name) noexcept nogil:
        """The lines at names above a mixed one speak of it too."""
        cdef int length = name_length(name), at = 1 + name[0]
        cdef Group *above
        while at < length and name[at]:
            above = self.group_of(name + at, length - at)
            if above != NULL:
                above.state |= ABOVE_MIXED
            at += 1 + name[at]

    cdef tuple plain(self):
        """The plain names as columns: (names, starts, lines, sources, exact)."""
        cdef bytearray blob = bytearray(self.octets), exact = bytearray(self.count)
        starts, lines = array("I", bytes(4 * self.count)), array("I", bytes(4 * self.count))
        sources = array("H", bytes(2 * self.count))
        cdef uint8_t[::1] blob_ = blob, exact_ = exact
        cdef uint32_t[::1] starts_ = starts, lines_ = lines
        cdef uint16_t[::1] sources_ = sources
        cdef Py_ssize_t row, used = 0, count = 0
        cdef int length
        for row in range(self.count):
            if self.leader[row] == <uint32_t>row and self.groups[row].state & PLAIN:
                length = name_length(self.name(row))
                put(&blob_[used], self.name(row), length)
                starts_[count] = <uint32_t>used
                lines_[count] = self.line(self.groups[row].best)
                sources_[count] = <uint16_t>self.source(self.groups[row].best)
                exact_[count] = self.groups[row].signs == HAS_EXACT
                used += length
                count += 1
        return bytes(blob_[:used]), starts[:count], lines[:count], sources[:count], bytes(exact_[:count])

    cdef tuple others(self):
        """(the names that Python has to judge, the places of the lines that speak of them by name)"""
        cdef Py_ssize_t row
        cdef uint8_t state
        names, places = [], {}
        for row in range(self.count):
            state = self.groups[self.leader[row]].state
            if state & (MIXED | ABOVE_MIXED):
                key = PyBytes_FromStringAndSize(<const char *>self.name(row), name_length(self.name(row)))
                if self.leader[row] == <uint32_t>row and state & MIXED:
                    names.append(key)
                places.setdefault(key, []).append((self.part[row], row - self.parts[self.part[row]].before))
        return names, places


def sort_out(list parts):
    """The twin of `columns.sort_out`, with the plain names as five columns."""
    cdef _Rows rows = _Rows(parts)
    cdef bint mixed = rows.sort_out()
    names, places = rows.others() if mixed else ([], {})
    return rows.plain(), names, places
