"""The pauses in force, kept in a file so that they survive a restart, each ending by itself.

While the agent runs, a pause lasts as long as was asked for, whatever becomes of the clock; over a restart it ends at its
time, and never later than its length from then on.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from embargo import events
from embargo.daemon.host import whole
from embargo.daemon.supervise.generations import Generation
from embargo.lists import pauses
from embargo.lists.pauses import Pause

FILE = "pauses.json"

log = logging.getLogger(__name__)


class Pauses:
    """`clock`: seconds that go on evenly, such as a loop's."""

    def __init__(self, directory: str, clock: Callable[[], float]) -> None:
        self._path = f"{directory}/{FILE}"
        self._clock = clock
        self._ends: dict[Pause, float] = {}

    def recall(self) -> list[Pause]:
        """Take up what an earlier run has left; those whose time was over meanwhile. ValueError when the file is damaged: then
        nothing is paused.
        """
        try:
            with open(self._path, "rb") as file:
                found = [_checked(row) for row in json.load(file)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self._path}: {error}; nothing is paused any more") from None
        now = time.time()
        for each in [each for each in found if each.until > now][: pauses.MOST]:
            self._ends[each] = self._clock() + min(each.until - now, each.seconds)
        over = [each for each in found if each.until <= now]
        if over:
            with contextlib.suppress(OSError):  # then they are told again after the next start
                self._save()
        return over

    @property
    def all(self) -> list[Pause]:
        return list(self._ends)

    def over(self) -> list[Pause]:
        """Those whose time has come."""
        return [each for each, end in self._ends.items() if end <= self._clock()]

    def next_end(self) -> float | None:
        """By the clock."""
        return min(self._ends.values(), default=None)

    def change(self, *, begin: Pause | None = None, end: list[Pause] | None = None) -> Callable[[], None]:
        """Begin one, in the place of one of the same, or end some; what undoes it. OSError when a new one cannot be kept.

        An end is an end also where the disk is full: what stands in the file is over at its time whoever reads it.
        """
        before = dict(self._ends)

        def undo() -> None:
            self._ends = before
            with contextlib.suppress(OSError):
                self._save()

        gone = set(end or ())
        self._ends = {
            each: at for each, at in before.items() if each not in gone and (begin is None or each.what != begin.what)
        }
        if begin is not None:
            self._ends[begin] = self._clock() + begin.seconds
        try:
            self._save()
        except OSError as error:
            if begin is not None:
                self._ends = before
                raise
            log.warning("%s: %s; pauses that were ended early come back with a restart", self._path, error.strerror)
        return undo

    def _save(self) -> None:
        whole.replace({self._path: json.dumps(self.all).encode()}, 0o640)

    def on(self, generation: Generation) -> Generation:
        """The same generation as it is judged by while these are in force."""
        image = generation.image
        board, exempt = pauses.apply(self._ends, image.classes, generation.compiled_board)
        return dataclasses.replace(generation, board=board, exempt=exempt)


def _checked(row: Any) -> Pause:
    """ValueError or TypeError when it is none."""
    app, client, until, seconds, uid = row
    if client:
        pauses.client(client)
    if not (isinstance(app, str) and 0 < seconds <= pauses.LONGEST):
        raise ValueError(f"{row!r} is no pause")
    return Pause(app, client, float(until), float(seconds), int(uid))


def told_of(pause: Pause) -> dict[str, Any]:
    """What an event says of it."""
    told: dict[str, Any] = {"entry": pause.app or "everything"}
    if pause.client:
        told["client"] = pause.client
    return told | {"uid": pause.uid, "until": events.timestamp(pause.until)}
