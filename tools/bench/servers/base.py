"""What every server has in common: started on one processor, asked until it answers rightly, ended with its children."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

ADDRESS = "127.0.0.1"
UPSTREAM_PORT = 5390
PATIENCE = 60.0  # seconds until the first right answer; the slowest reads a million names in 20
FAREWELL = 20.0  # seconds to stop before it is killed

_CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = _CPUS[0], _CPUS[-1]

NOERROR, NXDOMAIN = 0, 3


class Probe(NamedTuple):
    """A question whose answer shows that the list is in force."""

    name: str
    rcode: int


class BenchError(Exception):
    """A server that does not start or answers wrongly: its figures would mean nothing."""


class Server(ABC):
    """`prepare` writes list and configuration into `directory`, `command` starts the server in the foreground."""

    name: ClassVar[str]
    port: ClassVar[int]
    cpu: ClassVar[int] = SERVER_CPU
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @staticmethod
    @abstractmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        """The list in this server's format: these names and all below them do not exist."""

    @abstractmethod
    def prepare(self, names: Sequence[str]) -> None:
        """Write the list and the configuration."""

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Its name and version, as it says itself."""

    def reload(self, running: "Running") -> bool:
        """Make it read its list again. False: it would have to be started anew."""
        return False

    def settle(self) -> None:
        """Wait until a reload is over, so that it disturbs nothing that follows."""
        return

    def remark(self) -> str:
        """What has to be known beside its figures, once it has stopped."""
        return ""

    @contextlib.contextmanager
    def running(self, probe: Probe) -> Iterator["Running"]:
        """The server from its first right answer to the end of the block."""
        began = time.monotonic()
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                ["taskset", "-c", str(self.cpu), *self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, **self.environment},
            )  # fmt: skip
        try:
            self._await(process, probe, began + PATIENCE)
            yield Running(process.pid, time.monotonic() - began)
        finally:
            _end(process)

    def answers(self, sock: socket.socket, probe: Probe) -> bool:
        """Is the whole list in force?"""
        return ask(sock, probe.name) == probe.rcode

    def _await(self, process: subprocess.Popen[bytes], probe: Probe, deadline: float) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((ADDRESS, self.port))
            while not self.answers(sock, probe):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{self.name} does not start: {(self.directory / 'log').read_text()[-2000:]}")
                time.sleep(0.002)


class Running(NamedTuple):
    pid: int  # the first of its processes; the others descend from it
    seconds: float  # from the start to the first right answer


def ask(sock: socket.socket, name: str) -> int | None:
    """The rcode for this name's A records; None when nothing came."""
    question = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0\0\1\0\1"
    head = os.urandom(2)
    sock.settimeout(0.2)  # what is asked before the server reads waits in its socket, so a longer wait finds it no sooner
    with contextlib.suppress(OSError):  # nobody there yet, or silent
        sock.send(head + b"\1\0\0\1\0\0\0\0\0\0" + question)
        while (reply := sock.recv(4096))[:2] != head:
            pass
        return reply[3] & 15
    return None


def rpz_lines(names: Iterable[str]) -> Iterator[str]:
    """A name and all below it, as a response policy zone says it."""
    return (f"{name} CNAME .\n*.{name} CNAME .\n" for name in names)


def rpz_zone(path: Path, names: Sequence[str]) -> None:
    with path.open("w") as file:
        file.write("$ORIGIN rpz.\n$TTL 60\n@ SOA localhost. mail.rpz. 1 3600 600 86400 60\n@ NS localhost.\n")
        file.writelines(rpz_lines(names))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):  # the session's rest, should its leader have left any
            os.killpg(process.pid, signal.SIGKILL)


def first_line(*command: str) -> str:
    """What a program says of its version."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0].strip()
