"""The resolvers, from the guardian's side: they tell what was answered, and are asked whether that is all.

Answers are gathered before they are told, and every resolver has a channel of its own. So what one has answered may come
after what another has looked up, although it was first.
"""

import asyncio
import os
from collections.abc import Callable

from embargo.daemon.process.channel import Channel, ChannelError
from embargo.daemon.process.sightings import Flush, Flushed
from embargo.errors import FirewallError

MESSAGES_AT_ONCE = 16  # of one resolver before others have their turn
REPORT_SECONDS = 0.3  # for all to report what they have answered; one that is stopped must not hold up the others for longer
#: octets of one message: the addresses of an answer, 64 KiB at most, in JSON. A larger one than a packet comes in memory
MAX_REPORT = 512 << 10


class Informants:
    """`take` is called with each record of a resolver. It raises ValueError for one that no resolver can have sent."""

    def __init__(self, take: Callable[[Channel, object], None], trouble: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._trouble = trouble
        self._channels: list[Channel] = []
        self._number = 0
        self._untold: dict[int, set[Channel]] = {}  # who has not told all yet, and
        self._then: dict[int, Callable[[], None]] = {}  # what waits for them

    def meet(self, channel: Channel) -> None:
        channel.setblocking(False)
        self._channels.append(channel)
        self._loop.add_reader(channel.fileno(), self._hear, channel)

    def when_all_is_told(self, then: Callable[[], None]) -> None:
        """Call this when all that was answered before is told: a round trip to every resolver, or REPORT_SECONDS."""
        number = self._number = self._number + 1
        asked = set()
        for channel in self._channels:
            try:
                channel.send(Flush(number))
            except OSError:  # it does not read, or is gone
                continue
            asked.add(channel)
        self._untold[number], self._then[number] = asked, then
        if asked:
            self._loop.call_later(REPORT_SECONDS, self._go_on, number)
        else:
            self._go_on(number)

    def _told(self, channel: Channel, number: int) -> None:
        untold = self._untold.get(number)
        if untold is not None:
            untold.discard(channel)
            if not untold:
                self._go_on(number)

    def _go_on(self, number: int) -> None:
        self._untold.pop(number, None)
        then = self._then.pop(number, None)
        if then is None:
            return
        try:
            then()
        except FirewallError as error:
            self._trouble(str(error))

    def _hear(self, channel: Channel) -> None:
        """Take what a resolver says, some of it at once."""
        for _ in range(MESSAGES_AT_ONCE):
            try:
                received = channel.receive(MAX_REPORT)
            except BlockingIOError:
                return
            except (OSError, ChannelError) as error:
                self._dismiss(channel, str(error))
                return
            if received is None:
                self._dismiss(channel)
                return
            for fd in received.fds:
                os.close(fd)
            if isinstance(received.record, Flushed):
                self._told(channel, received.record.number)
                continue
            try:
                self._take(channel, received.record)
            except FirewallError as error:
                self._trouble(str(error))
            except (OSError, ValueError) as error:
                self._dismiss(channel, f"{type(error).__name__}: {error}")
                return

    def _dismiss(self, channel: Channel, why: str = "") -> None:
        """It is gone, or says what is no message and is not listened to any more."""
        if why:
            self._trouble(f"a resolver said what is no message and is not listened to any more: {why}")
        self._loop.remove_reader(channel.fileno())
        self._channels.remove(channel)
        channel.close()
        for number in list(self._untold):
            self._told(channel, number)
