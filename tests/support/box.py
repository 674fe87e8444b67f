"""Other people's packages, installed and run without touching this machine.

A box is a mount namespace whose root is an overlay: the machine's own files below, whatever is written above them in memory.
What is installed in it from Debian, and what it writes to /etc or /run, is gone with it. Its programs are run in a network
namespace of a rig.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.rig import Rig, until

TOP = Path(__file__).parent.parent.parent

_MAKE = r"""
set -e
mount --make-rprivate /
mount -t tmpfs box /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay box -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for directory in proc sys dev; do mount --rbind /$directory /mnt/root/$directory; done
mount -t tmpfs box /mnt/root/run
mkdir -p /mnt/root/tmp && chmod 1777 /mnt/root/tmp
printf '#!/bin/sh\nexit 101\n' >/mnt/root/usr/sbin/policy-rc.d
chmod 755 /mnt/root/usr/sbin/policy-rc.d
chroot /mnt/root sh -s -- "$@"
echo made
exec sleep 1800
"""


class Box:
    """`packages` are installed in it, if they are not there."""

    def __init__(self, *packages: str) -> None:
        self._packages = packages
        self._holder: subprocess.Popen[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        command = ["unshare", "--mount", "sh", "-c", _MAKE, "box", *self._packages]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write((TOP / "tools/apt").read_bytes())  # the script installs what is named, inside
        self._holder.stdin.close()
        said = []
        for line in self._holder.stdout:
            said.append(line.decode(errors="replace"))
            if line == b"made\n":
                return self
        self.close()
        raise AssertionError(f"the box was not made:\n{''.join(said)}")

    def close(self) -> None:
        for process in [*reversed(self._started), *([self._holder] if self._holder else [])]:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if self._holder is not None and self._holder.stdout is not None:
            self._holder.stdout.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _inside(self, rig: Rig, command: tuple[str, ...]) -> list[str]:
        assert self._holder is not None
        namespace = f"/run/netns/{rig.prefix('gateway')[-1]}"
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        joined = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--net={namespace}", "--"]
        return [*joined, "chroot", "/mnt/root", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *variables, *command]

    def run(self, rig: Rig, *command: str, text: str = "", check: bool = True) -> str:
        """A program of the box in the rig's gateway; what it says."""
        done = subprocess.run(self._inside(rig, command), input=text, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, rig: Rig, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._inside(rig, command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._started.append(process)
        return process

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file inside."""
        assert self._holder is not None
        target = Path(f"/proc/{self._holder.pid}/root/mnt/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        os.chmod(target, mode)


_BUS = """<busconfig><type>session</type><listen>unix:path=/run/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>"""


class Firewalld:
    """firewalld with a message bus of its own, in the gateway of a rig; both interfaces are in the zone that allows all."""

    def __init__(self, box: Box, rig: Rig) -> None:
        self._box, self._rig = box, rig
        box.environment["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/run/bus"

    def start(self) -> None:
        self._box.write("/run/bus.conf", _BUS)
        self._bus = self._box.start(self._rig, "dbus-daemon", "--config-file=/run/bus.conf", "--nofork")
        self._daemon = self._box.start(self._rig, "firewalld", "--nofork", "--nopid")
        until(lambda: self.command("--state", check=False).strip() == "running", "firewalld runs", 30.0)
        for interface in ("lan0", "wan0"):
            self.command("--zone=trusted", f"--change-interface={interface}", "--permanent")
        self.command("--reload")

    def command(self, *words: str, check: bool = True) -> str:
        return self._box.run(self._rig, "firewall-cmd", *words, check=check)

    def stop(self) -> None:
        """As a service is stopped: it takes its rules away."""
        for process in (self._daemon, self._bus):
            process.terminate()
            process.wait(20)
        time.sleep(0.1)
