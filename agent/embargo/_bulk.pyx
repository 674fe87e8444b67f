# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Lists in bulk: the compiled twins of `lists.scan`, `policy.sort_out` and `image.table`, with the same results.

Each takes and gives octets and arrays, so a million lines cost no object each. What these functions do not understand they
hand back to Python, which is where its meaning is written down.
"""

from array import array

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "native.h":
    void embargo_crc_init() nogil
    uint32_t embargo_crc(const unsigned char *data, size_t length) nogil

embargo_crc_init()

DEF MAX_NAME = 255
DEF MAX_LABEL = 63
DEF MAX_LINE = 4096

cdef uint8_t _KIND[256]  # of an octet in a usual name: 1 letter, 2 digit, _ or -; 0 anything else
memset(_KIND, 0, 256)
for _octet in bytearray(b"abcdefghijklmnopqrstuvwxyz"):
    _KIND[_octet] = 1
for _octet in bytearray(b"0123456789_-"):
    _KIND[_octet] = 2


# ── lists.scan ───────────────────────────────────────────────────────────────────────────────────────────────────────────


cdef int _usual(const uint8_t *line, Py_ssize_t size, uint8_t *wire, int *sign) noexcept nogil:
    """Octets of the wire form of a usual line's name; 0 for a line without an entry, -1 for an unusual one."""
    cdef Py_ssize_t at = 0, start, label
    cdef int out = 0, first = 0
    if size > MAX_LINE:
        return -1
    if size and line[size - 1] == 13:
        size -= 1
    if memchr(line, 13, size) != NULL:
        return -1
    while at < size and (line[at] == 32 or line[at] == 9):
        at += 1
    if at == size or line[at] == 35:
        return 0
    sign[0] = 0
    if line[at] == 61:  # =
        sign[0] = 1
        at += 1
    elif line[at] == 33:  # !
        sign[0] = 2
        at += 1
    while True:
        start = at
        while at < size and _KIND[line[at]]:
            at += 1
        label = at - start
        if label == 0 or label > MAX_LABEL or out + label + 2 > MAX_NAME:
            return -1
        first = _KIND[line[start]]
        wire[out] = <uint8_t>label
        memcpy(wire + out + 1, line + start, label)
        out += 1 + label
        if at == size or line[at] != 46:
            break
        at += 1
    if first != 1:  # a top-level domain begins with a letter, an address does not
        return -1
    wire[out] = 0
    out += 1
    start = at
    while at < size and (line[at] == 32 or line[at] == 9):
        at += 1
    if at < size and (line[at] != 35 or at == start):  # a comment stands apart
        return -1
    return out


cdef bint _suspect(const uint8_t *wire, int size, set_):
    """May this name be a public suffix? `set_` holds those that are, and *.name for those all of whose children are."""
    cdef int after = wire[0] + 1
    if wire[after] == 0:
        return True
    if PyBytes_FromStringAndSize(<const char *>wire, size) in set_:
        return True
    return b"\1*" + PyBytes_FromStringAndSize(<const char *>wire + after, size - after) in set_


def scan(bytes data, int end, suspects):
    """The twin of `lists.scan`."""
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), at = 0, stop, used = 0, room
    cdef const uint8_t *found
    cdef uint8_t wire[MAX_NAME + 1]
    cdef int length, sign = 0
    cdef uint32_t number = 0
    cdef Py_ssize_t count = 0
    lines = data.count(bytes([end])) + 1
    room = size + 2 * lines  # a name's wire form is two octets longer than its text
    names = bytearray(room)
    starts, numbers, signs = array("I", bytes(4 * lines)), array("I", bytes(4 * lines)), bytearray(lines)
    cdef uint8_t[::1] names_ = names
    cdef uint32_t[::1] starts_ = starts
    cdef uint32_t[::1] numbers_ = numbers
    cdef uint8_t[::1] signs_ = signs
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
            if used + length > room:  # cannot be, by the remark above
                raise OverflowError("a list grows as it is read")
            memcpy(&names_[used], wire, length)
            starts_[count] = <uint32_t>used
            numbers_[count] = number
            signs_[count] = <uint8_t>sign
            used += length
            count += 1
        at = stop + 1
    del names_, starts_, numbers_, signs_
    return bytes(memoryview(names)[:used]), starts[:count], numbers[:count], bytes(memoryview(signs)[:count]), odd


