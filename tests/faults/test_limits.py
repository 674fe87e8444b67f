"""Processes without descriptors or memory continue, or are restarted."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.conftest import Start
from support.agent import Agent
from support.load import Load, all_accounted, bounded, pids, uses
from tools.rig import LAN4, Rig, until

pytestmark = pytest.mark.root

SHORT = 2.0  # seconds


@contextlib.contextmanager
def limited(pid: int, what: int, value: int) -> Iterator[None]:
    """Change a limit of a running process, and restore it afterwards if it still runs."""
    soft, hard = _limits(pid, what)
    _limit(pid, what, value, hard)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _limit(pid, what, soft, hard)


def _limits(pid: int, what: int) -> tuple[int, int]:
    name = {resource.RLIMIT_NOFILE: "Max open files", resource.RLIMIT_AS: "Max address space"}[what]
    line = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith(name))
    soft, hard = (-1 if word == "unlimited" else int(word) for word in line.removeprefix(name).split()[:2])
    return soft, hard


def _limit(pid: int, what: int, soft: int, hard: int) -> None:
    """As the user of the process, since root may lack CAP_SYS_RESOURCE for processes of others."""
    of = os.stat(f"/proc/{pid}")
    option = {resource.RLIMIT_NOFILE: "nofile", resource.RLIMIT_AS: "as"}[what]
    words = ":".join("unlimited" if value == -1 else str(value) for value in (soft, hard))
    user = ["setpriv", f"--reuid={of.st_uid}", f"--regid={of.st_gid}", "--clear-groups"]
    subprocess.run([*user, "prlimit", f"--pid={pid}", f"--{option}={words}"], check=True, capture_output=True)


def descriptors(pid: int, spare: int = 0) -> int:
    """The limit with which a process can open `spare` more descriptors than it has."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return sorted(set(range(len(taken) + spare + 1)) - taken)[spare]


