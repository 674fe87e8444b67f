"""Faults around an agent: killed and hung workers, a removed event log, very large settings."""

import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from embargo import accelerator
from embargo.daemon.process.outbox import MAX_MISSING
from embargo.daemon.resolve.resolver import MAX_FILE
from support.agent import Agent, free_port, running
from support.playbook import query
from tools.rig import until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running(tmp_path, dns={"workers": 2}) as started:
        yield started


def test_a_hosts_file_larger_than_a_message_is_in_force(agent: Agent) -> None:
    hosts = agent.root / "hosts"
    hosts.write_text("".join(f"192.0.2.{n % 250} host{n}.lan.test\n" for n in range(8000)))
    agent.write_config(dns={"hosts": [str(hosts)]})
    agent.cli("reload")
    assert "192.0.2.249" in agent.dig("host7999.lan.test")
    assert agent.blocked("alipay.example")


def test_attempts_that_a_killed_worker_had_not_sent_are_counted_as_lost(agent: Agent) -> None:
    agent.write_config(dns={"block_mode": "nodata"})  # a new generation, so that its events can be told apart
    agent.cli("reload")
    for _ in range(30):
        agent.rcode("counted.alipay.example")
    generation = agent.answer("status")["generation"]
    for worker in agent.answer("status")["workers"]:
        os.kill(worker, signal.SIGKILL)
    until(lambda: len(agent.answer("status")["workers"]) == 2, "both workers run again")

    def counted_or_lost() -> int:
        mine = [event for event in agent.events("dns") if event["generation"] == generation]
        return sum(int(event["count"]) for event in mine) + sum(int(event.get("lost", 0)) for event in agent.events())

    agent.rcode("next.alipay.example")
    until(lambda: counted_or_lost() == 31, "every attempt is counted or counted as lost")


@pytest.mark.parametrize(
    "page", [b"", bytes([255]) * 4096, bytes(8) + bytes([255]) * 8], ids=["none", "all ones", "more written"]
)
def test_a_damaged_ledger_of_a_worker_has_no_effect_on_others(agent: Agent, page: bytes) -> None:
    agent.rcode("counted.alipay.example")
    for number in range(2):
        path = agent.root / f"state/ledgers/resolver-{number}"
        os.truncate(path, 0)
        path.write_bytes(page)
    for worker in agent.answer("status")["workers"]:
        os.kill(worker, signal.SIGKILL)
    until(lambda: agent.ended() or agent.answer("status")["worker_restarts"] == 2, "both workers run again")
    assert not agent.ended()
    assert agent.blocked("next.alipay.example")
    lost = agent.answer("status")["events"]["lost"]
    assert lost == (2 * MAX_MISSING if page[:1] == bytes([255]) else 0)


def test_a_worker_cannot_fill_the_disk_or_change_its_account(agent: Agent) -> None:
    workers = agent.answer("status")["workers"]
    assert len(workers) == 2
    for worker in workers:
        of = Path(f"/proc/{worker}")
        (line,) = (line for line in (of / "limits").read_text().splitlines() if line.startswith("Max file size"))
        assert line.split()[3:5] == [str(MAX_FILE)] * 2
        files = [os.readlink(entry) for entry in (of / "fd").iterdir()]
        assert [each for each in files if "/ledgers/" in each and not each.endswith(".written")]
        assert not [each for each in files if each.endswith(".written")]


def test_no_total_falls_when_workers_are_restarted(agent: Agent) -> None:
    def totals() -> list[int]:
        answer = agent.answer("status")
        upstream = answer["upstreams"][0]
        hits = sum(app["hits"] for app in answer["apps"])
        return [hits, answer["counters"]["queries_udp"], answer["cache"]["misses"], upstream["asked"], upstream["failed"]]

    for number in range(20):
        agent.rcode(f"n{number}.alipay.example" if number % 2 else f"n{number}.free.test")
    before = totals()
    assert before[0] == 10
    assert all(before)
    for worker in agent.answer("status")["workers"]:
        os.kill(worker, signal.SIGKILL)
    until(lambda: len(agent.answer("status")["workers"]) == 2, "both workers run again")
    assert totals() == before
    hung = agent.answer("status")["workers"]
    for worker in hung:
        os.kill(worker, signal.SIGSTOP)
    assert totals() == before
    assert sum(app["hits"] for app in agent.answer("apps")) == before[0]
    for worker in hung:
        with suppress(ProcessLookupError):  # on a busy machine the supervisor may have killed it as hung
            os.kill(worker, signal.SIGCONT)  # so that stopping does not wait for it


def test_a_hung_worker_is_killed_and_does_not_prevent_a_reload(agent: Agent) -> None:
    hung = agent.answer("status")["workers"][0]
    os.kill(hung, signal.SIGSTOP)
    (agent.root / "block.list").write_text("hung.test\n")
    agent.cli("reload")
    until(lambda: len(agent.answer("status")["workers"]) == 2, "another worker runs", 20)
    assert hung not in agent.answer("status")["workers"]
    for _ in range(8):  # both workers
        assert agent.blocked("hung.test")


