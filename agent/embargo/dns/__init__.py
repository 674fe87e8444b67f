"""DNS without I/O: messages, the cache, upstream selection, and the decision about each query."""