def octets(pid: int) -> int:
    """The size of its address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def reloads(agent: Agent, number: int) -> None:
    """Reload, and wait until the new generation is in force."""
    agent.write_app("qq", {"payment": [f"qq{number}.example"]})
    until(lambda: agent.ask("reload")["ok"], "a reload is in force", 40)


def works(agent: Agent, rig: Rig) -> None:
    """Check that all works, with as many processes as before, also over TCP."""
    until(lambda: (len(pids(agent, "resolver")), len(pids(agent, "guardian"))) == (2, 1), "all processes run")
    for _ in range(8):  # both resolvers
        until(lambda: rig.dig("client", f"@{LAN4}.1", "+tcp", "tcp.test").rcode == "NOERROR", "TCP is answered")
    assert agent.ask("why", subject="qq2.example")["verdict"] == "blocked"


def test_a_resolver_without_descriptors(faulty: Rig, start: Start) -> None:
    with start() as agent:
        before = uses(agent)
        with Load(faulty) as load:
            (victim, _) = pids(agent, "resolver")
            with limited(victim, resource.RLIMIT_NOFILE, descriptors(victim)):
                time.sleep(SHORT)
                load.goes_on()
                for _ in range(8):
                    faulty.dig("client", f"@{LAN4}.1", "+tcp", "+time=1", "tcp.test")
                reloads(agent, 1)  # a policy comes as a descriptor
            load.goes_on()
            reloads(agent, 2)
            works(agent, faulty)
        load.holds(silent=len(load.questions) // 100)  # of the one that has to be started again
        bounded(before, uses(agent))
    all_accounted(agent, load)


def test_a_guardian_without_descriptors(faulty: Rig, start: Start) -> None:
    with start() as agent:
        before = uses(agent)
        with Load(faulty) as load:
            (victim,) = pids(agent, "guardian")
            with limited(victim, resource.RLIMIT_NOFILE, descriptors(victim)):
                agent.write_app("qq", {"payment": ["qq1.example", "203.0.113.9"]})
                agent.ask("reload", seconds=90.0)
                load.goes_on()
            reloads(agent, 2)
            works(agent, faulty)
        load.holds()
        bounded(before, uses(agent))
    all_accounted(agent, load)


@pytest.mark.parametrize("spare", [2])
def test_a_supervisor_without_descriptors(faulty: Rig, start: Start, spare: int) -> None:
    """It cannot start processes or read files: what is in force stays, requests get an error, and it does not end."""
    with start() as agent:
        before, generation = uses(agent), agent.ask("status")["generation"]
        assert agent.process is not None
        with Load(faulty) as load:
            with limited(agent.process.pid, resource.RLIMIT_NOFILE, descriptors(agent.process.pid, spare)):
                agent.write_app("qq", {"payment": ["qq1.example"]})
                time.sleep(SHORT)
                assert not agent.ended(), agent.errors
                load.goes_on()
            until(
                lambda: agent.ask("why", subject="qq1.example")["verdict"] == "blocked", "the change is in force by itself", 40
            )
            assert agent.ask("status")["generation"] > generation
            reloads(agent, 2)
            works(agent, faulty)
        load.holds()
        bounded(before, uses(agent), fds=6)
    all_accounted(agent, load)


@pytest.mark.parametrize("more", [0])
def test_a_resolver_without_memory(faulty: Rig, start: Start, more: int) -> None:
    with start() as agent:
        with Load(faulty) as load:
            (victim, _) = pids(agent, "resolver")
            with limited(victim, resource.RLIMIT_AS, octets(victim) + more):
                time.sleep(SHORT)
                load.goes_on()
                reloads(agent, 1)
            load.goes_on()
            reloads(agent, 2)
            works(agent, faulty)
        load.holds(silent=len(load.questions) // 100)  # of the one that has to be started again
    all_accounted(agent, load)


def _memory_group() -> tuple[Path, str] | None:
    """(a new control group, its file with the memory limit), for version 1 or 2 of cgroups; None if none can be made here."""
    for place, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(f"{place}/embargo-test-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / limit).exists():
                return group, limit
            group.rmdir()
    return None


@contextlib.contextmanager
def short_of_memory(pid: int, more: int) -> Iterator[None]:
    """Limit the memory of a process to `more` octets than it has now; the kernel kills it when it needs more.

    Root in a container may be unable to make a control group. Then the process gets what the kernel sends to a process
    that lacks memory: SIGKILL (mm/oom_kill.c). The agent sees no difference, so the test runs everywhere.
    """
    found = _memory_group()
    if found is None:
        os.kill(pid, signal.SIGKILL)
        yield
        return
    group, limit = found
    try:
        (group / limit).write_text(str(more))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), "nobody is in the group")
        group.rmdir()


def test_a_resolver_that_the_kernel_kills_for_lack_of_memory(faulty: Rig, start: Start) -> None:
    with start() as agent:
        with Load(faulty) as load:
            (victim, _) = pids(agent, "resolver")
            with short_of_memory(victim, 256 << 10):
                until(lambda: victim not in pids(agent, "resolver"), "the kernel has killed it", 40)
            assert "ended with status -9" in agent.errors
            load.goes_on()
            reloads(agent, 2)
            works(agent, faulty)
        load.holds(silent=len(load.questions) // 100)  # of the one that has to be started again
    all_accounted(agent, load)


def test_a_guardian_without_memory(faulty: Rig, start: Start) -> None:
    with start() as agent:
        with Load(faulty) as load:
            (victim,) = pids(agent, "guardian")
            with limited(victim, resource.RLIMIT_AS, octets(victim)):
                agent.write_app("qq", {"payment": [f"198.51.{n // 250}.{n % 250}" for n in range(5_000)]})
                agent.ask("reload", seconds=90.0)
                load.goes_on()
            reloads(agent, 2)
            works(agent, faulty)
        load.holds()
    all_accounted(agent, load)
