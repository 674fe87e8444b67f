"""The shell: processes, sockets, files and clocks around the decisions of the core."""
