"""Start and stop: an agent that does not start says why and what to do; one that stops leaves nothing behind."""

import grp
import os
import pwd
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.agent import Agent, free_port, running
from tools.rig import until


def refuses(agent: Agent, status: int) -> str:
    """The error messages of an agent that does not start."""
    agent.start(wait=False)
    assert agent.process is not None
    assert agent.process.wait(30) == status, agent.errors
    return agent.errors


def test_all_events_are_written_before_the_agent_stops(tmp_path: Path) -> None:
    with running(tmp_path, dns={"workers": 2}) as agent:
        for _ in range(20):
            agent.rcode("alipay.example")
        children = agent.children()
        assert len(children) >= 2
        assert agent.stop() == 0
    assert sum(event["count"] for event in agent.events("dns")) == 20
    assert [event["event"] for event in agent.events()][-1] == "stop"
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not (tmp_path / "runtime/control.sock").exists()


def test_a_start_with_unchanged_lists_uses_the_last_generation(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        pass
    agent.start()
    try:
        assert agent.answer("status")["generation"] == 1
        assert agent.blocked("alipay.example")
    finally:
        agent.stop()
    (tmp_path / "block.list").write_text("fresh.test\n")
    agent.start()
    try:
        assert agent.answer("status")["generation"] == 2
        assert agent.blocked("fresh.test")
    finally:
        agent.stop()


def test_a_damaged_generation_is_compiled_again(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        pass
    image = tmp_path / "state/generations/000001/policy.img"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    agent.start()
    try:
        assert agent.answer("status")["generation"] == 2
        assert agent.blocked("alipay.example")
    finally:
        agent.stop()


def test_an_agent_can_run_as_one_process(tmp_path: Path) -> None:
    with running(tmp_path, dns={"workers": 0}) as agent:
        assert agent.blocked("alipay.example")
        assert agent.answer("status")["inside"] is True
        agent.cli("block", "inside.test")
        assert agent.blocked("inside.test")
        assert agent.children() == []


def test_no_module_of_the_working_directory_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = tmp_path / "here/embargo"
    stranger.mkdir(parents=True)
    (stranger / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    agent = Agent(tmp_path)
    agent.write_config()
    monkeypatch.chdir(stranger.parent)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    command = [str(Path(sys.executable).parent / "embargo"), "run", "-c", str(agent.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready:")
        finally:
            process.terminate()
    assert not (tmp_path / "ran").exists()


def test_a_port_in_use_names_the_port_and_its_holder(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", agent.port))
        output = refuses(agent, 1)
        assert f"127.0.0.1:{agent.port} (UDP) is in use by" in output
        assert f"pid {os.getpid()}" in output
        assert "is in use by" in agent.cli("check", status=1).stdout


def test_an_address_without_an_interface_is_logged_and_used_once_it_exists(tmp_path: Path) -> None:
    """At boot the agent starts before the network, so that no client is forwarded without the rules."""
    with running(tmp_path, dns={"listen": [f"127.0.0.1:{free_port()}", f"192.0.2.77:{free_port()}"]}) as agent:
        assert "no interface has the address 192.0.2.77 yet" in agent.errors
    assert "no interface has 192.0.2.77" in agent.cli("check", status=1).stdout


def test_all_problems_of_a_configuration_are_reported(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(dns={"lisen": [], "block_ttl": "ten"}, policy={"mode": "blok"})
    output = refuses(agent, 2)
    for part in ("dns.lisen: unknown key", 'did you mean "listen"', "dns.block_ttl", "policy.mode", 'did you mean "block"'):
        assert part in output
    assert str(agent.config) in output


def test_check_reads_the_lists_of_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(dns={"lisen": []}, policy={"mode": "blok"})
    (tmp_path / "block.list").write_text("com\n")
    done = agent.cli("check", status=2)
    assert "dns.lisen: unknown key" in done.stdout
    assert "policy.mode" in done.stdout
    assert f"{tmp_path}/block.list:1: " in done.stdout
    assert "3 problems\nnot checked: ruleset, addresses, upstreams; correct the configuration first\n" in done.stdout
    answer = agent.answer("check", status=2)
    assert [Path(problem["file"]).name for problem in answer["problems"]] == ["embargo.toml", "embargo.toml", "block.list"]
    assert (answer["ok"], answer["unchecked"]) == (False, ["ruleset", "addresses", "upstreams"])


@pytest.mark.parametrize("text", ["[lists]\napps = 5\n", "[list]\n", "[lists\n"])
def test_check_says_that_lists_are_checked_after_the_configuration(tmp_path: Path, text: str) -> None:
    agent = Agent(tmp_path)
    agent.config.write_text(text)
    answer = agent.answer("check", status=2)
    assert {problem["file"] for problem in answer["problems"]} == {str(agent.config)}
    assert answer["unchecked"][0] == "lists"
    agent.config.unlink()
    assert "cannot be read" in agent.answer("check", status=2)["problems"][0]["message"]


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    assert "cannot be read" in agent.cli("status", status=2).stderr


def test_an_unknown_app_is_reported_with_a_similar_name(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(policy={"apps": ["alipya"]})
    assert 'no app "alipya", did you mean "alipay"?' in refuses(agent, 2)


def test_without_any_app_it_does_not_start(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(lists={"apps": [str(tmp_path / "nothing")]})
    assert "lists.apps: no app in" in refuses(agent, 2)


def test_a_missing_directory_and_an_unreadable_list_are_named(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(lists={"apps": [str(tmp_path / "apps"), str(tmp_path / "missing")]})
    assert f"{tmp_path}/missing: the directory does not exist, create it" in agent.cli("check", status=1).stdout
    (tmp_path / "apps/qq/core.list").unlink()
    (tmp_path / "apps/qq/core.list").symlink_to("nothing")
    output = agent.cli("check", status=1).stdout
    assert f"{tmp_path}/apps/qq/core.list: it cannot be read: No such file or directory" in output
    assert "missing: the directory does not exist" in output, "all problems at once"


@pytest.mark.parametrize(("line", "on"), [("", True), ("default = true\n", True), ("default = false\n", False)])
def test_an_app_that_replaces_another_has_its_own_default_or_that_of_the_other(tmp_path: Path, line: str, on: bool) -> None:
    agent = Agent(tmp_path)
    own = tmp_path / "apps.d/qq"
    own.mkdir(parents=True)
    (own / "app.toml").write_text(f'id = "qq"\nname = "Mine"\n{line}')
    (own / "payment.list").write_text("mine.example\n")
    agent.write_config(lists={"apps": [str(tmp_path / "apps"), str(tmp_path / "apps.d")]})
    (row,) = agent.answer("apps", "qq")
    assert (row["name"], row["on"], row["default"]) == ("Mine", on, on)
    assert agent.answer("why", "mine.example", status=0 if on else 1)["verdict"] == ("blocked" if on else "passed")
    assert agent.answer("why", "pay.qq.example", status=1)["verdict"] == "passed", "all of its lists"


@pytest.mark.root
def test_check_by_root_names_what_the_agents_user_cannot_read(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is closed to others
        root = Path(directory)
        root.chmod(0o755)
        agent = Agent(root)
        agent.write_config(dns={"hosts": [str(tmp_path / "hosts")]})
        (tmp_path / "hosts").write_text("192.0.2.7 printer.test\n")
        (root / "block.list").write_text("mine.test\n")
        (root / "state").mkdir()
        nobody = pwd.getpwnam("nobody")
        group = grp.getgrgid(nobody.pw_gid).gr_name
        (root / "apps/qq").chmod(0o700)
        (root / "apps/alipay/payment.list").chmod(0o600)
        (root / "block.list").chmod(0o640)
        assert agent.cli("check").stdout == "no problems\n", "the agent may run as root itself"
        os.chown(root / "state", nobody.pw_uid, nobody.pw_gid)
        output = agent.cli("check", status=1).stdout
        user = "nobody, the user that the agent runs as,"
        for path, letters in (("apps/qq", "rx"), ("apps/alipay/payment.list", "r"), ("block.list", "r")):
            place = root / path
            assert f"{place}: {user} cannot read it, chgrp {group} {place} && chmod g+{letters} {place}\n" in output
        assert re.search(rf"^/\S+: {user} cannot reach the files in it, chmod o\+x /\S+, or move", output, re.MULTILINE)
        assert output.endswith("4 problems\n"), "one for each that is shut, none for what is below"
        for path, mode in (("apps/qq", 0o750), ("apps/alipay/payment.list", 0o640), ("block.list", 0o640)):
            os.chown(root / path, 0, nobody.pw_gid)
            (root / path).chmod(mode)
        agent.write_config(dns={"hosts": []})
        assert agent.cli("check").stdout == "no problems\n"


def test_a_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    (tmp_path / "file").write_text("")
    agent.write_config(state={"dir": str(tmp_path / "file/state")})
    output = refuses(agent, 1)
    assert "file/state" in output
    assert "[state]" in output


@pytest.mark.root
@pytest.mark.parametrize(
    ("section", "key", "below"), [("state", "dir", ""), ("state", "dir", "/state"), ("log", "events", "/events.jsonl")]
)
def test_a_directory_that_the_unit_makes_read_only_is_reported_with_the_setting_to_change(
    tmp_path: Path, section: str, key: str, below: str
) -> None:
    """ProtectSystem=strict makes everything else read-only."""
    place = tmp_path / "place"
    place.mkdir()
    agent = Agent(tmp_path, ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"', str(place)])
    agent.write_config(**{section: {key: f"{place}{below}"}})
    output = refuses(agent, 1)
    assert "Read-only file system; create " in output
    wanted = place / "state" if below == "/state" else place
    assert (
        f"owned by root, and let the service write there: `systemctl edit embargo`, [Service] ReadWritePaths={wanted}\n"
        in output
    )


def test_check_reports_a_missing_upstream_and_queries_get_servfail(tmp_path: Path) -> None:
    with running(tmp_path, dns={"upstream": ["127.0.0.1:9"]}) as agent:
        assert agent.rcode("allowed.test") == "SERVFAIL"
        assert "EDE: 23" in agent.dig("allowed2.test") or "EDE: 22" in agent.dig("allowed3.test")
        until(lambda: [e for e in agent.events("upstream") if e["state"] == "down"], "the upstream's trouble is an event")
        assert agent.answer("status")["upstreams"][0]["healthy"] is False


def test_a_start_with_a_broken_list_uses_the_last_generation(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        assert agent.blocked("alipay.example")
    path = tmp_path / "apps/alipay/payment.list"
    path.write_bytes(b"\0\1\2")
    agent.start()
    try:
        assert agent.blocked("alipay.example")
        status = agent.answer("status")
        assert status["reload"]["ok"] is False
        assert "binary" in status["reload"]["errors"][0]
    finally:
        agent.stop()


def test_with_a_damaged_generation_and_a_broken_list_the_agent_does_not_start(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        pass
    (tmp_path / "apps/alipay/payment.list").write_bytes(b"\0\1\2")
    image = tmp_path / "state/generations/000001/policy.img"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    assert "binary" in refuses(agent, 2)


def test_an_incomplete_line_in_the_event_log_damages_no_other(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"schema":1,"ts":"2026')
    with running(tmp_path) as agent:
        pass
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert lines[0] == '{"schema":1,"ts":"2026'
    assert '"event":"stop"' in lines[-1]
    assert agent.ended()


@pytest.mark.root
def test_with_a_firewall_but_without_cap_net_admin_the_agent_does_not_start(tmp_path: Path) -> None:
    agent = Agent(tmp_path, ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"])
    agent.write_config(firewall={"enabled": True})
    output = refuses(agent, 1)
    assert "CAP_NET_ADMIN" in output
    assert "firewall" in output


def test_an_interface_that_does_not_exist_is_named_wherever_one_looks(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(dns={"listen": [f"127.0.0.1:{agent.port}", "lna0"]})
    said = 'dns.listen: no interface "lna0" with an address'
    assert said in agent.cli("check", status=1).stdout
    agent.start()
    try:
        assert said in agent.errors
        assert any("lna0" in gap for gap in agent.ask("status")["uncovered"])
        assert agent.blocked("alipay.example")
    finally:
        agent.stop()
