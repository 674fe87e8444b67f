"""The agent under a service manager: notifications, stored sockets, and restarts that lose no query."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.process import notify
from support.agent import Agent, free_port
from support.manager import Manager
from tools.rig import until


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(Agent(tmp_path))
    yield made
    if not made.agent.ended():
        made.agent.stop()
    made.close()


def query(number: int) -> bytes:
    """A query for a blocked name with this id."""
    return number.to_bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + b"\3www\6alipay\7example\0\0\1\0\1"


def ask_all(port: int, count: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", port))
    for number in range(count):
        sock.send(query(number))
    return sock


def answered(sock: socket.socket, count: int) -> set[int]:
    found: set[int] = set()
    with sock, contextlib.suppress(TimeoutError):
        while len(found) < count:
            found.add(int.from_bytes(sock.recv(512)[:2]))
    return found


def test_listening_sockets_are_stored_by_name(manager: Manager) -> None:
    manager.agent.write_config(dns={"workers": 2})
    manager.start()
    port = manager.agent.port
    assert [name for name, _ in manager.stored] == [f"dns-127.0.0.1-{port}"] * 4
    kinds = [socket.socket(fileno=os.dup(fd)) for _, fd in manager.stored]
    assert sorted(sock.type for sock in kinds) == [socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_DGRAM]
    for sock in kinds:
        sock.close()
    assert not notify.inherited(), "stored sockets are adopted once"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_queries_that_arrive_while_no_agent_runs_are_answered_by_the_next_run(
    manager: Manager, how: signal.Signals, workers: int
) -> None:
    agent = manager.agent
    agent.write_config(dns={"workers": workers})
    manager.start()
    children = agent.children()
    agent.stop(how)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its children have ended too")
    manager.listen()
    waiting = ask_all(agent.port, 200)
    with socket.create_connection(("127.0.0.1", agent.port), 5) as stream:  # in the backlog
        stream.settimeout(10)
        stream.sendall(len(query(7)).to_bytes(2) + query(7))
        manager.start()
        assert len(stream.recv(512)) > 2
    assert answered(waiting, 200) == set(range(200))
    assert len(manager.stored) == 2 * max(workers, 1), "none is stored twice"


def test_with_fewer_or_more_workers_every_stored_socket_is_read(manager: Manager) -> None:
    agent = manager.agent
    for workers in (3, 1, 2):
        agent.write_config(dns={"workers": workers})
        manager.start()
        for _ in range(5):  # whichever socket a client's port leads to
            assert answered(ask_all(agent.port, 20), 20) == set(range(20))
        agent.stop()
        manager.listen()
        assert len(manager.stored) == 6, "queries may wait in any of them"


def test_the_sockets_of_a_removed_address_are_closed(manager: Manager) -> None:
    agent = manager.agent
    manager.start()
    agent.stop()
    old = agent.port
    agent.port = free_port()
    agent.write_config(dns={"listen": [f"127.0.0.1:{agent.port}"]})
    manager.start()
    manager.listen()
    assert {name for name, _ in manager.stored} == {f"dns-127.0.0.1-{agent.port}"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", old))


def test_the_sockets_of_a_socket_unit_are_used(manager: Manager) -> None:
    """They lack SO_REUSEPORT, so all workers read the same ones. Unusable sockets are closed and logged."""
    agent = manager.agent
    agent.write_config(dns={"workers": 2})
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        sock = socket.socket(socket.AF_INET, kind)
        sock.bind(("127.0.0.1", agent.port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        manager.stored.append(("embargo.socket", sock.detach()))
    stray = socket.socketpair()
    manager.stored.append(("stray", stray[0].detach()))
    waiting = ask_all(agent.port, 20)
    manager.start()
    assert answered(waiting, 20) == set(range(20))
    assert "127.0.0.1" in agent.dig("+tcp", "localhost")
    assert "closed the socket stray" in agent.errors
    stray[1].close()


def test_descriptors_for_another_process_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert notify.inherited() == []
    assert "LISTEN_FDS" not in os.environ, "nor are they taken by a child"


def test_the_watchdog_is_notified_only_while_queries_are_answered(manager: Manager) -> None:
    manager.start(WATCHDOG_USEC="900000")
    until(lambda: manager.listen().count("WATCHDOG=1") >= 3, "the watchdog is notified repeatedly")
    workers = manager.agent.children()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: "no resolver answers" in manager.agent.errors, "the failure is logged")
        manager.listen()
        before = manager.received.count("WATCHDOG=1")
        time.sleep(1.0)
        assert manager.listen().count("WATCHDOG=1") == before
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    until(lambda: manager.listen().count("WATCHDOG=1") > before, "it is notified again", 20)


def test_without_a_watchdog_there_is_no_notification(manager: Manager) -> None:
    manager.start()
    assert "WATCHDOG=1" not in manager.listen(1.5)


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [({}, 0.0), ({"WATCHDOG_USEC": "3000000"}, 3.0), ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0)],
)
def test_the_interval_of_the_watchdog(environment: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog() == seconds


def test_names_of_stored_sockets_are_valid_for_systemd() -> None:
    assert notify.stored_name("dns", "fe80::1%lan0", 53) == "dns-fe80..1%lan0-53"
    assert len(notify.stored_name("a" * 300)) == 255
