"""Records on the channel between a resolver and the guardian.

A resolver may be compromised: the guardian accepts only these records, and closes a channel on which anything else arrives.
Packed addresses are encoded by `answered.pack`; an answer repeats the number of its question.
"""

from dataclasses import dataclass

from embargo.daemon.process.channel import Answered
from embargo.lists.policy import Class


@dataclass(frozen=True, slots=True)
class Leads:
    """A blocked name leads to these addresses; it was blocked by this line of this list, for this class."""

    packed: bytes
    class_: Class
    list: str
    line: int
    rule: str


@dataclass(frozen=True, slots=True)
class Free:
    """An unblocked name was answered with blocked addresses: free them, then send Ready. The client's reply waits for it."""

    number: int
    packed: bytes


@dataclass(frozen=True, slots=True)
class Pass:
    """Accept packets to these addresses of an allowed name ahead of the block sets, each for its seconds, then send Ready."""

    number: int
    addresses: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class Flushed:
    """All addresses answered before Flush was received have been sent."""

    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The guardian has carried out Free or Pass."""

    number: int


@dataclass(frozen=True, slots=True)
class Flush:
    """The guardian is about to block an address: send all answered addresses that are still queued, then Flushed."""

    number: int


TO_GUARDIAN = (Answered, Leads, Free, Pass, Flushed)
TO_RESOLVER = (Ready, Flush)
