"""The control socket and the metrics: how people and programs ask a running agent."""
