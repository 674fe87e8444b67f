"""The command line: a client of the control socket. Nothing else prints."""
