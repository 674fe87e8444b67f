"""The resolvers, from the guardian's side: they report what names were answered with, and are asked whether that is all.

A resolver gathers answers before it reports them, on a channel of its own. So an answer can be reported after another
resolver's look-up that came later. Before an address is blocked, all resolvers are asked to report what they have gathered.
"""

import asyncio
import os
from collections.abc import Callable

from embargo.daemon.process.channel import Channel, ChannelError
from embargo.daemon.process.sightings import Flush, Flushed, Pass
from embargo.errors import FirewallError

MANY_ADDRESSES = 64  # of one record, after which others have their turn
MESSAGES_AT_ONCE = 16  # of one resolver before others have their turn
FLUSH_SECONDS = 0.3  # for all to report what they have gathered; one that is stopped must not hold up a block for longer
#: octets of one message: the addresses of an answer, 64 KiB at most, in JSON. A larger one than a packet comes in memory
MAX_REPORT = 512 << 10


class Resolvers:
    """`take` is called with each record of a resolver, and raises ValueError for one that no resolver can have sent.

    `trouble` reports a failure. A resolver that sends what is no record is disconnected; so is one that is gone.
    """

    def __init__(self, take: Callable[[Channel, object], None], trouble: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._trouble = trouble
        self._channels: list[Channel] = []
        self._number = 0  # of the last request to report
        self._waiting: dict[int, tuple[set[Channel], Callable[[], None]]] = {}  # by number: who has to report, and what then

    def meet(self, channel: Channel) -> None:
        """Take the records of the resolver at the other end of this channel."""
        channel.setblocking(False)
        self._channels.append(channel)
        self._loop.add_reader(channel.fileno(), self._readable, channel)

    def when_all_have_reported(self, then: Callable[[], None]) -> None:
        """Call `then` when every resolver has reported what it gathered until now, or after FLUSH_SECONDS."""
        number = self._number = self._number + 1
        asked = set()
        for channel in self._channels:
            try:
                channel.send(Flush(number))
            except OSError:  # it does not read, or is gone
                continue
            asked.add(channel)
        self._waiting[number] = asked, then
        if asked:
            self._loop.call_later(FLUSH_SECONDS, self._go_on, number)
        else:
            self._go_on(number)

    def _reported(self, channel: Channel, number: int) -> None:
        asked, _ = self._waiting.get(number, (None, None))
        if asked is not None:
            asked.discard(channel)
            if not asked:
                self._go_on(number)

    def _go_on(self, number: int) -> None:
        _, then = self._waiting.pop(number, (None, None))
        if then is None:
            return
        try:
            then()
        except FirewallError as error:
            self._trouble(str(error))

    def _readable(self, channel: Channel) -> None:
        """Take the records that a resolver has sent, some of them at once."""
        for _ in range(MESSAGES_AT_ONCE):
            try:
                received = channel.receive(MAX_REPORT)
            except BlockingIOError:
                return
            except (OSError, ChannelError) as error:
                self._disconnect(channel, str(error))
                return
            if received is None:
                self._disconnect(channel)
                return
            for fd in received.fds:
                os.close(fd)
            if isinstance(received.record, Flushed):
                self._reported(channel, received.record.number)
                continue
            try:
                self._take(channel, received.record)
            except FirewallError as error:
                self._trouble(str(error))
            except (OSError, ValueError) as error:
                self._disconnect(channel, f"{type(error).__name__}: {error}")
                return
            if isinstance(received.record, Pass) and len(received.record.addresses) > MANY_ADDRESSES:
                return  # others have their turn; what follows is still there

    def _disconnect(self, channel: Channel, why: str = "") -> None:
        """Listen to this resolver no more. `why`: what it did wrong; empty for one that is gone."""
        if why:
            self._trouble(f"a resolver sent what is no message and is disconnected: {why}")
        self._loop.remove_reader(channel.fileno())
        self._channels.remove(channel)
        channel.close()
        for number in list(self._waiting):
            self._reported(channel, number)
