"""A service manager for one agent, in place of systemd: it receives notifications, stores descriptors, and passes them on."""

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.agent import READY, Agent
from tools.rig import until

# the descriptors to be passed are 600 and up, so that they collide neither with 3 and up nor with others of the test
_START = """
import os, sys
count = int(sys.argv[1])
for number in range(count):
    os.dup2(600 + number, 3 + number)
    os.close(600 + number)
if count:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "embargo", *sys.argv[3:]])
"""


class Manager:
    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.received: list[str] = []
        self.stored: list[tuple[str, int]] = []
        self._path = agent.root / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self._path))

    def start(self, **environment: str) -> None:
        """Start the agent with the stored descriptors, and wait until it reports that it is ready."""
        self.received.clear()
        if not self.agent.config.exists():
            self.agent.write_config()
        with open(self.agent.root / "stdout", "w") as out, open(self.agent.root / "stderr", "w") as err:
            for number, (_, fd) in enumerate(self.stored):
                os.dup2(fd, 600 + number, inheritable=True)
            names = ":".join(name for name, _ in self.stored)
            words = [str(len(self.stored)), names, "run", "-c", str(self.agent.config)]
            self.agent.process = subprocess.Popen(
                [*self.agent.prefix, sys.executable, "-c", _START, *words], stdout=out, stderr=err, text=True,
                stdin=subprocess.DEVNULL, pass_fds=range(600, 600 + len(self.stored)),
                env=os.environ | {"NOTIFY_SOCKET": str(self._path)} | environment,
            )  # fmt: skip
            for number in range(len(self.stored)):
                os.close(600 + number)
        until(lambda: "READY=1" in self.listen() or self.agent.ended(), "the agent is ready", READY)
        assert not self.agent.ended(), self.agent.errors

    def listen(self, seconds: float = 0.0) -> list[str]:
        """All notifications since the start; wait `seconds` for more."""
        deadline = time.monotonic() + seconds
        while select.select([self._sock], [], [], max(deadline - time.monotonic(), 0))[0]:
            data, fds, _, _ = socket.recv_fds(self._sock, 4096, 253)
            lines = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            if "FDSTOREREMOVE" in lines:
                for gone in [each for each in self.stored if each[0] == lines["FDNAME"]]:
                    self.stored.remove(gone)
                    os.close(gone[1])
            self.stored += [(lines["FDNAME"], fd) for fd in fds]
            self.received += data.decode().splitlines()
        return self.received

    def close(self) -> None:
        self._sock.close()
        for _, fd in self.stored:
            os.close(fd)
        self.stored.clear()
        Path(self._path).unlink(missing_ok=True)
