"""Logs: the event log on disk, and messages to systemd's journal."""
