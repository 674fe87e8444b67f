# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The twin of `fastpath.Shortcut`: the reply to a query from its octets, and the event of a block."""

import math

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from embargo.native.folding cimport FOLDED_BY, OTHER, put_kind, put_other
from embargo.native.message cimport payload_of, question_end, whole_opt
from embargo.native.octets cimport lower, put, put_number, put_text, read16, write16, write32

from embargo.dns import fastpath
from embargo.dns.judgement import Attempt
from embargo.dns.message import CUT_QTYPES, META_QTYPES, type_name
from embargo.dns.special import ENDINGS

cdef enum:
    MAX_UDP = 1232  # octets: `message.MAX_UDP`
    MAX_REPLY = 1280  # octets; the largest has 1232
    MAX_EVENT = 2048  # octets of an event's members; a longer one is Python's to write
    MAX_EXPLAINED = 390  # octets of EDE text; a longer one is Python's to cut
    MEMO_HALF = 8192  # as in `fastpath`
    BLOCK = 2  # of `policy.Action`

cdef enum:  # kinds of slot: see `image`
    SUFFIX = 1
    EXACT = 2

cdef enum:  # values of an event that the query and the entry give; any other one is the same for all blocks by a list
    QNAME = -1
    QTYPE = -2
    LINE = -3
    RULE = -4

_BY_QUERY = {"qname": QNAME, "qtype": QTYPE, "line": LINE, "rule": RULE}

cdef tuple _SPECIAL = ENDINGS
cdef frozenset _META = META_QTYPES | CUT_QTYPES
cdef uint8_t _SPELT[256]  # octets that a name's text has as they are
memset(_SPELT, 0, 256)
for _octet in bytearray(b"abcdefghijklmnopqrstuvwxyz0123456789-_*/"):
    _SPELT[_octet] = 1


cdef class Known:
    """The twin of `fastpath.Known`. TTLs are aged as the reply is written, so a cached answer is known until it expires."""

    def __dealloc__(self):
        free(self.ttls)

    cdef Py_ssize_t write(self, uint8_t *out, uint32_t ident, double now) noexcept:  # it copies octets: nothing to raise
        """The reply behind its ID; the octets written."""
        cdef Py_ssize_t length = PyBytes_GET_SIZE(self.rest), turned
        cdef const char *rest = PyBytes_AS_STRING(self.rest)
        cdef uint32_t age
        cdef int i
        memcpy(out, rest, length)
        if self.turn_count:
            turned = ident % self.turn_count * self.turn_size
            memcpy(out + self.turn_at, rest + self.turn_at + turned, self.turn_count * self.turn_size - turned)
            memcpy(out + self.turn_at + self.turn_count * self.turn_size - turned, rest + self.turn_at, turned)
        age = <uint32_t>(now - self.stored) if self.count else 0
        for i in range(self.count):
            write32(out + self.ttls[i].at, self.ttls[i].seconds - age if self.ttls[i].seconds > age else 0)
        return length

    def reply(self, bytes ident, double now):
        """The twin of `fastpath.Known.reply`."""
        cdef uint8_t out[MAX_REPLY]
        cdef Py_ssize_t length = self.write(out, read16(<const uint8_t *>PyBytes_AS_STRING(ident)), now)
        return ident + PyBytes_FromStringAndSize(<const char *>out, length)


cdef Known _cached_reply(bytes rest, Py_ssize_t before, entry, double until, bint cut):
    """A reply with the TTLs of an entry, whose answer begins behind `before` octets of it unless that is cut."""
    cdef Known known = Known.__new__(Known)
    known.rest, known.entry, known.until, known.stored, known.cut = rest, entry, until, entry.stored, cut
    ttls = () if cut else entry.answer.ttls
    known.ttls = <Ttl *>calloc(len(ttls) + 1, sizeof(Ttl))
    if not known.ttls:
        raise MemoryError
    for offset, seconds in ttls:
        if before + offset + 4 > PyBytes_GET_SIZE(rest):
            raise ValueError("a TTL stands outside its answer")
        known.ttls[known.count].at, known.ttls[known.count].seconds = before + offset, seconds
        known.count += 1
    turning = entry.turning
    if turning is not None and not cut:
        start, size, count = turning
        if before + start + size * count > PyBytes_GET_SIZE(rest):
            raise ValueError("an address stands outside its answer")
        known.turn_at, known.turn_size, known.turn_count = before + start, size, count
    return known


