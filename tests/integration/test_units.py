"""Processes in systemd units of their own: a tool of systemd listens on the sockets and starts the real programs.

That systemd kills the remaining processes of a unit is tested in containers.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from embargo.daemon.compile.orders import Match
from embargo.daemon.process import channel, spawn
from embargo.daemon.process.child import Child, ChildError
from embargo.daemon.process.outbox import Ledger
from embargo.daemon.process.spawn import Process, Spawn, Units
from embargo.daemon.resolve.orders import ORDERS
from embargo.daemon.supervise import workshop
from support.agent import Agent
from tools.rig import until

pytestmark = pytest.mark.root  # agent and listener run as one user here, and the resolver changes to another

SOON = 20.0


@pytest.fixture
def units(tmp_path: Path) -> Iterator[str]:
    """A directory with sockets on which systemd-socket-activate starts resolvers and compilers."""
    directory = tmp_path / "units"
    directory.mkdir()
    started = []
    for module in ("resolver", "compiler"):
        command = ["systemd-socket-activate", "--accept", "--seqpacket", f"--listen={directory}/{module}",
                   sys.executable, "-P", "-m", "embargo.daemon.process.handover", module]  # fmt: skip
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))
        until(partial(listening, f"{directory}/{module}"), f"the socket of the {module} takes connections")
    yield str(directory)
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listening(path: str) -> bool:
    """Whether a socket listens at this path, which exists a moment before (proc_pid_net(5))."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[-1] == path and line[3] == "00010000" for line in lines)


def parent(pid: int) -> int:
    """The parent of a process; for a worker, its warden."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_gone(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


class Held:
    """A resolver that waits for its first order, and the agent's end of its channel."""

    def __init__(self) -> None:
        self.ours, theirs = channel.pair()
        page = Ledger.make()
        self.fds = [theirs.detach(), page]

    async def begin(self, begin: Spawn) -> Process:
        process = await begin("resolver", self.fds)
        for fd in self.fds:
            os.close(fd)
        return process


def test_pid_user_and_end_of_a_started_process_are_reported(units: str) -> None:
    async def run() -> None:
        held = Held()
        process = await held.begin(Units(units))
        assert process.uid == os.geteuid()
        assert "handover" in Path(f"/proc/{process.pid}/cmdline").read_text()
        warden = parent(process.pid)
        held.ours.close()  # as the agent does to end it
        assert await asyncio.wait_for(process.wait(), SOON) == 0
        assert await process.wait() == 0
        until(lambda: is_gone(warden), "its warden has ended too")

    asyncio.run(run())


def test_the_exit_status_of_a_failed_process_is_reported(units: str) -> None:
    async def run() -> None:
        with open(os.devnull, "r+b") as nothing:  # instead of its order
            process = await Units(units)("compiler", [nothing.fileno()] * 3)
            assert await asyncio.wait_for(process.wait(), SOON) == 1

    asyncio.run(run())


@pytest.mark.parametrize("stopped", [False, True], ids=["well", "stopped"])
def test_kill_ends_the_warden_whatever_its_state(units: str, stopped: bool) -> None:
    """This requires neither a capability nor the same user; the agent has neither."""

    async def run() -> None:
        held = Held()
        process = await held.begin(Units(units))
        warden = parent(process.pid)
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(warden, signal.SIGSTOP)
        process.kill()
        until(lambda: is_gone(warden), "its warden has ended")
        os.kill(process.pid, signal.SIGKILL)  # as systemd does then
        assert await asyncio.wait_for(process.wait(), SOON) == -signal.SIGKILL
        process.kill()  # has no effect
        held.ours.close()

    asyncio.run(run())


