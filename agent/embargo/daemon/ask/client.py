"""The client of the control socket: one request to a running agent, one answer."""

import json
import socket
from typing import Any

from embargo.errors import EmbargoError

TIMEOUT = 300.0  # seconds for an answer; a reload of very large lists takes minutes

Told = dict[str, Any]


class ControlError(EmbargoError):
    """The agent cannot be asked, or refuses the request."""


class NotRunning(ControlError):
    """No process listens on the socket."""


def ask(path: str, verb: str, **members: Any) -> Told:
    """Send one request to the control socket at `path` and return the answer.

    Raises NotRunning when no agent listens there, ControlError when the agent cannot be asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(path)
            sock.sendall(json.dumps({"verb": verb, **members}).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no agent is running ({path}); see systemctl status embargo, journalctl -u embargo") from None
        except PermissionError:
            raise ControlError(f"{path}: permission denied; ask root to add you to the socket's group") from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
    if not line:
        raise ControlError("the agent closed the connection without an answer")
    answer: Told = json.loads(line)
    return answer
