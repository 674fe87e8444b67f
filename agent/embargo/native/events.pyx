# cython: language_level=3
"""The twin of `events.Kind`: an attempt counted."""


cdef class Kind:
    """The twin of `events.Kind`."""

    def __init__(self, str members, double opened):
        self.members, self.opened, self.open = members, opened, True
        self.count, self.first, self.last = 0, 0.0, 0.0

    cpdef void again(self, double wall):
        if not self.count:
            self.first = wall
        self.count += 1
        self.last = wall
