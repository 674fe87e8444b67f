"""Records for a channel that may be full: what it does not take is sent, in order, as soon as the other side reads again."""

import asyncio
from collections import deque

from embargo.daemon.process import channel
from embargo.daemon.process.channel import Channel


class Backlog:
    """Sends records of a packet each on a channel. `most`: octets that may wait; records beyond them are refused."""

    def __init__(self, to: Channel, most: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = to
        self._most = most
        self._packets: deque[bytes] = deque()
        self.octets = 0  # that wait

    def send(self, record: object) -> bool:
        """Send a record, now or later. False: it is lost, since too much waits or the other side is gone."""
        packet = channel.encode(record)
        if not self._packets and self._sent(packet):
            return True
        if self.octets + len(packet) > self._most:
            return False
        if not self._packets:
            self._loop.add_writer(self._channel.fileno(), self._flush)
        self._packets.append(packet)
        self.octets += len(packet)
        return True

    def _sent(self, packet: bytes) -> bool:
        """Whether the channel took a packet. One for a process that is gone is done with: its reader sees the end."""
        try:
            self._channel.send_packet(packet)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _flush(self) -> None:
        while self._packets and self._sent(self._packets[0]):
            self.octets -= len(self._packets.popleft())
        if not self._packets:
            self._loop.remove_writer(self._channel.fileno())

    def close(self) -> None:
        """Send nothing more. Called before the channel is closed."""
        if self._packets:
            self._loop.remove_writer(self._channel.fileno())
            self._packets.clear()
