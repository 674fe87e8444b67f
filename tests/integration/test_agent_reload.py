"""Changes while the agent runs: they take effect soon and lose no query; broken ones change nothing."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import Agent, running
from tools.rig import until


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("reload")) as started:
        yield started


def replace(path: Path, text: str) -> None:
    """Replace a file by rename, as editors and configuration management do."""
    temporary = path.with_name(".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def test_an_edited_list_is_in_force(agent: Agent) -> None:
    path = agent.root / "apps/alipay/payment.list"
    with path.open("a") as file:
        file.write("edited.test\n")
    until(lambda: agent.blocked("edited.test"), "the new line is in force")


def test_a_list_replaced_by_rename_is_in_force(agent: Agent) -> None:
    path = agent.root / "apps/alipay/payment.list"
    replace(path, path.read_text() + "renamed.test\n")
    until(lambda: agent.blocked("renamed.test"), "the replaced file is in force")


def test_an_added_list_is_in_force_and_gone_when_it_is_deleted(agent: Agent) -> None:
    path = agent.root / "apps/qq/telemetry.list"
    path.write_text("added.test\n")
    until(lambda: agent.blocked("added.test"), "the added file is in force")
    path.unlink()
    until(lambda: not agent.blocked("added.test"), "the deleted file is out of force")


def test_an_added_app_directory_is_in_force_and_gone_when_it_is_deleted(agent: Agent) -> None:
    directory = agent.write_app("vmate", {"payment": ["app.test"]})
    until(lambda: agent.blocked("app.test"), "the added app is in force")
    shutil.rmtree(directory)
    until(lambda: not agent.blocked("app.test"), "the deleted app is out of force")


def test_a_directory_swapped_by_link_is_in_force(agent: Agent) -> None:
    agent.write_app("one", {"payment": ["one.test"]})
    one = agent.root / "apps/one"
    two = agent.root / "apps/.two"
    shutil.copytree(one, two)
    (two / "payment.list").write_text("two.test\n")
    until(lambda: agent.blocked("one.test"), "the directory is in force")
    one.rename(agent.root / "apps/.one")
    one.symlink_to(".two")
    until(lambda: agent.blocked("two.test") and not agent.blocked("one.test"), "the other directory is in force")
    one.unlink()


def test_an_edited_allow_list_is_in_force(agent: Agent) -> None:
    assert agent.blocked("pay.qq.example")
    (agent.root / "allow.list").write_text("pay.qq.example\n")
    until(lambda: not agent.blocked("pay.qq.example"), "the allow list is in force")
    (agent.root / "allow.list").unlink()
    until(lambda: agent.blocked("pay.qq.example"), "the allow list is out of force")


def test_an_edited_configuration_is_in_force(agent: Agent) -> None:
    assert not agent.blocked("qq.example")
    agent.write_config(policy={"functions": ["payment", "core"]})
    until(lambda: agent.blocked("qq.example"), "the function is on")
    agent.write_config(policy={"functions": ["payment", "telemetry"]})
    until(lambda: not agent.blocked("qq.example"), "the function is off again")


def test_a_changed_block_mode_is_in_force(agent: Agent) -> None:
    agent.write_config(dns={"block_mode": "refused"})
    until(lambda: agent.rcode("alipay.example") == "REFUSED", "the mode is in force")
    agent.write_config(dns={"block_mode": "nxdomain"})
    until(lambda: agent.rcode("alipay.example") == "NXDOMAIN", "the old mode is back")


def test_a_changed_listening_address_is_in_force(agent: Agent) -> None:
    listen = agent.sections["dns"]["listen"]
    agent.write_config(dns={"listen": [*listen, f"127.0.0.2:{agent.port}"]})
    until(lambda: "NXDOMAIN" in agent.dig("@127.0.0.2", "alipay.example"), "the second address answers")
    agent.write_config(dns={"listen": listen})
    until(lambda: agent.answer("status")["listen"] == [f"127.0.0.1:{agent.port}"], "it is gone again")
    assert agent.blocked("alipay.example")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"alipay.example\n\xff\xfea\0l\0", "binary"),
        (b"\xff\xfea\0l\0i\0", "UTF-16"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"good.test\nb\xfcro.test\n", "0xfc is not UTF-8"),
    ],
)
def test_a_broken_list_leaves_the_old_generation_in_force(agent: Agent, broken: bytes, reason: str) -> None:
    path = agent.root / "apps/alipay/payment.list"
    good = path.read_bytes()
    before = agent.answer("status")["generation"]
    path.write_bytes(broken)
    done = agent.cli("reload", status=1)
    assert f"{path}" in done.stderr
    assert reason in done.stderr
    status = agent.answer("status")
    assert (status["generation"], status["reload"]["ok"]) == (before, False)
    assert any(reason in error and str(path) in error for error in status["reload"]["errors"])
    assert reason in agent.events("reload")[-1]["errors"][0]
    assert reason in agent.errors
    assert agent.blocked("alipay.example")
    path.write_bytes(good)
    until(lambda: agent.answer("status")["reload"]["ok"], "the mended list is in force")


def test_a_broken_app_file_and_a_broken_configuration_are_refused(agent: Agent) -> None:
    app = agent.root / "apps/qq/app.toml"
    good = app.read_text()
    app.write_text('id = "other"\nname = "QQ"\n')
    assert 'must be the name of the directory, "qq"' in agent.cli("reload", status=1).stderr
    app.write_text(good)
    config = agent.config.read_text()
    agent.config.write_text(config + "\n[dsn]\nlisten = []\n")
    until(lambda: "did you mean" in agent.errors, "the error is logged")
    assert agent.blocked("alipay.example")
    agent.config.write_text(config)
    agent.cli("reload")


def test_a_bad_line_is_skipped_alone(agent: Agent) -> None:
    path = agent.root / "apps/alipay/payment.list"
    good = path.read_text()
    path.write_text(good + "com\nhttp://x.test/\nstill.test\n")
    agent.cli("reload")
    problems = agent.answer("status")["problems"]
    number = good.count("\n") + 1
    assert any(f"{path}:{number}: " in each and "public suffix" in each for each in problems)
    assert any(f"{path}:{number + 1}: " in each and "URL" in each for each in problems)
    assert agent.blocked("still.test")
    path.write_text(good)
    agent.cli("reload")


def test_a_list_that_others_can_write_is_refused(agent: Agent) -> None:
    path = agent.root / "apps/alipay/payment.list"
    path.chmod(0o666)
    assert f"chmod go-w {path}" in agent.cli("reload", status=1).stderr
    path.chmod(0o644)
    agent.cli("reload")


def test_a_link_out_of_its_directory_is_refused(agent: Agent, tmp_path: Path) -> None:
    outside = tmp_path / "outside.list"
    outside.write_text("outside.test\n")
    link = agent.root / "apps/alipay/core.list"
    link.symlink_to(outside)
    assert "leads out of" in agent.cli("reload", status=1).stderr
    link.unlink()
    agent.cli("reload")


def test_a_rollback_holds_until_the_next_change(agent: Agent) -> None:
    agent.cli("block", "regretted.test")
    assert agent.blocked("regretted.test")
    agent.cli("rollback")
    assert not agent.blocked("regretted.test")
    assert agent.blocked("alipay.example")
    assert agent.events("policy")[-1]["verb"] == "rollback"
    agent.cli("reload")
    assert agent.blocked("regretted.test"), "the list still says so"
    agent.cli("forget", "regretted.test")


def test_a_rollback_restores_lists_and_apps_and_says_so(agent: Agent) -> None:
    agent.write_config(policy={"apps": ["qq"]}, dns={"block_mode": "nodata"})
    until(lambda: not agent.blocked("alipay.example"), "the change is in force")
    try:
        output = agent.cli("rollback").stdout
        assert output.endswith(
            "\nprevious lists, apps, functions and mode are in force; the next reload uses the current files again\n"
        )
        until(
            lambda: agent.answer("why", "alipay.example", status=None)["verdict"] == "blocked", "the previous apps are blocked"
        )
        found = agent.dig("alipay.example", "A")
        assert ("status: NOERROR" in found, "EDE: 15" in found) == (True, True), "the block mode is today's"
        agent.cli("reload")
        assert agent.rcode("alipay.example", "A") != "NOERROR", "the file counts again: it goes to the upstream"
        assert agent.answer("why", "alipay.example", status=1)["verdict"] == "passed"
    finally:
        agent.write_config(policy={"apps": "default"}, dns={"block_mode": "nxdomain"})
        agent.cli("reload")


def test_without_an_older_generation_a_rollback_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as fresh:
        assert "no earlier generation" in fresh.cli("rollback", status=1).stderr
        assert fresh.blocked("alipay.example")


def test_reloads_under_load_lose_no_query(agent: Agent) -> None:
    """Ten changes of a list while a client asks as fast as it is answered; each question waits for its own answer."""
    question = b"\0\1\1\0\0\1\0\0\0\0\0\0\6alipay\7example\0\0\1\0\1"
    done = threading.Event()
    asked: list[int] = []
    lost: list[int] = []

    def client() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2.0)
            sock.connect(("127.0.0.1", agent.port))
            while not done.is_set() and len(asked) < 500_000:
                ident = (len(asked) & 0xFFFF).to_bytes(2)
                sock.send(ident + question[2:])
                try:
                    reply = sock.recv(512)
                except TimeoutError:
                    lost.append(len(asked))
                else:
                    assert reply[:2] == ident
                    assert reply[3] & 15 == 3
                asked.append(1)

    thread = threading.Thread(target=client)
    thread.start()
    path = agent.root / "apps/alipay/payment.list"
    good = path.read_text()
    before = agent.answer("status")["generation"]
    try:
        for number in range(10):
            path.write_text(f"{good}load{number}.test\n")
            assert agent.ask("reload")["ok"]
    finally:
        done.set()
        thread.join()
        path.write_text(good)
        agent.cli("reload")
    assert agent.answer("status")["generation"] >= before + 10
    assert not lost
    assert len(asked) > 100


# ── what needs no compiling ──────────────────────────────────────────────────────────────────────────────────────────────


def image(agent: Agent) -> os.stat_result:
    return (agent.root / "state/generations/current/policy.img").stat()


def test_another_choice_of_functions_is_another_switchboard_for_the_same_image(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        assert agent.blocked("alipay.example")
        assert agent.blocked("log.alipay.test")
        before = image(agent)
        agent.write_config(policy={"functions": ["telemetry"]})
        agent.cli("reload")
        assert not agent.blocked("alipay.example")
        assert agent.blocked("log.alipay.test")
        after = image(agent)
        assert (after.st_ino, after.st_nlink) == (before.st_ino, before.st_nlink + 1)
        (alipay,) = [app for app in agent.answer("status")["apps"] if app["id"] == "alipay"]
        assert alipay["on"]
        shown = agent.answer("apps", "alipay")[0]["functions"]
        assert [name for name, function in sorted(shown.items()) if function["on"]] == ["telemetry"]
        agent.write_config(dns={"block_mode": "nodata"})
        agent.cli("reload")
        assert image(agent).st_ino == before.st_ino
        assert "status: NOERROR" in agent.dig("log.alipay.test")
        (agent.root / "apps/alipay/payment.list").write_text("other.example\n")
        agent.cli("reload")
        assert image(agent).st_ino != before.st_ino


def test_an_app_that_does_not_exist_is_named_without_compiling_too(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        agent.write_config(policy={"apps": ["alipai"]})
        done = agent.cli("reload", status=1)
        assert 'policy.apps: no app "alipai", did you mean "alipay"?' in done.stdout + done.stderr
        assert agent.blocked("alipay.example")
