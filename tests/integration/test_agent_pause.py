"""`embargo pause` and `resume` against a running agent, seen by clients."""

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.supervise.pausing import Pauses
from support.agent import Agent, running
from support.matrix import ACCELERATORS
from tools.rig import until

LISTED = "pay.alipay.example"


@pytest.fixture(scope="module", params=ACCELERATORS)
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBARGO_ACCELERATOR", request.param)
        with running(tmp_path_factory.mktemp("pause")) as started:
            yield started


@pytest.fixture(autouse=True)
def afterwards(agent: Agent) -> Iterator[None]:
    yield
    agent.cli("resume", status=None)


def blocked(agent: Agent, name: str, client: str = "127.0.0.1") -> bool:
    found = agent.rcode("-b", client, name, "A")
    assert found in ("NXDOMAIN", "SERVFAIL")  # nobody is there to ask
    return found == "NXDOMAIN"


def test_a_paused_app_passes_and_the_others_do_not(agent: Agent) -> None:
    assert blocked(agent, LISTED)
    assert "paused: alipay until 20" in agent.cli("pause", "alipay", "1h").stdout
    assert not blocked(agent, LISTED)
    assert blocked(agent, "pay.qq.example")
    status = agent.answer("status")
    assert [(each["app"], each["client"]) for each in status["pauses"]] == [("alipay", "")]
    assert status["uncovered"][0].startswith("alipay, paused until 20")
    assert "PAUSED\n  alipay until 20" in agent.cli("status").stdout
    assert "PAUSED: payment, telemetry" in agent.cli("apps").stdout
    why = agent.answer("why", LISTED, status=1)
    assert (why["verdict"], why["paused"][0]["app"]) == ("passed", "alipay")
    text = agent.cli("why", LISTED, status=1).stdout
    assert re.search(r" is not blocked: app alipay is paused until 20\d\d-[-\d]+ [:\d]+ UTC\n", text)
    assert "  would be blocked by alipay/payment.list:1, alipay.example\n" in text
    assert "  paused: alipay until 20" in text
    assert agent.cli("resume").stdout == "resumed\n"
    assert blocked(agent, LISTED)
    pause, resume = agent.events("policy")[-2:]
    assert (pause["verb"], pause["entry"], pause["uid"]) == ("pause", "alipay", 0)
    assert pause["until"] == status["pauses"][0]["until"]
    assert (resume["verb"], resume["entry"]) == ("resume", "alipay")


def test_a_pause_of_everything_for_one_client_applies_to_no_other(agent: Agent) -> None:
    agent.cli("pause", "1h", "--client", "127.0.0.2")
    for name in (LISTED, "pay.qq.example"):
        for _ in range(3):  # the replies to others are remembered by now, and must not be his
            assert blocked(agent, name)
            assert not blocked(agent, name, "127.0.0.2")
    assert agent.cli("why", LISTED).returncode == 0
    why = agent.answer("why", LISTED, "--client", "127.0.0.2", status=1)
    assert why["paused"] == agent.answer("status")["pauses"]


def test_pauses_of_apps_for_clients_add_up_and_end_one_by_one(agent: Agent) -> None:
    agent.cli("pause", "alipay", "1h", "--client", "127.0.0.0/30")
    agent.cli("pause", "qq", "--client", "127.0.0.2", "1h")
    assert [blocked(agent, name, "127.0.0.2") for name in (LISTED, "pay.qq.example")] == [False, False]
    assert [blocked(agent, name, "127.0.0.3") for name in (LISTED, "pay.qq.example")] == [False, True]
    assert [blocked(agent, name, "127.0.0.4") for name in (LISTED, "pay.qq.example")] == [True, True]
    left = agent.cli("resume", "alipay").stdout
    assert left.startswith("resumed\nstill paused: qq for 127.0.0.2 until 20")
    assert [blocked(agent, name, "127.0.0.2") for name in (LISTED, "pay.qq.example")] == [True, False]


def test_a_pause_does_not_admit_a_client_that_the_acl_refuses(agent: Agent) -> None:
    agent.write_config(dns={"allow_from": ["127.0.0.1"]})
    agent.cli("reload")
    try:
        agent.cli("pause", "1h", "--client", "127.0.0.2")
        assert agent.rcode("-b", "127.0.0.2", "+time=1", LISTED) == ""
        assert blocked(agent, LISTED)
    finally:
        agent.write_config(dns={"allow_from": ["local"]})
        agent.cli("reload")


def test_an_allowed_and_a_block_listed_name_under_a_pause_of_everything(agent: Agent) -> None:
    agent.cli("block", "local.test")
    assert blocked(agent, "local.test")
    agent.cli("pause", "1h")
    assert not blocked(agent, "local.test")
    agent.cli("resume")
    assert blocked(agent, "local.test")
    agent.cli("forget", "local.test")


def test_a_pause_ends_by_itself(agent: Agent) -> None:
    agent.cli("pause", "alipay", "2s")
    assert not blocked(agent, LISTED)
    until(lambda: blocked(agent, LISTED), "the pause is over")
    assert agent.answer("status")["pauses"] == []
    event = until(lambda: [e for e in agent.events("policy") if e.get("why")], "the end is logged")[-1]
    assert (event["verb"], event["entry"], event["why"]) == ("resume", "alipay", "its time was over")


