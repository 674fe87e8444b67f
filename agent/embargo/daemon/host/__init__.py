"""This machine: interfaces, resolvers, listening sockets, watched files, files replaced whole."""