cdef Py_ssize_t _name_text(uint8_t *out, const uint8_t *name) noexcept nogil:
    """Octets of a name in presentation format, when it is the same octets in a JSON string; 0 for another name."""
    cdef uint8_t *begin = out
    cdef int i, length
    while name[0]:
        length = name[0]
        for i in range(1, length + 1):
            if not _SPELT[name[i]]:
                return 0
            out[i - 1] = name[i]
        out[length] = c"."
        out += length + 1
        name += length + 1
    return max(out - begin - 1, <Py_ssize_t>0)


cdef bint _read_query(Query *query, const uint8_t *packet, Py_ssize_t size, bint udp) noexcept nogil:
    """Take a plain query apart; False for a packet that the engine has to look at."""
    cdef Py_ssize_t end = question_end(packet, size), i
    # response, opcode, AA and TC in the first flags octet, RA, Z and rcode in the second: all zero in a plain query
    if not end or packet[2] & 0xFE or packet[3] & 0xCF:
        return False
    query.packet, query.end, query.length, query.qtype = packet, end, end - 16, read16(packet + end - 4)
    query.rd, query.cd = packet[2] & 1, packet[3] & 0x10
    query.udp, query.udp_limit, query.variant = udp, 512, 0
    if memcmp(packet + 4, b"\0\1\0\0\0\0\0\1", 8) == 0:
        if not whole_opt(packet + end, size - end) or packet[end + 5]:  # nor an extended rcode
            return False
        query.udp_limit = payload_of(packet + end)
        query.variant = 6 if packet[end + 7] & 0x80 else 3
    elif end != size or memcmp(packet + 4, b"\0\1\0\0\0\0\0\0", 8) != 0:
        return False
    query.limit = query.udp_limit if udp else MAX_UDP  # the engine sends larger ones over TCP
    for i in range(query.length):
        query.name[i] = lower(packet[12 + i])
    return True