def test_a_second_pause_of_the_same_app_replaces_the_first(agent: Agent) -> None:
    agent.cli("pause", "alipay", "1s")
    agent.cli("pause", "alipay", "1h")
    time.sleep(1.5)
    assert not blocked(agent, LISTED)
    assert len(agent.answer("status")["pauses"]) == 1


def test_a_pause_survives_a_change_of_lists_and_a_rollback(agent: Agent) -> None:
    agent.cli("pause", "alipay", "1h")
    agent.write_app("qq", {"payment": ["pay.qq.example", "new.qq.test"]})
    agent.cli("reload")
    assert blocked(agent, "new.qq.test")
    assert not blocked(agent, LISTED)
    agent.cli("rollback")
    assert not blocked(agent, LISTED)
    agent.cli("resume")
    assert blocked(agent, LISTED)


def test_a_pause_makes_no_generation_and_compiles_nothing(agent: Agent) -> None:
    before = agent.answer("status")["generation"]
    agent.cli("pause", "alipay", "1h")
    assert agent.answer("status")["generation"] == before
    time.sleep(0.6)  # longer than a changed file waits to be read
    assert agent.answer("status")["generation"] == before


def test_a_pause_survives_a_kill_and_ends_at_its_time(agent: Agent) -> None:
    agent.cli("pause", "alipay", "1h")
    agent.cli("pause", "qq", "1s")
    agent.stop(signal.SIGKILL)
    time.sleep(1.0)
    agent.start()
    assert not blocked(agent, LISTED)
    assert blocked(agent, "pay.qq.example"), "it has expired meanwhile"
    assert [each["app"] for each in agent.answer("status")["pauses"]] == ["alipay"]
    event = agent.events("policy")[-1]
    assert (event["verb"], event["entry"], event["why"]) == ("resume", "qq", "its time was over")


def test_pauses_that_expired_before_a_start_are_reported_once(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "pauses.json").write_text(json.dumps([["alipay", "", now - 1, 60.0, 0], ["qq", "", now + 60, 60.0, 0]]))
    for expired in (["alipay"], []):
        stored = Pauses(str(tmp_path), lambda: 0.0)
        assert [pause.app for pause in stored.load()] == expired
        assert [pause.app for pause in stored.all] == ["qq"]


def test_with_a_damaged_file_nothing_is_paused_and_that_is_logged(agent: Agent) -> None:
    agent.cli("pause", "1h")
    agent.stop()
    path = agent.root / "state/local/pauses.json"
    for damaged in (
        path.read_text()[:-5],
        json.dumps([["alipay", "nobody", 1e12, 60, 0]]),
        json.dumps([["", "", 1e12, 1e12, 0]]),
    ):
        path.write_text(damaged)
        agent.start()
        assert blocked(agent, LISTED)
        assert "pauses.json" in agent.errors
        assert "all pauses have ended" in agent.errors
        agent.stop()
    path.unlink()
    agent.start()


def test_setting_the_clock_back_makes_no_pause_longer(agent: Agent) -> None:
    agent.cli("pause", "1h")
    agent.stop()
    path = agent.root / "state/local/pauses.json"
    [[app, client, until_, _, uid]] = json.loads(path.read_text())
    path.write_text(json.dumps([[app, client, until_ + 1e6, 1.0, uid]]))
    agent.start()
    until(lambda: blocked(agent, LISTED), "it ends after its duration")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("pause", "alipay"), 2, "DURATION is missing; write it last, as in 90s"),
        (("pause", "alipay", "1y"), 2, '"1y" is not a duration; write 90s'),
        (("pause", "alipai", "1h"), 2, 'no app "alipai"; did you mean "alipay"?'),
        (("pause", "1h", "--client", "printer"), 2, "name an address or a network"),
        (("pause", "a", "b", "1h"), 2, "expected an app and a duration"),
        (("resume",), 1, "nothing is paused"),
        (("resume", "qq"), 1, "qq is not paused"),
    ],
)
def test_an_invalid_request_is_refused_with_a_hint(agent: Agent, words: tuple[str, ...], status: int, text: str) -> None:
    assert text in agent.cli(*words, status=status).stderr


def test_on_a_full_disk_no_pause_begins_and_all_end(agent: Agent) -> None:
    agent.cli("pause", "qq", "3s")
    directory = agent.root / "state/local"
    (directory / ".pauses.json").mkdir()  # like a full disk: the file cannot be written
    try:
        assert "pauses.json" in agent.cli("pause", "1h", status=1).stderr
        assert blocked(agent, LISTED)
        until(lambda: blocked(agent, "pay.qq.example"), "it ends at its time")
        assert agent.answer("status")["pauses"] == []
        assert "are in force again" in agent.errors
    finally:
        (directory / ".pauses.json").rmdir()


def test_a_pause_ends_although_no_generation_can_be_stored(agent: Agent) -> None:
    """As on a disk that became read-only. The end used to be undone and retried for ever."""
    agent.cli("pause", "qq", "2s")
    (agent.root / "state/generations/.current").mkdir()  # like a read-only disk: the link cannot be made
    try:
        until(lambda: blocked(agent, "pay.qq.example"), "it ends at its time")
        assert agent.answer("status")["pauses"] == []
        agent.cli("pause", "qq", "1h")
        assert not blocked(agent, "pay.qq.example")
    finally:
        (agent.root / "state/generations/.current").rmdir()
