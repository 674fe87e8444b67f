cdef class Kind:
    cdef public str members
    cdef public double opened, first, last
    cdef public long long count
    cdef public bint open

    cpdef void again(self, double wall)
