"""What is kept: the event log on disk, messages to the journal."""
