"""Embargo as it comes: a supervisor, one resolver, the event log on. Only the firewall is off, as nobody else has one."""

import json
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from embargo import accelerator
from tools.bench.servers.base import (
    ADDRESS,
    NXDOMAIN,
    PATIENCE,
    UPSTREAM_PORT,
    BenchError,
    Running,
    Server,
    ask,
    first_line,
)

_CONFIG = """\
[dns]
listen = ["{address}:{port}"]
upstream = ["{address}:{upstream}"]
workers = 1

[lists]
apps = ["{directory}/apps"]
allow = "{directory}/allow.list"
block = "{directory}/block.list"

[firewall]
enabled = false

[log]
events = "{directory}/events/events.jsonl"

[state]
dir = "{directory}/state"
runtime = "{directory}/run"
"""


ADDED = "added-while-it-runs.example"


class Embargo(Server):
    name = "Embargo"
    port = 5401
    environment: ClassVar[dict[str, str]] = {accelerator.VARIABLE: "native"}

    @staticmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        return (f"{name}\n" for name in names)

    def prepare(self, names: Sequence[str]) -> None:
        app = self.directory / "apps" / "listed"
        app.mkdir(parents=True)
        (app / "app.toml").write_text('id = "listed"\nname = "Listed"\ndefault = true\n')
        with (app / "payment.list").open("w") as file:
            file.writelines(self.list_lines(names))
        places = {"address": ADDRESS, "port": self.port, "upstream": UPSTREAM_PORT, "directory": self.directory}
        (self.directory / "embargo.toml").write_text(_CONFIG.format(**places))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "embargo", "run", "-c", f"{self.directory}/embargo.toml"]

    @property
    def list_file(self) -> Path:
        return self.directory / "apps" / "listed" / "payment.list"

    def reload(self, running: Running) -> bool:
        """It sees by itself that its list has changed."""
        with self.list_file.open("a") as file:
            file.write(f"{ADDED}\n")
        return True

    def settle(self) -> None:
        deadline = time.monotonic() + PATIENCE
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((ADDRESS, self.port))
            while ask(sock, ADDED) != NXDOMAIN:
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.name} does not read its list again")
                time.sleep(0.1)

    def remark(self) -> str:
        """Whether the log was kept up with: a record that was lost cost less than one that was written."""
        attempts = records = lost = 0
        for path in (self.directory / "events").glob("events.jsonl*"):
            with path.open() as file:
                for event in map(json.loads, file):
                    lost += event.get("lost", 0)
                    if event["event"] == "dns":
                        records, attempts = records + 1, attempts + event["count"]
        return f"{self.name} logged {attempts} blocked queries in {records} records, and {lost} only as a number of lost ones"

    @classmethod
    def version(cls) -> str:
        return first_line(sys.executable, "-m", "embargo", "version").replace("embargo", "Embargo")


class Pure(Embargo):
    """The same without its compiled modules."""

    name = "Embargo, pure"
    port = 5407
    environment: ClassVar[dict[str, str]] = {accelerator.VARIABLE: "none"}
