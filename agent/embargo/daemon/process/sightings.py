"""Records on the channel between a resolver and the guardian.

A resolver may be compromised: the guardian accepts only these records, and closes a channel on which anything else arrives. It
looks up in the policy whatever it is asked to block or let pass, so a record has names and addresses and no reasons. These are
encoded by `answered.pack`; an answer repeats the number of its question.
"""

from dataclasses import dataclass

from embargo.daemon.process.channel import Answered, Packed


@dataclass(frozen=True, slots=True)
class Leads(Packed):
    """Blocked or audited names lead to these addresses."""

    TAG = b"L"

    packed: bytes


@dataclass(frozen=True, slots=True)
class Free(Packed):
    """An unblocked name was answered with blocked addresses: free them, then send Ready. The client's reply waits for it."""

    TAG = b"F"

    number: int
    packed: bytes


@dataclass(frozen=True, slots=True)
class Pass(Packed):
    """Accept packets to these addresses of an allow-listed name ahead of the block sets, then send Ready."""

    TAG = b"P"

    number: int
    packed: bytes


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
