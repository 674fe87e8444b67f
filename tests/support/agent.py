"""A whole agent for a test: `embargo run` on loopback, in a directory of its own, asked with the real command line."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from embargo.daemon.ask import client
from support import schema
from tools.rig import until

READY = 30.0  # seconds; a busy machine starts three interpreters
SOON = 10.0  # seconds within which something must have become true

Apps = Mapping[str, Mapping[str, Sequence[str]]]
APPS: Apps = {
    "alipay": {
        "payment": ["alipay.example  # evidence", "!mail.alipay.example  # evidence"],
        "telemetry": ["=log.alipay.test"],
    },
    "qq": {"core": ["qq.example"], "payment": ["pay.qq.example", "203.0.113.0/28"]},
}


# Ports below those that the kernel gives to clients (ip_local_port_range, from 32768): a query that leaves in between cannot
# take one. Each process of a test run (pytest-xdist names it gw0, gw1, ...) has 2,000 of its own, and begins at another place
# than the run before it.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(10_000 + _WORKER % 10 * 2_000, 12_000 + _WORKER % 10 * 2_000)
_offsets = itertools.count(os.getpid() * 37)


def free_port() -> int:
    """A port that is free on loopback for UDP and TCP, and that no other test of this run is given."""
    for _ in _PORTS:
        port = _PORTS[next(_offsets) % len(_PORTS)]
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            suppress(OSError),
        ):
            udp.bind(("127.0.0.1", port))
            tcp.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free over UDP and TCP")


class Agent:
    """Files below `root`; `prefix` is put before every command (`ip netns exec gateway`)."""

    def __init__(self, root: Path, prefix: Sequence[str] = (), apps: Apps = APPS) -> None:
        self.root = root
        self.prefix = list(prefix)
        self.port = free_port()
        self.sections: dict[str, dict[str, Any]] = {
            "dns": {"listen": [f"127.0.0.1:{self.port}"], "upstream": ["127.0.0.1:9"], "workers": 1},
            "lists": {"apps": [str(root / "apps")], "allow": str(root / "allow.list"), "block": str(root / "block.list")},
            "firewall": {"enabled": False},
            "log": {"events": str(root / "events.jsonl")},
            "state": {"dir": str(root / "state"), "runtime": str(root / "runtime")},
        }
        self.options: list[str] = []  # of `run`
        self.process: subprocess.Popen[str] | None = None
        for app, functions in apps.items():
            self.write_app(app, functions)

    @property
    def config(self) -> Path:
        return self.root / "embargo.toml"

    @property
    def errors(self) -> str:
        return (self.root / "stderr").read_text()

    def write_app(self, app: str, functions: Mapping[str, Sequence[str]]) -> Path:
        directory = self.root / "apps" / app
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "app.toml").write_text(f'id = "{app}"\nname = "{app.title()}"\ndefault = true\n')
        for function, entries in functions.items():
            (directory / f"{function}.list").write_text("".join(f"{entry}\n" for entry in entries))
        return directory

    def write_config(self, **sections: Mapping[str, Any]) -> None:
        """The configuration, with these keys changed for good."""
        for name, values in sections.items():
            self.sections.setdefault(name, {}).update(values)
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
            for name, values in self.sections.items()
        )
        self.config.write_text(text)

    def start(self, *, wait: bool = True) -> None:
        if not self.config.exists():
            self.write_config()
        with open(self.root / "stdout", "w") as out, open(self.root / "stderr", "w") as err:
            command = [*self.prefix, sys.executable, "-m", "embargo", "run", "-c", str(self.config), *self.options]
            self.process = subprocess.Popen(command, stdout=out, stderr=err, text=True, stdin=subprocess.DEVNULL)
        if wait:
            until(lambda: "ready:" in (self.root / "stdout").read_text() or self.ended(), "the agent is ready", READY)
            assert not self.ended(), self.errors

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its exit status."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            return self.process.wait(READY)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def cli(self, *words: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [*self.prefix, sys.executable, "-m", "embargo", words[0], "-c", str(self.config), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert status is None or done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def answer(self, *words: str, status: int | None = 0) -> Any:
        """The output of a verb with --json. `status` is read from the control socket, which is faster."""
        if words == ("status",) and status == 0:
            return self.ask("status")
        return json.loads(self.cli(*words, "--json", status=status).stdout)

    def ask(self, verb: str, seconds: float = client.ANSWER_SECONDS, **members: Any) -> dict[str, Any]:
        """The answer to a request over the control socket, without starting the command line."""
        return client.exchange(f"{self.root}/runtime/control.sock", {"verb": verb, **members}, seconds)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        path = self.root / "events.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for event in found:
            schema.check(event)
        return [event for event in found if kind in ("", event["event"])]

    def dig(self, *words: str) -> str:
        """The output of dig."""
        command = [*self.prefix, "dig", "@127.0.0.1", "-p", str(self.port), "+tries=1", "+time=5", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout

    def rcode(self, *words: str) -> str:
        return next(
            (line.split("status: ")[1].split(",")[0] for line in self.dig(*words).splitlines() if "status: " in line), ""
        )

    def blocked(self, name: str) -> bool:
        return self.rcode(name, "A") == "NXDOMAIN"

    def children(self) -> list[int]:
        """The pids of all processes below the agent."""
        assert self.process is not None
        found, queue = [], [self.process.pid]
        while queue:
            with suppress(OSError):
                pid = queue.pop()
                for task in os.listdir(f"/proc/{pid}/task"):
                    below = list(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
                    found += below
                    queue += below
        return found


@contextmanager
def running(root: Path, *, prefix: Sequence[str] = (), apps: Apps = APPS, **sections: Mapping[str, Any]) -> Iterator[Agent]:
    """A running agent that is ready; it is stopped afterwards in any case."""
    agent = Agent(root, prefix, apps)
    agent.write_config(**sections)
    agent.start()
    try:
        yield agent
    finally:
        if not agent.ended():
            agent.stop()