# ── hashes in order ──────────────────────────────────────────────────────────────────────────────────────────────────────


cdef uint64_t *_sorted(uint64_t *keys, uint64_t *spare, Py_ssize_t count) noexcept nogil:
    """Keys in the order of their upper 32 bits, equal ones as they were: a radix sort. One of the two arrays."""
    cdef Py_ssize_t bucket[2048]
    cdef Py_ssize_t i, sum_, held
    cdef int shift
    cdef uint64_t *other
    for shift in range(32, 64, 11):
        memset(bucket, 0, sizeof(bucket))
        for i in range(count):
            bucket[keys[i] >> shift & 2047] += 1
        sum_ = 0
        for i in range(2048):
            held = bucket[i]
            bucket[i] = sum_
            sum_ += held
        for i in range(count):
            spare[bucket[keys[i] >> shift & 2047]] = keys[i]
            bucket[keys[i] >> shift & 2047] += 1
        other = keys
        keys = spare
        spare = other
    return keys


# ── policy.sort_out ──────────────────────────────────────────────────────────────────────────────────────────────────────


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
    uint8_t signs  # 1 a suffix, 2 an exact name among them
    uint8_t state  # 0 alone, 1 plain, 2 mixed, 3 above a mixed one, 4 both
    uint32_t best  # the row with the lowest source and line


cdef inline const uint8_t *_name(Part *parts, uint16_t *part, Py_ssize_t row) noexcept nogil:
    cdef Part *p = &parts[part[row]]
    return p.names + p.starts[row - p.before]


cdef inline int _length(const uint8_t *name) noexcept nogil:
    cdef int at = 0
    while name[at]:
        at += 1 + name[at]
    return at + 1


cdef inline Py_ssize_t _leader(
    const uint8_t *name, int length, uint64_t *order, uint32_t *first, int shift, Py_ssize_t rows, uint32_t *leader,
    Part *parts, uint16_t *part,
) noexcept nogil:
    """The first row with this name, -1 without one."""
    cdef uint32_t hash_ = embargo_crc(name, length)
    cdef Py_ssize_t i = first[hash_ >> shift]
    cdef Py_ssize_t row
    while i < rows and <uint32_t>(order[i] >> 32) <= hash_:
        row = <uint32_t>order[i]
        if <uint32_t>(order[i] >> 32) == hash_ and leader[row] == <uint32_t>row:
            if memcmp(_name(parts, part, row), name, length) == 0:
                return row
        i += 1
    return -1