cdef class Shortcut:
    """The twin of `fastpath.Shortcut`. `names`: whether events have the qname."""

    def __cinit__(self, rules, cache, bint names=True):
        self._rules, self._cache, self._finder = rules, cache, rules.image.finder
        self._judged, self._young, self._old, self._types, self.hits = rules.judged, {}, {}, {}, 0
        self.names, self._kept = names, []
        self._prepare(rules.parts())

    def __dealloc__(self):
        free(self._sources)
        free(self._actions)
        free(self._canary)
        free(self._keys)
        free(self._values)
        free(self._constants)

    @cython.boundscheck(True)  # what Python hands over is not taken on trust, and this runs once a judgement
    cdef int _prepare(self, parts) except -1:
        """Lay out what blocks are made from, so that one costs no Python object."""
        cdef Py_ssize_t i
        self._source_count, self.classes = len(parts.explained), len(parts.actions)
        self._sources = <Source *>calloc(self._source_count + 1, sizeof(Source))
        self._actions = <uint8_t *>calloc(self.classes + 1, 1)
        self._canary = <uint8_t *>calloc(self.classes + 1, 1)
        if not (self._sources and self._actions and self._canary):
            raise MemoryError
        for i in range(self._source_count):
            self._sources[i].class_ = parts.classes[i]
            self._sources[i].explained = self._keep(parts.explained[i].encode())
        for i in range(self.classes):
            self._actions[i], self._canary[i] = parts.actions[i], i in parts.canary
        for i in range(4):
            octet, counts, counts_edns, tail = parts.pieces[i]
            self._pieces[i].octet = octet
            memcpy(self._pieces[i].counts[0], <const char *>counts, 8)
            memcpy(self._pieces[i].counts[1], <const char *>counts_edns, 8)
            self._pieces[i].length = len(tail) if len(tail) <= 256 else -1
            if len(tail) <= 256:
                memcpy(self._pieces[i].tail, <const char *>tail, len(tail))
        return self._prepare_keys([key for key in parts.keys if self.names or key != "qname"], parts.constants)

    @cython.boundscheck(True)
    cdef int _prepare_keys(self, keys, constants) except -1:
        """Where the value of each key of an event comes from, and the values that are the same for all blocks by a list."""
        cdef Py_ssize_t i
        cdef Text value
        columns = [key for key in keys if key not in _BY_QUERY]
        self._key_count, self._columns = len(keys), len(columns)
        self._keys = <Text *>calloc(len(keys) + 1, sizeof(Text))
        self._values = <int *>calloc(len(keys) + 1, sizeof(int))
        self._constants = <Text *>calloc(self._source_count * self._columns + 1, sizeof(Text))
        if not (self._keys and self._values and self._constants):
            raise MemoryError
        for i, key in enumerate(keys):
            self._keys[i] = self._keep(f',"{key}":'.encode())
            self._keys_length += self._keys[i].length
            self._values[i] = columns.index(key) if key in columns else _BY_QUERY[key]
        for i in range(self._source_count):
            for column, key in enumerate(columns):
                value = self._keep(constants[i][key].encode())
                self._constants[i * self._columns + <Py_ssize_t>column] = value
                self._sources[i].constant_octets += value.length
        return 0

    cdef Text _keep(self, bytes octets):
        cdef Text text
        self._kept.append(octets)
        text.octets, text.length = PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets)
        return text

    def answer(self, bytes packet, str client, double now, *, bint udp=True):
        """The twin of `fastpath.Shortcut.answer`."""
        if not self._rules.acl.allows(client):
            return None
        return self.known(<const uint8_t *>PyBytes_AS_STRING(packet), PyBytes_GET_SIZE(packet), now, udp)

    cdef Known known(self, const uint8_t *packet, Py_ssize_t size, double now, bint udp):
        """The reply to a packet of a client that is allowed."""
        cdef bytes key
        cdef PyObject *found
        cdef Known known
        if size < 17:
            return None
        key = PyBytes_FromStringAndSize(<const char *>packet + 2, size - 2)
        found = PyDict_GetItem(self._young, key)
        if found == NULL:
            found = PyDict_GetItem(self._old, key)
            if found != NULL:
                self._young[key] = <object>found
        if found != NULL:
            known = <Known>found
            if known.entry is None:
                return known
            if now < known.until and (udp or not known.cut):
                known.entry.used = True
                self.hits += 1
                return known
        return self._first(packet, size, now, udp, key)

    cdef Known _first(self, const uint8_t *packet, Py_ssize_t size, double now, bint udp, bytes key):
        """The reply to a packet that is not remembered."""
        cdef Query query
        cdef Known known
        if not _read_query(&query, packet, size, udp):
            return None
        known = self._cached(&query, now)
        if known is None:
            known = self._blocked(&query)
        if known is None:
            return None
        # options may differ every time (RFC 7873), and a reply over TCP may be too large for UDP
        if (not query.variant or size == query.end + 11) and 2 + PyBytes_GET_SIZE(known.rest) <= query.udp_limit:
            if len(self._young) >= MEMO_HALF:
                self._old, self._young = self._young, {}
            self._young[key] = known
        return known

    cdef Known _cached(self, const Query *query, double now):
        cdef uint8_t key[260]
        cdef uint8_t head[10]
        cdef uint8_t *out = put(key, query.name, query.length)
        cdef int flags
        cdef bint cut
        write16(out, query.qtype)
        out[2] = (query.variant == 6) << 1 | (query.cd != 0)
        entry = self._cache.get(PyBytes_FromStringAndSize(<const char *>key, query.length + 3), now)
        if entry is None:
            return None
        if entry.judged != self._judged:
            name = PyBytes_FromStringAndSize(<const char *>query.name, query.length)
            if not fastpath.passes(entry, name, self._rules):
                return self._leading(query, name, entry, now)
        stored = entry.answer
        an, ns, ar = stored.counts
        flags, tail = stored.flags, stored.body
        cut = query.end + <Py_ssize_t>len(tail) + (11 if query.variant else 0) > query.limit
        if cut and not query.udp:
            return None
        if cut:
            an, ns, ar, tail = 0, 0, 0, b""  # half an answer is worse than a retry over TCP
            flags |= 0x200
        if query.variant:
            tail += fastpath.OPTS[query.variant]
            ar += 1
        if query.variant != 6 and not query.packet[3] & 0x20:  # AD is for who asked for it, by that bit or by DO
            flags &= ~0x20
        write16(head, flags | 0x8080 | query.rd << 8 | query.cd | <int>stored.rcode)
        write16(head + 2, 1)
        write16(head + 4, an)
        write16(head + 6, ns)
        write16(head + 8, ar)
        self.hits += 1
        question = PyBytes_FromStringAndSize(<const char *>query.packet + 12, query.end - 12)
        rest = PyBytes_FromStringAndSize(<const char *>head, 10) + question + tail
        return _cached_reply(rest, query.end - 2, entry, entry.known_until(now), cut)

    cdef Known _blocked(self, const Query *query):
        cdef Py_ssize_t found = self._finder.search(query.name, query.length)
        cdef const uint32_t *slot
        cdef uint32_t source, kind
        cdef Known known
        if found < 0:
            return None
        slot = &self._finder.slots[4 * (found >> 8)]
        source, kind = slot[3] & 0xFFFF, slot[3] >> 16
        if kind == EXACT and found & 255:  # a name below an exact one
            return None
        if PyBytes_FromStringAndSize(<const char *>query.name, query.length).endswith(_SPECIAL):
            return None
        if not query.qtype or query.qtype in _META:
            return None
        if (kind == SUFFIX or kind == EXACT) and source < <uint32_t>self._source_count:
            if self._sources[source].class_ >= self.classes or self._actions[self._sources[source].class_] != BLOCK:
                return None
            known = self._plain(query, found & 255, slot)
            if known is not None:
                return known
        return self._elaborate(query)

    cdef Known _plain(self, const Query *query, Py_ssize_t start, const uint32_t *slot):
        """The block of a name that one line claims, without a Python object; None when there is something unusual."""
        cdef Source *source = &self._sources[slot[3] & 0xFFFF]
        cdef uint8_t rule[260]
        cdef uint8_t rest[MAX_REPLY]
        cdef uint8_t kind[270]
        cdef uint8_t other[OTHER]
        cdef Py_ssize_t ruled, length, exact = slot[3] >> 16 == EXACT
        cdef Piece *piece = &self._pieces[
            0 if self._canary[source.class_] else 1 if query.qtype == 1 else 2 if query.qtype == 28 else 3
        ]
        cdef Known known
        rule[0] = c"="
        ruled = _name_text(rule + exact, query.name + start)
        if not ruled:
            return None
        ruled += exact
        length = _block(rest, query, piece, source, slot[2], rule, ruled)
        if not length:
            return None
        known = Known.__new__(Known)
        known.members = self._event(query, slot[3] & 0xFFFF, slot[2], rule, ruled)
        if known.members is None:
            return None
        known.rest, known.until, known.class_ = PyBytes_FromStringAndSize(<const char *>rest, length), math.inf, source.class_
        length = put_kind(kind, query.name, query.length, query.qtype, source.class_, self._judged)
        put_other(other, source.class_, self._judged, slot[3] & 0xFFFF, slot[2])
        self._fold(known, PyBytes_FromStringAndSize(<const char *>kind, length), PyBytes_FromStringAndSize(<const char *>other, OTHER))
        return known

    cdef int _fold(self, Known known, bytes kind, bytes other) except -1:
        """What the attempts of a reply are counted by."""
        known.kind, known.other = kind, other
        known.key = kind if self.names else kind[PyBytes_GET_SIZE(kind) - FOLDED_BY :]
        return 0

    cdef bytes _event(self, const Query *query, Py_ssize_t source, uint32_t line, const uint8_t *rule, Py_ssize_t ruled):
        """The members of a block's event, as `judgement.Attempt.members` writes them; None for one that is Python's to write."""
        cdef uint8_t qname[260]
        cdef uint8_t text[MAX_EVENT]
        cdef uint8_t *out = text
        cdef Py_ssize_t named = _name_text(qname, query.name), i
        cdef Text qtype = self._type(query.qtype)
        cdef Text *value
        cdef Py_ssize_t length = self._keys_length + self._sources[source].constant_octets + named + qtype.length + ruled
        if not named or length + 20 > MAX_EVENT:  # quotes, and the digits of the line
            return None
        for i in range(self._key_count):
            out = put(out, self._keys[i].octets, self._keys[i].length)
            if self._values[i] == QNAME:
                out = put_text(out, qname, named)
            elif self._values[i] == QTYPE:
                out = put_text(out, qtype.octets, qtype.length)
            elif self._values[i] == LINE:
                out = put_number(out, line)
            elif self._values[i] == RULE:
                out = put_text(out, rule, ruled)
            else:
                value = &self._constants[source * self._columns + self._values[i]]
                out = put(out, value.octets, value.length)
        return PyBytes_FromStringAndSize(<const char *>text, out - text)

    cdef Text _type(self, uint32_t qtype):
        cdef Text text
        mnemonic = self._types.get(qtype)
        if mnemonic is None:
            mnemonic = self._types[qtype] = type_name(qtype).encode()
        text.octets, text.length = PyBytes_AS_STRING(mnemonic), PyBytes_GET_SIZE(mnemonic)
        return text

    cdef Known _elaborate(self, const Query *query):
        """The block of any other name, by the Python functions of the judgement."""
        name = PyBytes_FromStringAndSize(<const char *>query.name, query.length)
        action, decision = self._rules.board.choose(self._rules.image.lookup(name))
        return self._by(decision, query, name, "") if action == BLOCK and decision is not None else None

    cdef Known _leading(self, const Query *query, bytes name, entry, double now):
        """The block of a name whose cached answer leads to something blocked, if the engine has found out."""
        cdef Known known
        verdict = fastpath.blocking(entry, self._rules)
        known = self._by(verdict.decision, query, name, verdict.lead) if verdict is not None else None
        if known is not None:
            known.entry, known.until = entry, entry.known_until(now)
            self.hits += 1
        return known

    cdef Known _by(self, decision, const Query *query, bytes name, str lead):
        """The block by a decision. `lead`: what of an answer it is about; empty: the name."""
        cdef Known known
        rules = self._rules
        octet, counts, counts_edns, tail = rules.pieces(decision, query.qtype)
        if query.variant:
            counts = counts_edns
            ede = rules.ede(decision)
            tail += fastpath.OPTS[query.variant][:9] + len(ede).to_bytes(2, "big") + ede
        if query.end + <Py_ssize_t>len(tail) > query.limit:
            return None
        known = Known.__new__(Known)
        question = PyBytes_FromStringAndSize(<const char *>query.packet + 12, query.end - 12)
        known.rest, known.until = bytes((0x80 | query.rd, octet | query.cd)) + counts + question + tail, math.inf
        attempt = Attempt(rules, name, query.qtype, decision, rules.action_name(decision), answer=lead)
        self._fold(known, attempt.kind, attempt.other)
        known.class_, known.key = decision.class_, attempt.kind if self.names else attempt.nameless
        known.members = attempt.members(names=self.names).encode()
        return known


