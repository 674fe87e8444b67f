"""The pauses in force, stored in a file so that they survive a restart.

While the agent runs, a pause lasts for its duration, measured by the monotonic clock. After a restart it ends at its stored end
time, but at the latest one full duration after the restart, in case the system clock was set back.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from embargo import events, records
from embargo.daemon.host import whole
from embargo.daemon.supervise.generations import Generation
from embargo.lists import pauses
from embargo.lists.pauses import Pause

FILE = "pauses.json"

log = logging.getLogger(__name__)


class Pauses:
    """`clock`: a monotonic time in seconds, such as that of the event loop."""

    def __init__(self, directory: str, clock: Callable[[], float]) -> None:
        self._path = f"{directory}/{FILE}"
        self._clock = clock
        self._ends: dict[Pause, float] = {}

    def load(self) -> list[Pause]:
        """Read the pauses of the last run; returns those that have expired meanwhile. ValueError if the file is damaged: then
        nothing is paused.
        """
        try:
            with open(self._path, "rb") as file:
                stored = [_checked(row) for row in records.from_json(file.read())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self._path} cannot be used: {error}; all pauses have ended") from None
        now = time.time()
        for pause in [pause for pause in stored if pause.until > now][: pauses.MOST]:
            self._ends[pause] = self._clock() + min(pause.until - now, pause.seconds)
        expired = [pause for pause in stored if pause.until <= now]
        if expired:
            with contextlib.suppress(OSError):  # then the next start reports them once more
                self._save()
        return expired

    @property
    def all(self) -> list[Pause]:
        """The pauses in force."""
        return list(self._ends)

    def expired(self) -> list[Pause]:
        """The pauses in force whose end has come."""
        return [pause for pause, end in self._ends.items() if end <= self._clock()]

    def next_end(self) -> float | None:
        """When the next pause ends, by the clock; None without pauses."""
        return min(self._ends.values(), default=None)

    def change(self, *, begin: Pause | None = None, end: list[Pause] | None = None) -> Callable[[], None]:
        """Begin a pause, replacing one of the same app and client, or end some. Returns the undo. OSError if `begin` cannot be
        stored.

        Ending pauses succeeds even if the file cannot be written: the stored end times still apply.
        """
        before = dict(self._ends)

        def undo() -> None:
            self._ends = before
            with contextlib.suppress(OSError):
                self._save()

        ended = set(end or ())
        self._ends = {
            pause: at for pause, at in before.items() if pause not in ended and (begin is None or pause.what != begin.what)
        }
        if begin is not None:
            self._ends[begin] = self._clock() + begin.seconds
        try:
            self._save()
        except OSError as error:
            if begin is not None:
                self._ends = before
                raise
            log.warning("%s: %s; after a restart, pauses that were ended early are in force again", self._path, error.strerror)
        return undo

    def _save(self) -> None:
        whole.replace({self._path: json.dumps(self.all).encode()}, 0o640)

    def applied_to(self, generation: Generation) -> Generation:
        """The same generation with the switchboards that follow from the pauses in force."""
        image = generation.image
        board, exempt = pauses.apply(self._ends, image.classes, generation.compiled_board)
        return dataclasses.replace(generation, board=board, exempt=exempt)


def _checked(row: Any) -> Pause:
    """The pause stored in a row of the file. ValueError or TypeError if it is none."""
    app, client, until, seconds, uid = row
    if client:
        pauses.client(client)
    if not (isinstance(app, str) and 0 < seconds <= pauses.LONGEST):
        raise ValueError(f"{row!r} is not a pause")
    return Pause(app, client, float(until), float(seconds), int(uid))


def event_members(pause: Pause) -> dict[str, Any]:
    """The members of an event that describe a pause."""
    members: dict[str, Any] = {"entry": pause.app or "everything"}
    if pause.client:
        members["client"] = pause.client
    return members | {"uid": pause.uid, "until": events.timestamp(pause.until)}
