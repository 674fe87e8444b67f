"""The servers, each with the same list, one thread of work, and one upstream. A further one is a further class."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ADDRESS = "127.0.0.1"
READY = 120.0  # seconds; Unbound reads a million zones for a while
SERVER_CPU, LOAD_CPU = 0, 1
UPSTREAM_PORT = 5390


class Server:
    """A server under test: `configure` writes what it needs and gives its command."""

    name = ""
    port = 0

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory / self.name
        self.directory.mkdir(parents=True)
        self.names = names
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    def configure(self) -> list[str]:
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def start(self, cpu: int = SERVER_CPU) -> None:
        """Start it on one processor and wait for its first answer."""
        command = self.configure()
        began = time.monotonic()
        with open(self.directory / "log", "wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", str(cpu), *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = began + READY
        while not answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - began

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def pids(self) -> list[int]:
        """All its processes."""
        assert self.process is not None
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            for task in os.listdir(f"/proc/{pid}/task"):
                queue += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        return found


class Embargo(Server):
    name = "embargo"
    port = 5401

    def configure(self) -> list[str]:
        app = self.directory / "apps/big"
        app.mkdir(parents=True)
        (app / "app.toml").write_text('id = "big"\nname = "Big"\ndefault = true\n')
        (app / "payment.list").write_text("".join(f"{name}\n" for name in self.names))
        config = self.directory / "embargo.toml"
        config.write_text(
            f'[dns]\nlisten = ["{ADDRESS}:{self.port}"]\nupstream = ["{ADDRESS}:{UPSTREAM_PORT}"]\nworkers = 1\n'
            f'[lists]\napps = ["{self.directory}/apps"]\nallow = "{self.directory}/allow"\nblock = "{self.directory}/block"\n'
            f'[firewall]\nenabled = false\n[log]\nevents = "{self.directory}/events.jsonl"\n'
            f'[state]\ndir = "{self.directory}/state"\nruntime = "{self.directory}/run"\n'
        )
        return [sys.executable, "-m", "embargo", "run", "-c", str(config)]

    def version(self) -> str:
        return _first_line([sys.executable, "-m", "embargo", "version"])


class Unbound(Server):
    name = "unbound"
    port = 5402

    def configure(self) -> list[str]:
        zones = self.directory / "zones.conf"
        with zones.open("w") as file:
            file.write("server:\n")
            file.writelines(f' local-zone: "{name}" always_nxdomain\n' for name in self.names)
        config = self.directory / "unbound.conf"
        config.write_text(_UNBOUND.format(address=ADDRESS, port=self.port, upstream=UPSTREAM_PORT, zones=zones))
        return ["unbound", "-d", "-c", str(config)]

    def version(self) -> str:
        return _first_line(["unbound", "-V"])


_UNBOUND = """\
server:
 interface: {address}@{port}
 num-threads: 1
 module-config: "iterator"
 username: ""
 chroot: ""
 pidfile: ""
 use-syslog: no
 do-ip6: no
 do-not-query-localhost: no
 access-control: 127.0.0.0/8 allow
 msg-cache-size: 64m
 rrset-cache-size: 128m
include: {zones}
forward-zone:
 name: "."
 forward-addr: {address}@{upstream}
"""


class Dnsmasq(Server):
    name = "dnsmasq"
    port = 5403

    def configure(self) -> list[str]:
        config = self.directory / "dnsmasq.conf"
        with config.open("w") as file:
            file.write(
                f"listen-address={ADDRESS}\nport={self.port}\nbind-interfaces\nno-resolv\nno-hosts\nuser=root\npid-file=\n"
            )
            file.write(f"server={ADDRESS}#{UPSTREAM_PORT}\ncache-size=10000\ndns-forward-max=2000\n")
            file.writelines(f"address=/{name}/\n" for name in self.names)
        return ["dnsmasq", "--no-daemon", f"--conf-file={config}"]

    def version(self) -> str:
        return _first_line(["dnsmasq", "--version"])


SERVERS = (Embargo, Unbound, Dnsmasq)


class Upstream(Server):
    """Who answers what is not blocked: an Unbound that knows every name, on the load generator's processor."""

    name = "upstream"
    port = UPSTREAM_PORT

    def configure(self) -> list[str]:
        config = self.directory / "unbound.conf"
        config.write_text(_UPSTREAM.format(address=ADDRESS, port=self.port))
        return ["unbound", "-d", "-c", str(config)]

    def version(self) -> str:
        return ""


_UPSTREAM = """\
server:
 interface: {address}@{port}
 num-threads: 1
 username: ""
 chroot: ""
 pidfile: ""
 use-syslog: no
 do-ip6: no
 access-control: 127.0.0.0/8 allow
 local-zone: "." redirect
 local-data: ". 3600 IN A 192.0.2.80"
"""


def answers(port: int) -> bool:
    """Does somebody answer at all?"""
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0\5ready\7allowed\3com\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect((ADDRESS, port))
            sock.send(query)
            return len(sock.recv(512)) > 12
        except OSError:
            return False


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0].strip()
