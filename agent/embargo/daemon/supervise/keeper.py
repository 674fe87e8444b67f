"""Keeps a child process running: starts it again whenever it ends, after pauses that grow while it keeps failing."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from embargo.daemon.process.child import Child, ChildError
from embargo.records import Done, Order

FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0  # seconds before a child that ended is started again; doubled each time in a row
PROVEN = 30.0  # seconds of life after which an end counts as the first again

log = logging.getLogger(__name__)


class Keeper:
    """`begin` starts the child and gives it everything that it needs (ChildError or OSError when that fails); `ended` is called
    with the exit status of each end that was not asked for.
    """

    def __init__(
        self, child: Child, begin: Callable[[], Awaitable[None]], ended: Callable[[int], None] = lambda status: None
    ) -> None:
        self.child = child
        self._begin = begin
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._stopping = self._renewing = False
        self.restarts = 0

    async def start(self) -> None:
        """Start the child for the first time. ChildError or OSError when that fails: then it is not kept."""
        await self._begin()
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"keeper of {self.child.name}")

    async def _keep(self) -> None:
        loop, pause, began = asyncio.get_running_loop(), FIRST_PAUSE, True
        while True:
            started = loop.time()
            status = await self.child.wait()
            if self._stopping:
                return
            if self._renewing:
                self._renewing = False
            else:
                pause = FIRST_PAUSE if loop.time() - started > PROVEN else pause
                self.restarts += 1
                if began:
                    log.error("%s ended with status %d and is started again in %.1f s", self.child.name, status, pause)
                    self._ended(status)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE)
            if self._stopping:
                return
            began = await self._restart()

    async def _restart(self) -> bool:
        try:
            await self._begin()
        except (ChildError, OSError) as error:
            log.error("%s does not start: %s", self.child.name, error)
            self.child.kill()
            return False
        return True

    async def renew(self, order: Order[Done]) -> None:
        """End the child by this order, so that it is started again at once."""
        self._renewing = True
        await self.child.stop(order)

    def release(self) -> None:
        """Do not start the child again."""
        self._stopping = True

    async def stop(self, order: Order[Done]) -> bool:
        """End the child by this order, for good. Whether it carried the order out."""
        self.release()
        done = await self.child.stop(order)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        return done
