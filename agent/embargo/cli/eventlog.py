"""The event log as `log` and `top` read it: all rotated files, lines to come, filters and counts.

The agent renames events.jsonl to events.jsonl.1, that to .2 and so on (`daemon.log.journal`), so the highest number is oldest.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click

from embargo import events
from embargo.daemon.ask.client import ControlError
from embargo.events import Event

REFRESH = 2.0  # seconds between two tables of `top`
POLL = 0.2  # seconds between two looks for new lines
CHUNK = 1 << 20  # octets read at once
STAMP = "%Y-%m-%dT%H:%M:%S"  # the part of an event's time that is compared, as text


class Reader:
    """The event log at `path`. `passed_over`: how many lines so far were no events; what ends in one ends no reader."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.passed_over = 0

    def events(self, *, follow: bool) -> Iterator[tuple[str, Event]]:
        """(line, event) of each event, oldest first. `follow`: wait for new ones, without end."""
        for line in lines(self._path, follow=follow):
            try:
                event = events.parse(line)
            except ValueError:
                self.passed_over += 1
                continue
            yield line if line.isascii() and line.isprintable() else events.to_json(event), event

    def select(
        self, since: str, *, follow: bool, app: str, client: str, layer: str | None
    ) -> Iterator[tuple[str, Event]]:  # fmt: skip
        """(line, event) for each event that passes the filters, oldest first. `follow`: wait for new ones, without end."""
        start = earliest(since) if since else ""
        shown = {"dns", "drop"} if layer is None else {layer}
        unfiltered = layer is None and not app and not client  # then other events, such as reloads, are shown too
        for line, event in self.events(follow=follow):
            if (
                (event["event"] in shown or unfiltered)
                and app in ("", event.get("app"))
                and client in ("", event.get("client"))
                and event.get("ts", "") >= start
            ):
                yield line, event

    def counts(self, since: str, *, repeat: bool) -> Iterator[dict[str, Counter[str]]]:
        """The attempts since a time, counted; with `repeat` again every REFRESH seconds, without end."""
        while True:
            self.passed_over = 0
            yield self.count(earliest(since))
            if not repeat:
                return
            time.sleep(REFRESH)

    def count(self, start: str) -> dict[str, Counter[str]]:
        """Attempts by app and function, by client, by name and by address."""
        found: dict[str, Counter[str]] = {kind: Counter() for kind in ("apps", "clients", "names", "addresses")}
        for _, event in self.events(follow=False):
            if event["event"] in ("dns", "drop") and "app" in event and event.get("ts", "") >= start:
                times = event.get("count", 1)
                found["apps"][f"{event['app']}/{event.get('function', '-')}"] += times
                for kind, key in (("clients", "client"), ("names", "qname"), ("addresses", "dst")):
                    if key in event:
                        found[kind][event[key]] += times
        return found


def earliest(text: str) -> str:
    """The first timestamp to show: `10m` ago, or a time in ISO 8601. click.BadParameter if it is neither."""
    if found := re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        seconds = timedelta(**{unit: int(found[1])}).total_seconds()
        return datetime.fromtimestamp(max(time.time() - seconds, 0), UTC).strftime(STAMP)
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime(STAMP)
    except (ValueError, OverflowError):
        raise click.BadParameter(f'"{text}" is not a time; write 10m, 2h, 1d or 2026-01-31T12:00:00Z') from None


def lines(path: str, *, follow: bool) -> Iterator[str]:
    """The lines of the rotated files, oldest first, then of the log itself; with `follow` also those to come."""
    number = 1
    while os.path.exists(f"{path}.{number}"):
        number += 1
    try:
        for old in range(number - 1, 0, -1):
            yield from _file(f"{path}.{old}", follow=False)
        yield from _file(path, follow=follow)
        while follow:  # the file was rotated: new lines are in a new file of the same name
            yield from _file(path, follow=True)
    except PermissionError as error:
        hint = "run this as root, or as the agent's user (embargo with the package)"
        raise ControlError(f"{error.filename}: {error.strerror}; {hint}") from None
    except FileNotFoundError as error:
        raise ControlError(f"{error.filename}: {error.strerror}; no agent has run with this [log] events") from None
    except OSError as error:
        raise ControlError(f"{error.filename}: {error.strerror}") from None


def _file(path: str, *, follow: bool) -> Iterator[str]:
    """The complete lines of a file; with `follow` also those to come, until another file has its name."""
    with open(path, "rb") as opened:
        pending = b""
        while True:
            replaced = follow and os.stat(path).st_ino != os.fstat(opened.fileno()).st_ino
            while chunk := opened.read(CHUNK):
                *whole, pending = (pending + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if replaced or not follow:
                return
            time.sleep(POLL)
