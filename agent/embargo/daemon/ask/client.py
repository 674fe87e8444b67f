"""The asking side of the control socket. It imports little: a verb of the command line is to start fast."""

import json
import socket
from typing import Any

from embargo import records
from embargo.daemon.ask.orders import Refusal
from embargo.errors import EmbargoError
from embargo.records import Answer, Order, RecordError

SECONDS = 300.0  # for an answer: a reload of millions of names takes minutes on a small machine


class ControlError(EmbargoError):
    """The agent cannot be asked, or does not answer as this program understands it."""


class NotRunning(ControlError):
    """Nobody listens at the socket."""


class RequestRefused(ControlError):
    """The agent does not do what it was asked; `usage`: the request itself is wrong."""

    def __init__(self, refusal: Refusal) -> None:
        self.usage = bool(refusal.usage)
        super().__init__(refusal.error)


def ask(path: str, request: Order[Answer], seconds: float = SECONDS) -> Answer:
    """One request to a running agent. NotRunning when there is none, RequestRefused, ControlError when it cannot be asked."""
    verb: str = request.verb  # type: ignore[attr-defined] # every request has one
    value = exchange(path, {"verb": verb, **records.encode(request)}, seconds)
    kind = records.answer_of(type(request)) if value.get("ok") or "error" not in value else Refusal
    try:
        answer: Any = records.decode(kind, value)
    except RecordError as error:
        raise ControlError(f"the agent that runs is of another version; restart it, or use its own embargo: {error}") from None
    if isinstance(answer, Refusal):
        raise RequestRefused(answer)
    return answer  # type: ignore[no-any-return] # it is of the kind that answers this request


def exchange(path: str, request: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
    """One line of JSON to the socket at this path, and the one that answers it. ControlError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(path)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no agent is running ({path}); see systemctl status embargo, journalctl -u embargo") from None
        except PermissionError:
            raise ControlError(f"{path}: permission denied; ask root to add you to the socket's group") from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ControlError("the agent closed the connection without an answer")
    return answer
