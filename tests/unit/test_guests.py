"""Connections of the control socket and the metrics: of too many, those that ask nothing give way."""

import asyncio
import contextlib
from typing import cast

from embargo.daemon.ask.guests import Guests


class Writer:
    """What a StreamWriter is to `Guests`."""

    def __init__(self) -> None:
        self.transport = self
        self.closed = False

    def abort(self) -> None:
        self.closed = True


def test_the_connection_that_was_awaited_for_longest_gives_way() -> None:
    guests = Guests(2)
    with contextlib.ExitStack() as stack:
        first, second, third, fourth = (Writer() for _ in range(4))

        def enter(writer: Writer) -> bool:
            return stack.enter_context(guests.enter(cast(asyncio.StreamWriter, writer)))

        assert enter(first)
        assert enter(second)
        assert guests.asked(cast(asyncio.StreamWriter, first))
        assert enter(third)
        assert (first.closed, second.closed, third.closed) == (False, True, False)
        assert not guests.asked(cast(asyncio.StreamWriter, second))
        assert guests.asked(cast(asyncio.StreamWriter, third))
        assert not enter(fourth), "both are answered at the moment"
        assert not first.closed
    with guests.enter(cast(asyncio.StreamWriter, Writer())) as served:
        assert served
