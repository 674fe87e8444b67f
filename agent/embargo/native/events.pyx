# cython: language_level=3
"""The twin of `events.Kind`: an attempt counted."""


cdef class Kind:
    """The twin of `events.Kind`."""

    def __init__(self, client, key, str members, double opened, str network, bint wide):
        self.client, self.key, self.members, self.opened, self.network, self.wide = client, key, members, opened, network, wide
        self.count, self.first, self.last = 0, 0.0, 0.0

    cpdef void again(self, double wall):
        if not self.count:
            self.first = wall
        self.count += 1
        self.last = wall
