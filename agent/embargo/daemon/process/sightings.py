"""What a resolver and the guardian say to each other over the channel between them.

A resolver may be taken over: the guardian accepts these records and no others, and gives up a channel that brings anything
else. Packed addresses are `answered.pack`'s; numbers tie an answer to its question.
"""

from dataclasses import dataclass

from embargo.daemon.process.channel import Answered
from embargo.lists.policy import Class


@dataclass(frozen=True, slots=True)
class Leads:
    """A blocked name leads to these addresses, by the decision of this class, list and line."""

    packed: bytes
    class_: Class
    list: str
    line: int
    rule: str


@dataclass(frozen=True, slots=True)
class Free:
    """An unblocked name was answered with blocked addresses: free them, then say Ready. The reply waits for it."""

    number: int
    packed: bytes


@dataclass(frozen=True, slots=True)
class Pass:
    """Let these addresses of an allowed name go ahead of the block sets, each for so many seconds, then say Ready."""

    number: int
    addresses: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Flushed:
    """Everything that was answered before Flush has been sent."""

    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The guardian has done what Free or Pass asked for."""

    number: int


@dataclass(frozen=True, slots=True)
class Flush:
    """The guardian is about to block an address: send every answer that is still held back, then say Flushed."""

    number: int


TO_GUARDIAN = (Answered, Leads, Free, Pass, Flushed)
TO_RESOLVER = (Ready, Flush)
