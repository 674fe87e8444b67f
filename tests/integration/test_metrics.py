"""Metrics of a running agent as Prometheus scrapes them, and `embargo top`."""

import contextlib
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from embargo import records
from embargo.daemon.ask import control, metrics
from embargo.daemon.ask.orders import Status
from support.agent import Agent, free_port, running
from tools.rig import until

_LINE = re.compile(r'embargo_[a-z_]+(?:\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})? -?\d[\d.e+-]*')


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def agent(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("metrics"), metrics={"listen": f"127.0.0.1:{port}"}) as started:
        yield started


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = answer.read().decode().splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(_LINE.fullmatch(line) for line in samples)
    names = {re.split(r"[{ ]", line)[0] for line in samples}
    typed = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE ")}
    assert names <= set(typed)
    assert {name for name, kind in typed.items() if kind == "counter"} == {name for name in typed if name.endswith("_total")}
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in samples}


def test_attempts_are_counted_by_app_and_function_and_by_no_unbounded_label(agent: Agent, port: int) -> None:
    key = 'embargo_attempts_total{app="alipay",function="payment"}'
    before = scraped(port)
    for number in range(3):
        assert agent.blocked(f"n{number}.alipay.example")
    until(lambda: scraped(port)[key] == before[key] + 3, "the attempts are counted")
    after = scraped(port)
    assert after['embargo_queries_total{transport="udp"}'] == before['embargo_queries_total{transport="udp"}'] + 3
    assert after["embargo_generation"] == agent.answer("status")["generation"]
    assert not any("n0.alipay" in name or '127.0.0.1"' in name for name in after)


def test_connections_that_ask_nothing_give_way(agent: Agent, port: int) -> None:
    """As many as there may be were open for two seconds, and everybody else was turned away."""
    with contextlib.ExitStack() as stack:
        silent = []
        for family, address, most in (
            (socket.AF_UNIX, f"{agent.root}/runtime/control.sock", control.MAX_CLIENTS),
            (socket.AF_INET, ("127.0.0.1", port), metrics.MAX_CLIENTS),
        ):
            for _ in range(most):
                silent.append(stack.enter_context(socket.socket(family)))
                silent[-1].connect(address)
        for _ in range(3):
            assert agent.ask("status")["generation"]
            assert scraped(port)


def test_a_number_has_all_its_digits(agent: Agent) -> None:
    """With six digits, a counter of ten million stood still for ten queries."""
    status = agent.answer("status")
    status["uptime"] = 1234567.8
    status["counters"]["queries_udp"] = 12_345_678
    lines = metrics.text(records.decode(Status, status)).splitlines()
    assert 'embargo_queries_total{transport="udp"} 12345678' in lines
    assert "embargo_uptime_seconds 1234567.8" in lines
    assert "embargo_reload_success 1" in lines


@pytest.mark.usefixtures("agent")
def test_other_requests_are_refused_and_garbage_gets_no_answer(port: int) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", data=b"x", timeout=10)
    for garbage in (b"\0" * 20_000, b"GET /metrics", b""):
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(64) == b""
    assert scraped(port)


def test_a_port_in_use_is_an_error_at_the_start(agent: Agent, port: int) -> None:
    other = Agent(agent.root / "other")
    other.write_config(metrics={"listen": f"127.0.0.1:{port}"})
    assert f"metrics.listen: 127.0.0.1, port {port}: Address already in use" in other.cli("run", status=1).stderr
    other.write_config(metrics={"listen": "lan0"})
    assert 'as in "127.0.0.1:9153"' in other.cli("check", status=2).stdout


def test_top_shows_the_most_frequent_attempts(agent: Agent) -> None:
    for _ in range(5):
        agent.blocked("top.alipay.example")
    until(lambda: ["top.alipay.example", 5] in agent.answer("top")["names"], "they are in the log", 30)
    answer = agent.answer("top", "--since", "1h", "-n", "1")
    assert answer["apps"][0][0] == "alipay/payment"
    assert answer["clients"][0][0] == "127.0.0.1"
    assert len(answer["names"]) == 1
    text = agent.cli("top").stdout
    assert re.search(r"attempts in the last 10m\n\nAPPS +ATTEMPTS\nalipay/payment +\d+\n\nCLIENTS", text)
    assert "\033" not in text