cdef Py_ssize_t _block(
    uint8_t *rest, const Query *query, const Piece *piece, const Source *source, uint32_t line, const uint8_t *rule,
    Py_ssize_t ruled,
) noexcept nogil:  # fmt: skip
    """Write the reply to a blocked query behind its ID; its octets, 0 for one that Python has to make."""
    cdef uint8_t *out
    cdef uint8_t *option
    cdef Py_ssize_t explained = source.explained.length + 10 + 6 + ruled
    if piece.length < 0 or explained > MAX_EXPLAINED or query.end + piece.length + 11 + 6 + explained > query.limit:
        return 0
    rest[0], rest[1] = 0x80 | query.rd, piece.octet | query.cd
    memcpy(rest + 2, piece.counts[query.variant != 0], 8)
    out = put(rest + 10, query.packet + 12, query.end - 12)
    out = put(out, piece.tail, piece.length)
    if query.variant:
        out = put(out, b"\0\0\x29\x04\xd0\0\0\x80\0" if query.variant == 6 else b"\0\0\x29\x04\xd0\0\0\0\0", 9)
        option = out + 2  # behind the length of all options
        out = put(option, b"\0\x0f\0\0\0\x0f", 6)  # option EDE, its length, code 15
        out = put(out, source.explained.octets, source.explained.length)
        out = put_number(out, line)
        out = put(out, b" rule=", 6)
        out = put(out, rule, ruled)
        write16(option - 2, <uint32_t>(out - option))
        write16(option + 2, <uint32_t>(out - option - 4))
    return out - rest
