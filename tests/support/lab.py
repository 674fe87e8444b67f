"""Real systemd in real containers, on networks of their own: whole machines for a test.

A lab is one set of namespaces (processes, mounts, network, control groups). In it, each container is systemd-nspawn on an
overlay of a directory that `tools/rootfs` made; what it writes is in memory. A network is made before the containers that use
it, so that a machine boots with its addresses. When the lab's first process dies, and it dies with the test run, everything in
it is gone; only empty control groups may be left of a killed run, and the next lab removes them.

    with Lab(rootfs("bookworm")) as lab:
        lab.link("gateway", "lan0", "192.0.2.1/24", "client", "eth0", "192.0.2.2/24")
        gateway = lab.boot("gateway")
        client = lab.hold("client")
        gateway.run("systemctl", "is-system-running")
        client.run("ping", "-c1", "192.0.2.1")
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

TOP = Path(__file__).parent.parent.parent
PREFIX = "embargo-lab-"  # of a lab's control group; the number of the test run follows
BOOT = 90.0  # seconds; on a busy machine, half a second on a quiet one
GONE = 10.0  # seconds for the kernel to end what is in a lab

Done = subprocess.CompletedProcess[str]

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
_SPACES = ("--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup")

# A control group tree and a /run of its own: what the machine's own systemd has there is none of the lab's business.
_SETUP = """set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/systemd /run/lab
mount -t tmpfs -o size=2g tmpfs /run/lab
ip link set lo up
echo made
exec sleep infinity"""


def rootfs(suite: str) -> Path:
    """The directory of a Debian of this suite; made if need be, from the machine's own package sources."""
    done = subprocess.run([TOP / "tools/rootfs", suite], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"tools/rootfs {suite}: {done.stderr[-3000:]}", pytrace=False)
    return Path(done.stdout.strip())


