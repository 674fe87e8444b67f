cdef class Kind:
    cdef public str members, network
    cdef public object client, key
    cdef public double opened, first, last
    cdef public long long count
    cdef public bint wide

    cpdef void again(self, double wall)
