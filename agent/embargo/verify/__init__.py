"""`embargo verify`: proves enforcement of the running agent with real packets. Not imported by the daemon."""
