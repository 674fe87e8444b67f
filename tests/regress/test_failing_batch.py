"""What failed while queries were taken ended the event loop, and the worker with it: one packet, again after each restart."""

import asyncio
from typing import Any, cast

import pytest

from embargo.daemon.resolve.intake import Intake
from embargo.daemon.resolve.selector import Selector
from embargo.daemon.resolve.stream import Streams


class Broken:
    def __init__(self) -> None:
        self.turns = 0

    def wait(self, *_: object) -> bool:
        self.turns += 1
        if self.turns == 1:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return True


def test_what_fails_while_queries_are_taken_is_told_and_the_loop_goes_on() -> None:
    selector, broken = Selector(), Broken()
    told: list[dict[str, Any]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        streams = Streams(lambda _: True, lambda _: None)
        selector.listen([], streams, cast(Intake, broken), lambda _: pytest.fail("nothing was taken"))
        await asyncio.sleep(0.01)
        selector.leave()
        streams.close()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(run())
    assert broken.turns > 1
    (context,) = told
    assert isinstance(context["exception"], UnicodeDecodeError)
