"""The lab itself: what it leaves behind when a test run is killed, and what it says where it cannot work."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support import lab as lab_
from support.lab import PREFIX, TOP, Lab
from tools.rig import until

pytestmark = pytest.mark.root

_RUN = """
from support.lab import Lab, rootfs
with Lab(rootfs("bookworm")) as lab:
    lab.link("gateway", "lan0", "192.0.2.1/24", "client", "eth0", "192.0.2.2/24")
    lab.boot("gateway")
    lab.hold("client")
    print("up", flush=True)
    input()
"""


def groups(pid: int) -> list[Path]:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]
    return list(Path(mounts[0]).glob(f"{PREFIX}{pid}-*"))


def mounts() -> list[str]:
    """Without those of other tests that run at the same time: named network namespaces, and file systems in their directories.

    A lab's own are below a /run of its own.
    """
    others = ("/run/netns", tempfile.gettempdir())
    return [line for line in Path("/proc/mounts").read_text().splitlines() if not line.split()[1].startswith(others)]


def test_a_killed_run_leaves_no_process_and_the_next_one_sweeps_the_rest() -> None:
    before = mounts()
    with subprocess.Popen(
        [sys.executable, "-c", _RUN], cwd=TOP / "tests", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        (group,) = groups(run.pid)
        assert "populated 1" in (group / "cgroup.events").read_text()
        run.send_signal(signal.SIGKILL)
    until(lambda: "populated 0" in (group / "cgroup.events").read_text(), "all of its processes are gone")
    assert mounts() == before
    with Lab(lab_.rootfs("bookworm")):
        assert groups(run.pid) == []


def test_a_machine_that_does_not_boot_says_why_and_another_can_have_its_name() -> None:
    with Lab(lab_.rootfs("bookworm")) as lab:
        lab.link("gateway", "lan0", "192.0.2.1/24", "client", "eth0", "192.0.2.2/24")
        with pytest.raises(AssertionError, match=r"gateway ended with 1:\n.*/usr/lib/systemd/systemd"):
            lab.boot("gateway", files={"/usr/lib/systemd/systemd": "no program"})
        machine = lab.boot("gateway")
        machine.kill()
        assert lab.boot("gateway").run("hostname").stdout == "gateway\n"


def test_a_machine_without_nspawn_fails_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="a container needs unshare: tools/apt util-linux"):
        Lab(Path("/"))