def test_events_have_the_current_generation_and_line(agent: Agent) -> None:
    agent.rcode("moved.alipay.example")
    path = agent.root / "apps/alipay/payment.list"
    path.write_text("# a line\n# another\n" + path.read_text())
    agent.cli("reload")
    generation = agent.answer("status")["generation"]
    agent.rcode("moved.alipay.example")
    until(lambda: [e for e in agent.events("dns") if (e["generation"], e["line"]) == (generation, 3)], "the new line is named")


@pytest.mark.parametrize("taken", ["removed", "moved"])
def test_a_removed_event_log_is_created_again(agent: Agent, taken: str) -> None:
    path = agent.root / "events.jsonl"
    shutil.move(path, agent.root / "old") if taken == "moved" else path.unlink()

    def again() -> bool:
        agent.cli("block", "again.test")
        agent.cli("forget", "again.test")
        return bool(agent.events("policy"))

    until(again, "events are written again")
    assert agent.answer("status")["events"]["lost"] == 0


def test_a_reload_with_an_unwritable_event_log_is_refused(agent: Agent) -> None:
    os.mkfifo(agent.root / "fifo")
    agent.write_config(log={"events": str(agent.root / "fifo")})
    assert f"{agent.root}/fifo" in agent.cli("reload", status=1).stderr
    assert agent.blocked("alipay.example")


def test_the_agent_cannot_be_its_own_upstream(agent: Agent) -> None:
    agent.write_config(dns={"upstream": [f"127.0.0.1:{agent.port}"]})
    assert "is an address of this agent" in agent.cli("reload", status=1).stderr
    assert "is an address of this agent" in agent.cli("check", status=1).stdout


def test_a_specific_address_can_become_a_wildcard(agent: Agent) -> None:
    agent.write_config(dns={"listen": [f"0.0.0.0:{agent.port}"]})
    agent.cli("reload")
    assert agent.answer("status")["listen"] == [f"0.0.0.0:{agent.port}"]
    assert "NXDOMAIN" in agent.dig("@127.0.0.3", "alipay.example")


def test_a_second_agent_cannot_take_the_control_socket(agent: Agent, tmp_path: Path) -> None:
    second = Agent(tmp_path / "second")
    second.write_config(state={"dir": str(tmp_path / "second/state"), "runtime": str(agent.root / "runtime")})
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(30) == 1
    assert "another agent is using" in second.errors
    assert agent.answer("status")["running"] is True


def test_members_of_the_group_can_reach_the_control_socket(agent: Agent) -> None:
    assert (agent.root / "runtime").stat().st_mode & 0o777 == 0o755


def test_entries_are_forgotten_however_they_are_spelled(agent: Agent) -> None:
    agent.cli("block", "B\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.test", "twice.test", "twice.test")
    assert (agent.root / "state/local/block.list").read_text().count("twice.test") == 1
    assert agent.blocked("xn--bcher-kva.test")
    agent.cli("forget", "xn--bcher-kva.test", "TWICE.test")
    assert (agent.root / "state/local/block.list").read_text() == ""
    assert "exceptions are possible in an app's list only" in agent.cli("block", "!x.test", status=2).stderr


def test_directories_that_others_can_write_are_refused(agent: Agent) -> None:
    (agent.root / "apps/qq").chmod(0o777)
    assert f"chmod go-w {agent.root}/apps/qq" in agent.cli("reload", status=1).stderr


def test_with_one_process_unused_sockets_are_closed(tmp_path: Path) -> None:
    with running(tmp_path, dns={"workers": 0}) as agent:
        assert agent.process is not None
        fds = Path(f"/proc/{agent.process.pid}/fd")
        ports = [agent.port, free_port()]
        counts = []
        for number in range(8):
            agent.write_config(dns={"listen": [f"127.0.0.1:{ports[number % 2]}"]})
            agent.cli("reload")
            agent.port = ports[number % 2]
            assert agent.blocked("alipay.example")
            counts.append(len(list(fds.iterdir())))
        assert max(counts[4:]) <= max(counts[:4]) + 2, counts


def test_an_agent_can_be_stopped_during_its_start(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_app("large", {"payment": [f"name{n}.test" for n in range(60_000)]})
    agent.start(wait=False)
    until(lambda: agent.children(), "the compiler runs")
    assert agent.stop() == 0
    assert "ready" not in (tmp_path / "stdout").read_text()
    assert "Traceback" not in agent.errors


@pytest.mark.parametrize("accelerated", ["native", "none"])
def test_no_attempt_of_a_flood_is_lost(tmp_path: Path, accelerated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More names than can be folded at a time, as fast as one client can ask: single and folded records add up."""
    monkeypatch.setenv(accelerator.VARIABLE, accelerated)
    with running(tmp_path) as agent:
        packets = [query(f"n{number}.alipay.example", ident=number % 65536) for number in range(20_000)]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", agent.port))
            for number in range(100_000):
                sock.send(packets[number % len(packets) if number % 5 == 0 else number % 50])
        taken: list[int] = []

        def counted() -> bool:
            taken.append(agent.answer("status")["counters"]["queries_udp"])
            return len(taken) > 1 and taken[-1] == taken[-2] > 10_000

        until(counted, "all answered queries are counted")
        hits = sum(app["hits"] for app in agent.answer("apps"))
        agent.stop()
        events = agent.events()
        noted = sum(event["count"] for event in events if event["event"] == "dns") + sum(
            event.get("lost", 0) for event in events
        )
        assert taken[-1] == hits == noted
