"""Keeps a child process running: restarts it when it ends, after a delay that doubles while it keeps failing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from embargo.daemon.process.child import Child, ChildError
from embargo.records import Done, Order

FIRST_DELAY, LAST_DELAY = 0.1, 10.0  # seconds before a restart; doubled for each failure in a row
PROVEN_SECONDS = 30.0  # of running after which a failure counts as the first again

log = logging.getLogger(__name__)


class Keeper:
    """`begin` starts the child and gives it all that it needs, or raises ChildError or OSError. `on_failure` is called with the
    exit status when the child ends without having been ordered to.
    """

    def __init__(
        self, child: Child, begin: Callable[[], Awaitable[None]], on_failure: Callable[[int], None] = lambda status: None
    ) -> None:
        self.child = child
        self._begin = begin
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._stopping = self._renewing = False
        self.restarts = 0

    async def start(self) -> None:
        """Start the child. If this first start fails, ChildError or OSError, and it is not retried."""
        await self._begin()
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"keeper of {self.child.name}")

    async def _keep(self) -> None:
        loop, delay, began = asyncio.get_running_loop(), FIRST_DELAY, True
        while True:
            started = loop.time()
            status = await self.child.wait()
            if self._stopping:
                return
            if self._renewing:
                self._renewing = False
            else:
                delay = FIRST_DELAY if loop.time() - started > PROVEN_SECONDS else delay
                self.restarts += 1
                if began:
                    log.error("%s ended with status %d; restarting it in %.1f s", self.child.name, status, delay)
                    self._on_failure(status)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_DELAY)
            if self._stopping:
                return
            began = await self._restart()

    async def _restart(self) -> bool:
        try:
            await self._begin()
        except (ChildError, OSError) as error:
            log.error("%s cannot be restarted: %s", self.child.name, error)
            self.child.kill()
            return False
        except Exception:  # a fault of this program: without a keeper the child would never come back
            log.critical("%s cannot be restarted", self.child.name, exc_info=True)
            self.child.kill()
            return False
        return True

    async def renew(self, order: Order[Done]) -> None:
        """Order the child to end, and restart it without delay."""
        self._renewing = True
        await self.child.stop(order)

    def release(self) -> None:
        """Stop restarting the child."""
        self._stopping = True

    async def stop(self, order: Order[Done]) -> bool:
        """Order the child to end, for good. Returns whether it carried the order out."""
        self.release()
        done = await self.child.stop(order)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        return done
