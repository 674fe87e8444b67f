"""The resolvers, from the guardian's side: they report what names were answered with, and are asked whether that is all.

A resolver gathers answers before it reports them, on a channel of its own. So an answer can be reported after another
resolver's look-up that came later. Before addresses are blocked, all resolvers are asked to report what they have gathered. One
such round runs at a time, and what comes meanwhile waits for the next one: a flood of reports must not become one of rounds.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from embargo.daemon.process.answered import PACKET_OCTETS
from embargo.daemon.process.backlog import Backlog
from embargo.daemon.process.channel import Channel, ChannelError
from embargo.daemon.process.sightings import Flush, Flushed
from embargo.errors import FirewallError

MESSAGES_AT_ONCE = 16  # of one resolver before others have their turn
FLUSH_SECONDS = 0.3  # for all to report what they have gathered; one that is stopped must not hold up a block for longer
MAX_UNSENT = 1 << 16  # octets of answers for a resolver that does not read for a moment

Item = TypeVar("Item")


@dataclass
class _Round(Generic[Item]):
    """A request to all resolvers to report."""

    items: list[Item]  # what is decided when they have
    asked: set[Channel] = field(default_factory=set)  # resolvers that have not answered yet


class Resolvers(Generic[Item]):
    """`take` is called with each record of a resolver, and raises ValueError for one that no resolver can have sent.

    `decide` is called with the items for which all resolvers have reported; `trouble` reports a failure. A resolver that sends
    what is no record is disconnected; so is one that is gone. `counters`: where answers are counted that could not be sent.
    """

    def __init__(
        self, take: Callable[[Channel, Any], None], decide: Callable[[list[Item]], None], trouble: Callable[[str], None],
        counters: Counter[str],
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._decide = decide
        self._trouble = trouble
        self._counters = counters
        self._backlogs: dict[Channel, Backlog] = {}
        self._number = 0  # of the last round
        self._round: _Round[Item] | None = None  # the one that runs
        self._next: list[Item] = []

    def meet(self, channel: Channel) -> None:
        """Take the records of the resolver at the other end of this channel."""
        channel.setblocking(False)
        self._backlogs[channel] = Backlog(channel, MAX_UNSENT)
        self._loop.add_reader(channel.fileno(), self._readable, channel)

    def send(self, channel: Channel, record: object) -> bool:
        """Send a record to a resolver, when it reads. False when it is lost, which is counted."""
        backlog = self._backlogs.get(channel)
        if backlog is not None and backlog.send(record):
            return True
        self._counters["unanswered"] += 1
        return False

    def when_all_have_reported(self, item: Item) -> None:
        """Decide about this when every resolver has reported what it gathered until now, or after FLUSH_SECONDS."""
        self._next.append(item)
        if self._round is None:
            self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._round, self._next = _Round(self._next), []
        self._round.asked = {channel for channel in self._backlogs if self.send(channel, Flush(self._number))}
        if self._round.asked:
            self._loop.call_later(FLUSH_SECONDS, self._end, self._number)
        else:
            self._end(self._number)

    def _reported(self, channel: Channel, number: int) -> None:
        if self._round is not None and number == self._number:
            self._round.asked.discard(channel)
            if not self._round.asked:
                self._end(number)

    def _end(self, number: int) -> None:
        if self._round is None or number != self._number:
            return
        items, self._round = self._round.items, None
        try:
            self._decide(items)
        except FirewallError as error:
            self._trouble(str(error))
        if self._next:
            self._begin()

    def _readable(self, channel: Channel) -> None:
        """Take the records that a resolver has sent, some of them at once."""
        octets = 0
        for _ in range(MESSAGES_AT_ONCE):
            try:
                received = channel.receive()
            except BlockingIOError:
                return
            except (OSError, ChannelError) as error:
                self._disconnect(channel, str(error))
                return
            if received is None:
                self._disconnect(channel)
                return
            record = received.record
            if isinstance(record, Flushed):
                self._reported(channel, record.number)
                continue
            try:
                self._take(channel, record)
            except FirewallError as error:
                self._trouble(str(error))
            except (OSError, ValueError) as error:
                self._disconnect(channel, f"{type(error).__name__}: {error}")
                return
            octets += len(record.packed)
            if octets >= PACKET_OCTETS:
                return  # others have their turn; what follows is still there

    def _disconnect(self, channel: Channel, why: str = "") -> None:
        """Listen to this resolver no more. `why`: what it did wrong; empty for one that is gone."""
        if why:
            self._trouble(f"a resolver sent what is no message and is disconnected: {why}")
        self._loop.remove_reader(channel.fileno())
        self._backlogs.pop(channel).close()
        channel.close()
        self._reported(channel, self._number)
