"""Policy without I/O: list text to entries, entries to an immutable image, and pauses."""
