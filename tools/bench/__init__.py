"""Embargo beside other filtering resolvers: the same names, the same queries, one run. See docs/performance.md."""