def test_the_warden_is_killed_when_the_agent_dies(units: str) -> None:
    text = f"""
import asyncio, os, sys
from embargo.daemon.process import channel
from embargo.daemon.process.outbox import Ledger
from embargo.daemon.process.spawn import Units
async def run():
    ours, theirs = channel.pair()
    process = await Units({units!r})("resolver", [theirs.fileno(), Ledger.make()])
    print(process.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        warden = parent(pid)
        agent.kill()
    until(lambda: is_gone(warden), "its warden has ended")
    until(lambda: is_gone(pid), "the resolver has ended too")


def test_nothing_is_started_for_an_agent_that_has_gone_meanwhile(units: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    life, its_life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held = Held()
    with ours, life, contextlib.closing(held.ours), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        ours.shutdown(socket.SHUT_WR)
        connection.connect(f"{units}/resolver")
        with theirs, its_life:
            socket.send_fds(connection, [b"!"], [theirs.fileno(), its_life.fileno(), *held.fds])
        for fd in held.fds:
            os.close(fd)
        assert select.select([ours], [], [], SOON)[0]
        with suppress(ConnectionResetError):
            assert ours.recv(64) == b"", "no pid, so nothing was started"
        assert select.select([held.ours], [], [], SOON)[0], "the descriptors are closed"


def test_a_missing_socket_is_reported(tmp_path: Path) -> None:
    child = Child("resolver 0", "resolver", ORDERS, lambda child, told, lost: None, str(tmp_path), Units(str(tmp_path)))
    with pytest.raises(ChildError, match=rf"^resolver 0 cannot be started: {tmp_path}/resolver: No such file or directory$"):
        asyncio.run(child.start())


def test_a_process_that_does_not_start_is_reported(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(f"{tmp_path}/resolver")
        sock.listen()

        async def run() -> None:
            start = asyncio.create_task(child.start())
            connection, _ = await asyncio.to_thread(sock.accept)
            connection.close()  # as systemd does when the program cannot be started
            await start

        child = Child("resolver 0", "resolver", ORDERS, lambda child, told, lost: None, str(tmp_path), Units(str(tmp_path)))
        with pytest.raises(ChildError, match=r"systemd did not start the process; see journalctl -u 'embargo-resolver@\*'$"):
            asyncio.run(run())


def test_a_compiler_runs_with_idle_priority_at_first(units: str, tmp_path: Path) -> None:
    """Later it returns to normal priority, which the sandbox of a test may forbid."""
    os.mkfifo(tmp_path / "order")

    async def run() -> None:
        with open(tmp_path / "order", "r+b", buffering=0) as fifo, open(os.devnull, "r+b", buffering=0) as nothing:
            process = await Units(units)("compiler", [fifo.fileno(), nothing.fileno(), nothing.fileno()])
            until(lambda: os.sched_getscheduler(process.pid) == os.SCHED_IDLE, "it has idle priority")
            fifo.write(b"}")
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()

    asyncio.run(run())


NONSENSE = [
    b"", b"5", b"[]", b"{}", b'{"errors": 5}', b'{"errors": [5]}', b'{"errors": [["a", "b", "c", "d"]]}', b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_invalid_answer_of_a_compiler_is_a_temporary_failure(answer: bytes) -> None:
    class Ended:
        pid = uid = 0

        async def wait(self) -> int:
            return 0

        def kill(self) -> None: ...

    class Odd:
        gives_user = False

        async def __call__(self, name: str, fds: Sequence[int]) -> Process:
            os.write(fds[1], answer)
            return Ended()

    with pytest.raises(workshop.TemporaryError, match="it ended with status 0"):
        asyncio.run(workshop.run(Odd(), Match("", "", (), "x")))


@pytest.fixture
def deaf_units(tmp_path: Path) -> Iterator[str]:
    """A directory with sockets that accept connections but start nothing."""
    directory = tmp_path / "units"
    directory.mkdir()
    with contextlib.ExitStack() as held:
        for module in ("resolver", "compiler"):
            sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.bind(f"{directory}/{module}")
            sock.listen()
        yield str(directory)


def test_a_process_that_does_not_start_in_time_is_given_up(deaf_units: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "START_SECONDS", 0.2)
    with pytest.raises(OSError, match="systemd did not start the process"):
        asyncio.run(Units(deaf_units)("resolver", []))


def test_a_compiler_that_does_not_end_in_time_is_killed(units: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workshop, "COMPILE_SECONDS", 0.5)
    os.mkfifo(tmp_path / "order")

    class Waiting(Units):
        """Its compiler waits for ever for the order."""

        async def __call__(self, name: str, fds: Sequence[int]) -> Process:
            with open(tmp_path / "order", "r+b", buffering=0) as fifo:
                processes.append(await super().__call__(name, [fifo.fileno(), *fds[1:]]))
            return processes[0]

    processes: list[Process] = []
    with pytest.raises(workshop.TemporaryError, match="did not end in"):
        asyncio.run(workshop.run(Waiting(units), Match("", "", (), "x")))
    os.kill(processes[0].pid, signal.SIGKILL)  # what systemd does


MESSAGES: list[tuple[list[bytes], int | None]] = [
    ([b"7 0", b"3"], 3), ([b"7 0", b"-15"], -15), ([b"7 0", b"rubbish"], -9), ([b"7 0"], -9), ([b"7"], None),
]  # fmt: skip


@pytest.mark.parametrize(("words", "status"), MESSAGES)
def test_messages_of_a_warden_are_checked(tmp_path: Path, words: list[bytes], status: int | None) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(f"{tmp_path}/resolver")
        sock.listen()

        async def run() -> int | None:
            start = asyncio.create_task(Units(str(tmp_path))("resolver", []))
            connection, _ = await asyncio.to_thread(sock.accept)
            _, fds, _, _ = await asyncio.to_thread(socket.recv_fds, connection, 1, 8)
            connection.close()
            with socket.socket(fileno=fds[0]) as leash:
                for word in words:
                    leash.send(word)
            os.close(fds[1])
            with suppress(OSError):
                return await (await start).wait()
            return None

        assert asyncio.run(run()) == status


def test_an_agent_can_be_stopped_while_it_waits_for_a_unit(tmp_path: Path, deaf_units: str) -> None:
    agent = Agent(tmp_path)
    agent.options = [f"--units={deaf_units}"]
    agent.write_config(state={"user": "root"})
    agent.start(wait=False)
    until((tmp_path / "state" / "generations" / ".new").exists, "it waits for a compiler")
    assert agent.stop() == 0


@pytest.mark.parametrize("damaged", [False, True], ids=["first", "damaged"])
def test_an_agent_without_its_units_fails_and_may_be_restarted(tmp_path: Path, damaged: bool) -> None:
    """systemd would not restart it after status 2 (RestartPreventExitStatus=)."""
    agent = Agent(tmp_path)
    agent.write_config(state={"user": "root"})
    if damaged:
        agent.start()
        agent.stop()
        (tmp_path / "state/generations/current/policy.img").write_bytes(b"of another version")
    agent.options = [f"--units={tmp_path}/none"]
    agent.start(wait=False)
    until(agent.ended, "it has given up")
    assert agent.process is not None
    assert agent.process.returncode == 1
    assert f"{tmp_path}/none/compiler: No such file or directory" in agent.errors
    assert "stays in force" not in agent.errors


def test_an_agent_whose_resolvers_and_compilers_are_units(tmp_path: Path, units: str) -> None:
    agent = Agent(tmp_path)
    agent.options = [f"--units={units}"]
    agent.write_config(dns={"workers": 2}, state={"user": "root"})
    agent.start()
    try:
        assert "status: NXDOMAIN" in agent.dig("alipay.example")
        assert "alipay/payment.list:1" in agent.cli("why", "alipay.example").stdout
        workers = agent.answer("status")["workers"]
        assert len({parent(pid) for pid in workers}) == 2
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(set(agent.answer("status")["workers"]) - {workers[0]}) == 2, "another is started")
        assert "ended with status -9" in agent.errors
        agent.write_app("alipay", {"payment": ["new.example"]})
        agent.cli("reload")
        assert "status: NXDOMAIN" in agent.dig("new.example")
        agent.write_app("alipay", {"payment": ["no name"]})
        agent.cli("reload")
        assert "payment.list:1" in agent.cli("status").stdout
    finally:
        assert agent.stop() == 0
    assert "Traceback" not in agent.errors


def test_an_agent_warns_if_its_resolvers_run_as_another_user_than_configured(tmp_path: Path, units: str) -> None:
    """It starts anyway: after an upgrade, a gateway without DNS would be worse."""
    agent = Agent(tmp_path)
    agent.options = [f"--units={units}"]
    agent.write_config(state={"user": "nobody"})
    agent.start()
    try:
        assert (
            "resolver 0 runs as user 0, set by its unit, but [state] user is user 65534; set both to the same user"
            in agent.errors
        )
        assert agent.blocked("alipay.example")
    finally:
        agent.stop()