def sort_out(list given):
    """The twin of `policy.sort_out`."""
    cdef Py_ssize_t rows = 0, i, j, g, h, above, emitted = 0, used = 0, octets = 0, count = len(given)
    cdef Part *parts = NULL
    cdef uint64_t *keys = NULL
    cdef uint64_t *spare = NULL
    cdef uint64_t *order
    cdef uint32_t *leader = NULL
    cdef uint32_t *first = NULL
    cdef uint16_t *part = NULL
    cdef Group *groups = NULL
    cdef const uint8_t[::1] view
    cdef const uint32_t[::1] words
    cdef const uint8_t *name
    cdef int length, shift, at, bits = 1
    cdef bint mixed
    cdef bytearray blob, exact
    cdef uint8_t[::1] blob_, exact_
    cdef uint32_t[::1] starts_, lines_
    cdef uint16_t[::1] sources_
    for each in given:
        rows += len(each[1])
        octets += len(each[0])
    if rows >= 1 << 31 or count >= 1 << 16:
        raise OverflowError("too many entries")
    while bits < 24 and 1 << bits < rows:
        bits += 1
    shift = 32 - bits
    try:
        parts = <Part *>malloc(sizeof(Part) * (count + 1))
        keys = <uint64_t *>malloc(sizeof(uint64_t) * (rows + 1))
        spare = <uint64_t *>malloc(sizeof(uint64_t) * (rows + 1))
        leader = <uint32_t *>malloc(sizeof(uint32_t) * (rows + 1))
        part = <uint16_t *>malloc(sizeof(uint16_t) * (rows + 1))
        groups = <Group *>malloc(sizeof(Group) * (rows + 1))
        first = <uint32_t *>malloc(sizeof(uint32_t) * ((1 << bits) + 1))
        if not (parts and keys and spare and leader and part and groups and first):
            raise MemoryError
        g = 0
        for i in range(count):
            names_, starts, lines, signs, uniform, source, odd = given[i]
            parts[i].rows = len(starts)
            parts[i].before = g
            parts[i].uniform, parts[i].source, parts[i].odd = uniform, source, odd
            if not parts[i].rows:
                continue
            view = names_
            parts[i].names = &view[0]
            view = signs
            parts[i].signs = &view[0]
            words = starts
            parts[i].starts = &words[0]
            words = lines
            parts[i].lines = &words[0]
            for j in range(parts[i].rows):
                part[g] = <uint16_t>i
                name = _name(parts, part, g)
                keys[g] = <uint64_t>embargo_crc(name, _length(name)) << 32 | <uint64_t>g
                g += 1
        order = _sorted(keys, spare, rows)
        _begin(order, rows, first, shift, 1 << bits)
        _group(order, rows, leader, groups, parts, part)
        # which names need Python: several kinds of line claim them, or an exception stands above
        mixed = False
        for g in range(rows):
            if leader[g] != <uint32_t>g:
                continue
            name = _name(parts, part, g)
            length = _length(name)
            groups[g].state |= 1 if groups[g].uniform and groups[g].signs != 3 else 2
            at = 1 + name[0]
            while name[at]:
                above = _leader(name + at, length - at, order, first, shift, rows, leader, parts, part)
                if above >= 0:
                    if groups[above].uniform != groups[g].uniform or groups[g].signs != 1 or not groups[g].uniform:
                        groups[g].state = groups[g].state & ~1 | 2
                        break
                at += 1 + name[at]
            if groups[g].state & 2:
                mixed = True
                at = 1 + name[0]
                while name[at]:
                    above = _leader(name + at, length - at, order, first, shift, rows, leader, parts, part)
                    if above >= 0:
                        groups[above].state |= 4
                    at += 1 + name[at]
        # plain names
        blob, exact = bytearray(octets), bytearray(rows)
        starts, lines, sources = array("I", bytes(4 * rows)), array("I", bytes(4 * rows)), array("H", bytes(2 * rows))
        blob_, exact_, starts_, lines_, sources_ = blob, exact, starts, lines, sources
        for g in range(rows):
            if leader[g] != <uint32_t>g or not groups[g].state & 1:
                continue
            h = groups[g].best
            name = _name(parts, part, g)
            length = _length(name)
            memcpy(&blob_[used], name, length)
            starts_[emitted] = <uint32_t>used
            lines_[emitted] = parts[part[h]].lines[h - parts[part[h]].before]
            sources_[emitted] = <uint16_t>parts[part[h]].source
            exact_[emitted] = groups[g].signs == 2
            used += length
            emitted += 1
        del blob_, exact_, starts_, lines_, sources_
        del blob[used:], exact[emitted:]
        plain = bytes(blob), starts[:emitted], lines[:emitted], sources[:emitted], bytes(exact)
        # the others, with all the lines that speak of them
        names, found = [], {}
        if mixed:
            for g in range(rows):
                h = leader[g]
                if groups[h].state & 6:
                    name = _name(parts, part, g)
                    key = PyBytes_FromStringAndSize(<const char *>name, _length(name))
                    if h == g and groups[h].state & 2:
                        names.append(key)
                    found.setdefault(key, []).append((part[g], g - parts[part[g]].before))
        return plain, names, found
    finally:
        free(parts)
        free(keys)
        free(spare)
        free(leader)
        free(part)
        free(groups)
        free(first)


