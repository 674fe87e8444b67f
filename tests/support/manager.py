"""A service manager for one agent, as systemd is: it hears what is notified, keeps descriptors, and passes them on."""

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.agent import READY, Agent
from tools.rig import until

# the descriptors to pass on stand from 600 on, out of the way of their places from 3 on and of a busy test
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
        self.heard: list[str] = []
        self.kept: list[tuple[str, int]] = []
        self._path = agent.root / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self._path))

    def start(self, **environment: str) -> None:
        """Start the agent with what is kept, and wait until it has said that it is ready."""
        self.heard.clear()
        if not self.agent.config.exists():
            self.agent.write_config()
        with open(self.agent.root / "stdout", "w") as out, open(self.agent.root / "stderr", "w") as err:
            for number, (_, fd) in enumerate(self.kept):
                os.dup2(fd, 600 + number, inheritable=True)
            names = ":".join(name for name, _ in self.kept)
            words = [str(len(self.kept)), names, "run", "-c", str(self.agent.config)]
            self.agent.process = subprocess.Popen(
                [*self.agent.prefix, sys.executable, "-c", _START, *words], stdout=out, stderr=err, text=True,
                stdin=subprocess.DEVNULL, pass_fds=range(600, 600 + len(self.kept)),
                env=os.environ | {"NOTIFY_SOCKET": str(self._path)} | environment,
            )  # fmt: skip
            for number in range(len(self.kept)):
                os.close(600 + number)
        until(lambda: "READY=1" in self.listen() or self.agent.ended(), "the agent is ready", READY)
        assert not self.agent.ended(), self.agent.errors

    def listen(self, seconds: float = 0.0) -> list[str]:
        """Everything heard since the start."""
        deadline = time.monotonic() + seconds
        while select.select([self._sock], [], [], max(deadline - time.monotonic(), 0))[0]:
            data, fds, _, _ = socket.recv_fds(self._sock, 4096, 253)
            lines = dict(line.partition("=")[::2] for line in data.decode().splitlines())
            if "FDSTOREREMOVE" in lines:
                for gone in [each for each in self.kept if each[0] == lines["FDNAME"]]:
                    self.kept.remove(gone)
                    os.close(gone[1])
            self.kept += [(lines["FDNAME"], fd) for fd in fds]
            self.heard += data.decode().splitlines()
        return self.heard

    def close(self) -> None:
        self._sock.close()
        for _, fd in self.kept:
            os.close(fd)
        self.kept.clear()
        Path(self._path).unlink(missing_ok=True)