def package() -> Path:
    """The Debian package of this tree; built if something in it is newer. Of several test processes one builds it."""
    (TOP / "dist").mkdir(exist_ok=True)
    with (TOP / "dist/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["make", "--no-print-directory", "deb"], cwd=TOP, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"make deb: {done.stdout[-1000:]}{done.stderr[-3000:]}", pytrace=False)
    return TOP / done.stdout.split()[-1]


class Lab:
    """`root` is what every container's files lie on, unless it is told otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers: dict[str, Container] = {}
        self._nets: set[str] = set()
        self.started: list[subprocess.Popen[str]] = []
        self._process: subprocess.Popen[str] | None = None
        for word in ("unshare", "nsenter", "setpriv", "ip", "systemd-nspawn"):
            if shutil.which(word) is None:
                pytest.fail(f"a container needs {word}: tools/apt util-linux iproute2 systemd-container", pytrace=False)

    def __enter__(self) -> Self:
        groups = _groups()
        _sweep(groups)
        self.logs = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._group = groups / self.logs.name
        try:
            (self._group / "anchor").mkdir(parents=True)
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def _make(self) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *_SPACES, "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            _in_group(self._group, [*command, "--propagation", "private", "--", "sh", "-c", _SETUP]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_ENVIRONMENT,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if said != "made\n":
            pytest.fail(f"no namespaces for containers here: {said}{self._process.stdout.read()}", pytrace=False)
        self._anchor = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0])
        for pid in (self._group / "cgroup.procs").read_text().split():  # a group with groups below has no processes
            (self._group / "anchor/cgroup.procs").write_text(pid)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """The first process of the lab's dies, and takes all others, their mounts and their networks along."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        for started in self.started:
            started.wait()
        for container in self.containers.values():
            container.process.wait()
        _remove(self._group)
        shutil.rmtree(self.logs)

    # ── networks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def shell(self, script: str) -> str:
        """Run a script outside of all containers, where their networks and overlays are made."""
        return _run(self._inside("sh", "-ec", script), 60.0).stdout

    def link(self, one: str, interface: str, address: str, other: str, interface2: str, address2: str) -> None:
        """A cable between two machines, which need not have been started."""
        for name in {one, other} - self._nets:
            self.shell(
                f"ip netns add {name}; ip -n {name} link set lo up; ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1"
            )
            self._nets.add(name)
        self.shell(f"""ip link add {interface} netns {one} type veth peer name {interface2} netns {other}
ip -n {one} address add {address} dev {interface}; ip -n {one} link set {interface} up
ip -n {other} address add {address2} dev {interface2}; ip -n {other} link set {interface2} up""")

    # ── machines ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def boot(self, name: str, *, layers: Sequence[Path] = (), files: dict[str, str] | None = None) -> "Container":
        """A machine with systemd, that has booted. `layers` (`keep`) lie over the root, the first on top; `files` over them."""
        return self._start(name, None, layers, files or {})

    def hold(self, name: str) -> "Container":
        """A machine without systemd, to run commands on."""
        return self._start(name, ["sleep", "infinity"], (), {})

    def _start(self, name: str, command: Sequence[str] | None, layers: Sequence[Path], files: dict[str, str]) -> "Container":
        assert name not in self.containers, "stop it first"
        base = f"/run/lab/{name}"
        lower = ":".join(map(str, [*layers, self.root]))
        self.shell(f"""rm -rf {base}; mkdir -p {base}/upper {base}/work {base}/root
mount -t overlay overlay -o lowerdir={lower},upperdir={base}/upper,workdir={base}/work {base}/root""")
        for path, text in files.items():
            target = self.path(f"{base}/root{path}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        group = self._group / name
        group.mkdir(exist_ok=True)
        words = [
            "systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--console=pipe", "--link-journal=no",
            "--resolv-conf=off", "--timezone=off", f"--directory={base}/root", f"--machine={name}",
            f"--network-namespace-path=/run/netns/{name}", "--capability=CAP_NET_ADMIN",  # a given network does not bring it
        ]  # fmt: skip
        words += ["--notify-ready=no", "--as-pid2", *command] if command else ["--notify-ready=yes", "--boot"]
        said = self.logs / f"{name}.console"
        # sysctls of the container's network may be written; nspawn says when systemd has booted to the socket
        environment = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "NOTIFY_SOCKET": f"{base}/notify"}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, said.open("w") as log:
            ready.bind(str(self.path(f"{base}/notify")))
            process = subprocess.Popen(
                _in_group(group, self._inside(*words)), env=_ENVIRONMENT | environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
            container = Container(self, name, process)
            self.containers[name] = container
            deadline = time.monotonic() + BOOT
            try:
                while not (select.select([ready], [], [], 0.2)[0] and b"READY=1" in ready.recv(4096).split(b"\n")):
                    assert process.poll() is None, f"{name} ended with {process.returncode}:\n{said.read_text()}"
                    assert time.monotonic() < deadline, f"{name} did not boot:\n{said.read_text()}"
                container.pid = _first_process(group)
            except BaseException:
                container.kill()
                raise
        return container

    def path(self, path: str) -> Path:
        """A path of the lab's, as it is seen from here."""
        return Path(f"/proc/{self._anchor}/root{path}")

    def _inside(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self._anchor}", *_SPACES, "--", *words]

    def end(self, container: "Container") -> None:
        (self._group / container.name / "cgroup.kill").write_text("1")
        container.process.wait()

    def unmount(self, container: "Container") -> None:
        """It has ended. What it wrote stays for `keep`, until a machine of its name is started."""
        self.shell(f"umount /run/lab/{container.name}/root")
        _remove(self._group / container.name)
        del self.containers[container.name]

    def keep(self, name: str) -> Path:
        """What a machine wrote until it was shut down, as a layer for others. Each makes its own machine-id."""
        layer = f"/run/lab/layers/{len(list(self.path('/run/lab').glob('layers/*')))}"
        self.shell(f"mkdir -p /run/lab/layers; mv /run/lab/{name}/upper {layer}; : >{layer}/etc/machine-id")
        return Path(layer)


class Container:
    """One machine. Commands are run in all of its namespaces, as root."""

    def __init__(self, lab: Lab, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self.pid = 0
        self._lab = lab

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", *_SPACES, "--", *words]

    def run(self, *words: str, check: bool = True, text: str | None = None, seconds: float = 60.0) -> Done:
        """A command, its output, and its exit status, which has to be 0 if it is checked."""
        return _run(self.argv(*words), seconds, check=check, text=text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command that goes on; it ends with the machine. What it says is put beside the machine's console."""
        with (self._lab.logs / f"{self.name}.{len(self._lab.started)}.out").open("w") as out:
            process = subprocess.Popen(
                self.argv(*words), env=_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True
            )
        self._lab.started.append(process)
        return process

    def path(self, path: str) -> Path:
        """A file of the machine's, as it is seen from here. Links in it lead astray when they are absolute."""
        return Path(f"/proc/{self.pid}/root{path}")

    def journal(self, unit: str, *words: str) -> list[dict[str, Any]]:
        """A unit's journal, an object a record."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "--output=json", "--no-pager", f"--unit={unit}", *words).stdout
        return [json.loads(line) for line in out.splitlines()]

    def messages(self, unit: str, *words: str) -> list[str]:
        return [str(record.get("MESSAGE", "")) for record in self.journal(unit, *words)]

    def poweroff(self) -> None:
        """Shut it down in order."""
        self.run("systemctl", "poweroff", "--no-wall", check=False)
        self.process.wait(BOOT)
        self._lab.unmount(self)

    def kill(self) -> None:
        """As when its power is cut; nothing if it has been shut down already."""
        if self._lab.containers.get(self.name) is self:
            self._lab.end(self)
            self._lab.unmount(self)


def _run(words: list[str], seconds: float, *, check: bool = True, text: str | None = None) -> Done:
    done = subprocess.run(
        words, env=_ENVIRONMENT, input=text or "", capture_output=True, text=True, timeout=seconds, errors="replace"
    )
    command = " ".join(words[words.index("--") + 1 :])
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def _groups() -> Path:
    """Where control groups of version 2 are; beside those of version 1 on some machines."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found = next((Path(words[1]) for words in mounts if words[2] == "cgroup2" and "rw" in words[3].split(",")), None)
    if found is None:
        pytest.fail("containers need control groups of version 2, mounted for writing", pytrace=False)
    return found


def _in_group(group: Path, words: list[str]) -> list[str]:
    return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs"), *words]


def _first_process(group: Path) -> int:
    """A container's PID 1, by the number that it has here."""
    for procs in group.rglob("cgroup.procs"):
        for pid in procs.read_text().split():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
                if len(numbers) >= 3 and numbers[-1] == "1":
                    return int(pid)
    raise AssertionError(f"no first process in {group}")


def _remove(group: Path) -> None:
    """A control group and those below it, when nothing runs in them any more."""
    for directory, _, _ in os.walk(group, topdown=False):
        deadline = time.monotonic() + GONE
        while True:
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _sweep(groups: Path) -> None:
    """What killed runs left behind: empty control groups, and the consoles' output."""
    for left in (*groups.glob(f"{PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                _remove(left) if left.parent == groups else shutil.rmtree(left)