cdef void _begin(uint64_t *order, Py_ssize_t rows, uint32_t *first, int shift, Py_ssize_t buckets) noexcept nogil:
    """Where in `order` the hashes of each bucket begin."""
    cdef Py_ssize_t i = 0, bucket
    for bucket in range(buckets + 1):
        while i < rows and <Py_ssize_t>(order[i] >> 32 >> shift) < bucket:
            i += 1
        first[bucket] = <uint32_t>i


cdef void _group(
    uint64_t *order, Py_ssize_t rows, uint32_t *leader, Group *groups, Part *parts, uint16_t *part
) noexcept nogil:
    """Find the first row of each name, and what its rows have in common."""
    cdef Py_ssize_t i = 0, j, k, row, other
    cdef Part *p
    cdef Part *q
    cdef Group *group
    cdef uint32_t uniform
    cdef uint8_t sign
    cdef const uint8_t *name
    cdef int length
    while i < rows:
        j = i
        while j < rows and order[j] >> 32 == order[i] >> 32:
            row = <uint32_t>order[j]
            name = _name(parts, part, row)
            length = _length(name)
            leader[row] = <uint32_t>row
            for k in range(i, j):
                other = <uint32_t>order[k]
                if leader[other] == <uint32_t>other and memcmp(_name(parts, part, other), name, length) == 0:
                    leader[row] = <uint32_t>other
                    break
            p = &parts[part[row]]
            sign = p.signs[row - p.before]
            uniform = 0 if sign == 2 or p.odd else p.uniform
            sign = 2 if sign == 1 else 1
            group = &groups[leader[row]]
            if leader[row] == <uint32_t>row:
                group.uniform, group.signs, group.state, group.best = uniform, sign, 0, <uint32_t>row
            else:
                if uniform != group.uniform:
                    group.uniform = 0
                group.signs |= sign
                q = &parts[part[group.best]]
                if p.source < q.source or (
                    p.source == q.source and p.lines[row - p.before] < q.lines[group.best - q.before]
                ):
                    group.best = <uint32_t>row
            j += 1
        i = j


# ── image.table ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def table(bytes blob, starts, lines, sources, kinds, uint64_t homes):
    """The twin of `image.table`."""
    cdef Py_ssize_t count = len(starts), i, slot, last = -1, home
    cdef const uint8_t *names = <const uint8_t *>PyBytes_AS_STRING(blob)
    cdef uint64_t *keys = NULL
    cdef uint64_t *spare = NULL
    cdef uint64_t *order
    cdef const uint32_t[::1] starts_ = starts
    cdef const uint32_t[::1] lines_ = lines
    cdef const uint16_t[::1] sources_ = sources
    cdef const uint8_t[::1] kinds_ = kinds
    cdef uint32_t *words
    cdef uint32_t hash_
    cdef bytes slots
    try:
        keys = <uint64_t *>malloc(sizeof(uint64_t) * (count + 1))
        spare = <uint64_t *>malloc(sizeof(uint64_t) * (count + 1))
        if not (keys and spare):
            raise MemoryError
        for i in range(count):
            keys[i] = <uint64_t>embargo_crc(names + starts_[i], _length(names + starts_[i])) << 32 | <uint64_t>i
        order = _sorted(keys, spare, count)
        for i in range(count):
            home = <Py_ssize_t>((order[i] >> 32) * homes >> 32)
            last = home if home > last else last + 1
        last = last + 2 if last + 2 > <Py_ssize_t>homes else <Py_ssize_t>homes  # the last slot is free
        slots = PyBytes_FromStringAndSize(NULL, 16 * last)
        words = <uint32_t *>PyBytes_AS_STRING(slots)
        memset(words, 0, 16 * last)
        slot = -1
        for i in range(count):
            hash_ = <uint32_t>(order[i] >> 32)
            home = <Py_ssize_t>(<uint64_t>hash_ * homes >> 32)
            slot = home if home > slot else slot + 1
            words[4 * slot] = hash_
            words[4 * slot + 1] = starts_[<uint32_t>order[i]] + 1
            words[4 * slot + 2] = lines_[<uint32_t>order[i]]
            words[4 * slot + 3] = sources_[<uint32_t>order[i]] | <uint32_t>kinds_[<uint32_t>order[i]] << 16
        return slots
    finally:
        free(keys)
        free(spare)
