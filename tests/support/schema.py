"""What every event line must be by the schema."""

import json
from typing import Any

from embargo import events

TYPES = {"text": str, "number": int, "flag": bool, "list": list}


def check(event: dict[str, Any]) -> None:
    """Whether an event has keys of the schema alone, each with a value of its type."""
    fields = {field.key: field for field in events.FIELDS if field.belongs_to(event["event"])}
    for key, value in event.items():
        assert key in fields, f"{event['event']} events have no key {key}: {event}"
        assert type(value) is TYPES[fields[key].type], event
        assert fields[key].type != "flag" or value or key == "ok", f"{key} is there when it is true alone"
        assert fields[key].type != "list" or all(type(each) is str for each in event[key]), event


def read(line: bytes | str) -> dict[str, Any]:
    """A line of the log as an event that follows the schema, the order of its keys included."""
    event: dict[str, Any] = json.loads(line)
    check(event)
    assert list(event) == [key for key in events.keys(event["event"]) if key in event]
    return event
