from libc.stdint cimport uint8_t, uint16_t, uint32_t

from embargo.native.image cimport Finder
from embargo.native.octets cimport Text


cdef struct Ttl:
    uint16_t at  # in `rest`
    uint32_t seconds


cdef class Known:
    cdef readonly double until
    cdef readonly object entry
    cdef readonly bytes kind  # of a blocked packet: what its attempt is folded by
    cdef readonly bytes other  # and beyond a client's share of the log: see `judgement.Attempt`
    cdef readonly bytes key  # `kind`, without the qname if that stays out of the log
    cdef readonly bytes members  # of its event, behind the client
    cdef readonly Py_ssize_t class_
    cdef bytes rest
    cdef readonly bint cut  # it has TC in place of the answer, for UDP alone
    cdef double stored
    cdef int count
    cdef Ttl *ttls
    cdef Py_ssize_t turn_at, turn_size, turn_count  # addresses in `rest`; a count of 0: there are not several

    cdef Py_ssize_t write(self, uint8_t *out, uint32_t ident, double now) noexcept


cdef struct Query:
    const uint8_t *packet
    Py_ssize_t end  # of the question
    uint8_t name[256]  # in lower case
    Py_ssize_t length  # of the name
    uint32_t qtype
    int variant  # 0 without EDNS, 3 with it, 6 with DO
    bint udp
    Py_ssize_t udp_limit  # octets of a reply over UDP
    Py_ssize_t limit  # octets of the reply
    int rd
    int cd


cdef struct Piece:  # of a block's reply: see `judgement.Pieces`
    uint8_t octet
    uint8_t counts[2][8]
    uint8_t tail[256]
    Py_ssize_t length  # of the tail; -1 for one that is too long for here


cdef struct Source:  # a list, as the blocks by it explain themselves
    uint16_t class_
    Text explained  # app=… function=… list=…:
    Py_ssize_t constant_octets  # of all values below that are the list's


cdef class Shortcut:
    cdef object _rules, _cache
    cdef Finder _finder
    cdef dict _young, _old, _types
    cdef long _judged
    cdef readonly long hits
    cdef readonly bint names  # whether events have the qname
    cdef list _kept  # what the pointers below point into
    cdef Source *_sources
    cdef Py_ssize_t _source_count
    cdef uint8_t *_actions  # by class: 2 blocks
    cdef readonly Py_ssize_t classes
    cdef Piece _pieces[4]  # canary, A, AAAA, other types
    cdef uint8_t *_canary  # by class
    cdef Text *_keys  # of an event: ,"key":
    cdef int *_values  # by key: whose value it is, or which column of `_constants`
    cdef int _key_count, _columns
    cdef Py_ssize_t _keys_length  # octets of all keys
    cdef Text *_constants  # values by source and column

    cdef int _prepare(self, parts) except -1
    cdef int _prepare_keys(self, keys, constants) except -1
    cdef Text _keep(self, bytes octets)
    cdef Known known(self, const uint8_t *packet, Py_ssize_t size, double now, bint udp)
    cdef Known _first(self, const uint8_t *packet, Py_ssize_t size, double now, bint udp, bytes key)
    cdef Known _cached(self, const Query *query, double now)
    cdef Known _blocked(self, const Query *query)
    cdef Known _plain(self, const Query *query, Py_ssize_t start, const uint32_t *slot)
    cdef bytes _event(self, const Query *query, Py_ssize_t source, uint32_t line, const uint8_t *rule, Py_ssize_t ruled)
    cdef int _fold(self, Known known, bytes kind, bytes other) except -1
    cdef Text _type(self, uint32_t qtype)
    cdef Known _elaborate(self, const Query *query)
    cdef Known _leading(self, const Query *query, bytes name, entry, double now)
    cdef Known _by(self, decision, const Query *query, bytes name, str lead)
