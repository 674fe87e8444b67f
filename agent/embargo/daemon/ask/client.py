"""Client of the control socket. It imports few modules, so that a verb of the command line starts fast."""

import json
import socket
from typing import Any

from embargo import records
from embargo.daemon.ask.orders import Refusal
from embargo.errors import EmbargoError
from embargo.records import Answer, Order, RecordError

ANSWER_SECONDS = 300.0  # a reload of millions of names takes minutes on a small machine


class ControlError(EmbargoError):
    """The socket cannot be used, or the answer cannot be decoded."""


class NotRunning(ControlError):
    """No agent listens on the socket."""


class RequestRefused(ControlError):
    """The agent answered with a Refusal. `usage`: the request itself is wrong, so the exit status is that of a usage error."""

    def __init__(self, refusal: Refusal) -> None:
        self.usage = bool(refusal.usage)
        super().__init__(refusal.error)


def ask(path: str, request: Order[Answer], seconds: float = ANSWER_SECONDS) -> Answer:
    """Send one request to a running agent and return its answer. NotRunning, RequestRefused, ControlError."""
    verb: str = request.verb  # type: ignore[attr-defined] # every request of ask.orders has one
    value = exchange(path, {"verb": verb, **records.encode(request)}, seconds)
    kind = records.answer_of(type(request)) if value.get("ok") or "error" not in value else Refusal
    try:
        answer: Any = records.decode(kind, value)
    except RecordError as error:
        raise ControlError(f"the running agent has another version; restart it, or use its own `embargo`: {error}") from None
    if isinstance(answer, Refusal):
        raise RequestRefused(answer)
    return answer  # type: ignore[no-any-return] # answer_of gave its type


def exchange(path: str, request: dict[str, Any], seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """Send one line of JSON to the socket at `path` and return the line of the answer, decoded. NotRunning, ControlError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no agent is running ({path}); start it (make run, or systemctl start embargo)") from None
        except PermissionError:
            raise ControlError(f"{path}: permission denied; ask root to add you to the socket's group") from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
    try:
        answer = records.from_json(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ControlError("the agent closed the connection without an answer")
    return answer
