"""Embargo: the agent that makes named apps stop on a network."""

__version__ = "0.1.0"
