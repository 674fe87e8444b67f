"""The command line against a running agent, and what it can say without one."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import embargo
from support.agent import Agent, running
from support.upstream import Asked, Upstream, right
from tools.rig import until


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("control")) as started:
        yield started


def test_a_blocked_attempt_is_logged_with_client_app_list_and_line(agent: Agent) -> None:
    assert agent.blocked("Deep.Alipay.EXAMPLE")
    event = until(lambda: [e for e in agent.events("dns") if e["qname"] == "deep.alipay.example"], "the event is written")[0]
    assert event["client"] == "127.0.0.1"
    assert (event["app"], event["function"], event["list"], event["line"]) == ("alipay", "payment", "alipay/payment.list", 1)
    assert (event["rule"], event["qtype"], event["action"], event["mode"]) == ("alipay.example", "A", "nxdomain", "block")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["ts"])
    assert (event["schema"], event["count"], event["generation"]) == (1, 1, agent.answer("status")["generation"])


def test_the_log_verb_filters_by_app_client_layer_and_time(agent: Agent) -> None:
    agent.rcode("log.test.alipay.example")
    until(lambda: "log.test.alipay.example" in agent.cli("log").stdout, "the event is shown")
    assert "log.test" in agent.cli("log", "--app", "alipay", "--client", "127.0.0.1", "--layer", "dns", "--since", "1h").stdout
    for words in (("--app", "qq"), ("--client", "192.0.2.9"), ("--layer", "drop"), ("--since", "2999-01-01T00:00:00Z")):
        assert "log.test" not in agent.cli("log", *words).stdout
    raw = agent.cli("log", "--json", "--app", "alipay").stdout.splitlines()
    assert {json.loads(line)["app"] for line in raw} == {"alipay"}
    assert "not a time" in agent.cli("log", "--since", "yesterday", status=2).stderr


def test_the_log_verb_rejects_an_app_or_client_that_cannot_exist(agent: Agent) -> None:
    assert 'no app "alipai"; did you mean "alipay"?' in agent.cli("log", "--app", "alipai", status=2).stderr
    assert '--client: "printer" is not an address, write one as in' in agent.cli("log", "--client", "printer", status=2).stderr
    assert '--client: "printer" is not an address' in agent.cli("why", "a.test", "--client", "printer", status=2).stderr
    assert agent.cli("log", "--app", "local").stderr == ""
    assert "127.0.0.1" not in agent.cli("log", "--client", "0:0:0:0:0:0:0:1").stdout


def test_status_tells_what_runs_and_what_is_not_covered(agent: Agent) -> None:
    answer = json.loads(agent.cli("status", "--json").stdout)
    assert answer.keys() == agent.ask("status").keys()
    assert answer["running"] is True
    assert answer["version"] == embargo.__version__
    assert answer["listen"] == [f"127.0.0.1:{agent.port}"]
    assert answer["firewall"] == {"enabled": False}
    assert any("firewall.enabled = false" in text for text in answer["uncovered"])
    assert [app["id"] for app in answer["apps"]] == ["alipay", "qq"]
    assert "alipay/payment.list" not in agent.cli("status").stdout
    text = agent.cli("status", "--lists").stdout
    for word in ("running", "generation", "alipay/payment.list", "NOT COVERED", "udp://127.0.0.1:9"):
        assert word in text


def test_why_names_the_deciding_line_and_the_overridden_lines(agent: Agent) -> None:
    answer = agent.answer("why", "x.pay.qq.example")
    assert (answer["verdict"], answer["list"], answer["line"], answer["rule"]) == (
        "blocked",
        "qq/payment.list",
        1,
        "pay.qq.example",
    )
    assert [line["rule"] for line in answer["lines"]] == ["pay.qq.example", "qq.example"]
    text = agent.cli("why", "x.pay.qq.example").stdout
    assert "qq/core lists it, but is off" in text
    answer = agent.answer("why", "mail.alipay.example", status=1)
    assert answer["verdict"] == "passed"
    assert [line["rule"] for line in answer["lines"]] == ["!mail.alipay.example", "alipay.example"]
    assert agent.answer("why", "203.0.113.9")["rule"] == "203.0.113.0/28"
    assert agent.answer("why", "203.0.113.16", status=1)["verdict"] == "passed"
    assert agent.answer("why", "::ffff:203.0.113.9")["verdict"] == "blocked"
    assert agent.answer("why", "host.onion", status=1)["verdict"] == "special"
    assert "its queries get no answer" in agent.cli("why", "alipay.example", "--client", "203.0.113.77").stdout
    assert "not a domain name" in agent.cli("why", "a..b", status=2).stderr


def test_why_rejects_unknown_query_types(agent: Agent) -> None:
    for name in ("https", "AAAA", "TYPE65", "type1234"):
        assert agent.answer("why", "alipay.example", "--type", name)["verdict"] == "blocked"
    for name in ("FOO", "TYPE", "TYPE0", "TYPE65536", "TYPE0000001", "TYPE٣", "1"):
        output = agent.cli("why", "alipay.example", "--type", name, status=2).stderr
        assert f'"{name}" is not a query type; known are A, NS, ' in output


def test_why_says_which_line_lets_a_name_pass(agent: Agent) -> None:
    shared = ["wechat.test", "!mail.wechat.test"]
    directory = agent.write_app("wechat", {"payment": ["=pay.wechat.test"], "payment.shared": shared})
    agent.cli("reload")
    try:
        assert agent.cli("why", "www.wechat.test", status=1).stdout == (
            "www.wechat.test is not blocked: only a shared entry lists it, and shared entries are off (policy.shared)\n"
            "  off: wechat/payment.shared.list:1, wechat.test\n"
        )
        assert agent.cli("why", "mail.wechat.test", status=1).stdout == (
            "mail.wechat.test is not blocked: an exception excludes it\n"
            "  exception: wechat/payment.shared.list:2, !mail.wechat.test\n"
            "  off: wechat/payment.shared.list:1, wechat.test\n"
        )
        assert "  off: wechat/payment.shared.list:1, wechat.test\n" in agent.cli("why", "pay.wechat.test").stdout
    finally:
        shutil.rmtree(directory)
        agent.cli("reload")
    assert (
        "only functions that are off list it (policy.apps, policy.functions)" in agent.cli("why", "qq.example", status=1).stdout
    )


def test_why_says_what_the_answer_for_a_name_leads_to(tmp_path: Path) -> None:
    def leading(asked: Asked) -> list[bytes]:
        return [right(asked, "203.0.113.2" if str(asked.message.question[0].name) == "leads.test." else "192.0.2.80")]

    with Upstream(leading) as upstream, running(tmp_path, dns={"upstream": [f"127.0.0.1:{upstream.port}"]}) as agent:
        found = agent.answer("why", "leads.test", status=0)
        assert (found["verdict"], found["answer"], found["rule"]) == ("blocked", "203.0.113.2", "203.0.113.0/28")
        assert "its answer leads to 203.0.113.2" in agent.cli("why", "leads.test").stdout
        assert "answer" not in agent.answer("why", "free.test", status=1)
        agent.cli("pause", "qq", "1h")
        assert agent.answer("why", "leads.test", status=1)["verdict"] == "passed"
        assert not agent.events("dns")


def test_apps_shows_the_catalogue(agent: Agent) -> None:
    rows = agent.answer("apps")
    assert rows[0]["functions"]["payment"]["names"] == 1
    assert rows[0]["functions"]["payment"]["on"] is True
    assert agent.answer("apps", "qq")[0]["functions"]["core"]["on"] is False
    assert "no app" in agent.cli("apps", "nothing", status=1).stderr


def test_block_allow_and_forget_are_in_force_when_they_return(agent: Agent) -> None:
    assert not agent.blocked("local.test")
    agent.cli("block", "local.test", "198.51.100.0/24")
    assert agent.blocked("a.local.test")
    answer = agent.answer("why", "198.51.100.7")
    assert (answer["list"], answer["app"]) == ("local/block.list", "local")
    agent.cli("allow", "local.test")
    assert not agent.blocked("local.test")
    agent.cli("forget", "local.test", "198.51.100.0/24")
    own = agent.root / "state/local"
    assert agent.cli("forget", "local.test", status=1).stderr == (
        f"local.test: neither embargo allow nor embargo block added it ({own}/allow.list, {own}/block.list)\n"
    )

    blocked = [(e["entry"], e["uid"]) for e in agent.events("policy") if e["verb"] == "block"]
    assert blocked[:2] == [("local.test", os.getuid()), ("198.51.100.0/24", os.getuid())]


def test_cached_answers_are_forgotten_on_request(agent: Agent) -> None:
    assert agent.cli("flush").stdout.endswith(" forgotten\n")
    assert agent.cli("flush", "nothing.test").stdout == "0 cached answers forgotten, for nothing.test and all names below it\n"
    done = agent.cli("flush", "*.test", status=2)
    assert '"*.test" has a wildcard' in done.stderr


def test_an_entry_that_would_cut_the_network_is_refused_and_leaves_no_trace(agent: Agent) -> None:
    for verb in ("block", "forget"):
        agent.cli(verb, "first.test")  # the first entry ever creates the agent's own lists, which makes a generation
    before = agent.answer("status")["generation"]
    for entry, reason in (("com", "public suffix"), ("0.0.0.0/0", "too wide"), ("127.0.0.9", "this gateway's own|loopback")):
        assert re.search(reason, agent.cli("block", entry, status=1).stderr)
    assert "host bits" in agent.cli("block", "198.51.100.1/24", status=2).stderr
    assert (agent.root / "state/local/block.list").read_text() == ""
    assert agent.rcode("example.com") != "NXDOMAIN"
    assert agent.answer("status")["generation"] == before


def test_an_upstreams_address_cannot_be_blocked(agent: Agent) -> None:
    agent.write_config(dns={"upstream": ["203.0.113.200"]})
    agent.cli("reload")
    assert "the upstream resolver's" in agent.cli("block", "203.0.113.200", status=1).stderr
    agent.write_config(dns={"upstream": ["127.0.0.1:9"]})
    agent.cli("reload")


def test_a_public_resolver_stays_listed_when_it_is_our_own_upstream(agent: Agent) -> None:
    """Our own questions to it pass by their sender (netns/test_gateway.py); clients have no business there."""
    directory = agent.write_app("bypass", {"doh": ["dns.test", "203.0.113.200", "203.0.113.201"]})
    agent.write_config(dns={"upstream": ["203.0.113.200"]})
    agent.cli("reload")
    status = agent.answer("status")
    assert status["problems"] == []
    assert agent.answer("why", "203.0.113.200")["verdict"] == "blocked"
    shutil.rmtree(directory)
    agent.write_config(dns={"upstream": ["127.0.0.1:9"]})
    agent.cli("reload")


def test_the_control_socket_is_closed_to_others(agent: Agent) -> None:
    path = agent.root / "runtime/control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_a_second_agent_with_the_same_state_is_refused(agent: Agent) -> None:
    assert "another agent is using" in agent.cli("run", status=1).stderr


def test_a_running_agent_can_be_asked_despite_mistakes_in_the_file(agent: Agent) -> None:
    before = agent.config.read_text()
    try:
        agent.config.write_text(before + "[policy]\nfunctoins = []\n")
        until(lambda: not agent.answer("status")["reload"]["ok"], "the agent has seen it and goes on with what it read before")
        reads = (("status",), ("why", "alipay.example"), ("apps",), ("log",), ("top", "--once"), ("pause", "1m"), ("resume",))
        for words in reads:
            done = agent.cli(*words)
            assert "warning: " in done.stderr, words
            assert 'policy.functoins: unknown key, did you mean "functions"?' in done.stderr
            assert done.stdout, words
        # what compiles anew cannot be, and says so once
        output = agent.cli("block", "local.test", status=1).stderr
        assert "nothing changed; generation" in output
        output = agent.cli("reload", status=2).stderr
        assert "policy.functoins: unknown key" in output
        assert "warning" not in output
    finally:
        agent.config.write_text(before)
        agent.cli("reload")


@pytest.mark.parametrize("text", ["[dns\n", "[dns]\nlisen = []\n", "[state]\nruntime = 5\n"])
def test_a_mistake_in_a_given_file_does_not_lead_to_another_agent(tmp_path: Path, text: str) -> None:
    agent = Agent(tmp_path)
    agent.config.write_text(text)
    for words in (("status",), ("block", "local.test"), ("log",)):
        done = agent.cli(*words, status=2)
        assert f"{agent.config}:" in done.stderr
        assert "no agent is running" not in done.stderr


def test_without_an_agent_mistakes_in_the_file_are_reported_once(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config(dns={"lisen": []})
    output = agent.cli("why", "alipay.example", status=2).stderr
    assert output.count("unknown key") == 1
    output = agent.cli("status", status=1).stderr
    assert "unknown key" in output
    assert "no agent is running" in output


def test_check_finds_no_problems_beside_a_running_agent(agent: Agent) -> None:
    assert agent.cli("check").stdout == "no problems\n"


def test_sighup_reloads(agent: Agent) -> None:
    (agent.root / "block.list").write_text("hup.test\n")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    until(lambda: agent.blocked("hup.test"), "the reload is done")


def test_a_killed_resolver_is_started_again(agent: Agent) -> None:
    worker = agent.answer("status")["workers"][0]
    os.kill(worker, signal.SIGKILL)
    until(lambda: agent.answer("status")["workers"] not in ([], [worker]), "another resolver runs")
    assert agent.blocked("alipay.example")
    assert agent.answer("status")["worker_restarts"] == 1


def test_without_an_agent_the_reading_verbs_use_the_lists(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.write_config()
    assert agent.answer("status", status=1) == {
        "running": False,
        "reason": f"no agent is running ({tmp_path}/runtime/control.sock); start it (make run, or systemctl start embargo)",
    }
    assert agent.answer("why", "alipay.example")["list"] == "alipay/payment.list"
    assert [row["id"] for row in agent.answer("apps")] == ["alipay", "qq"]
    assert agent.cli("check").stdout == "no problems\n"
    for words in (("reload",), ("block", "x.test")):
        assert "no agent is running" in agent.cli(*words, status=1).stderr
    assert agent.cli("version").stdout == f"embargo {embargo.__version__}\n"
    assert 'no app "alipai"; did you mean "alipay"?' in agent.cli("log", "--app", "alipai", status=2).stderr
    done = subprocess.run([sys.executable, "-m", "embargo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"embargo {embargo.__version__}\n"


@pytest.mark.root
def test_a_log_without_permission_says_who_may_read_it(tmp_path: Path) -> None:
    agent = Agent(tmp_path, ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"])
    agent.write_config()
    assert "No such file or directory; no agent has run with this [log] events\n" in agent.cli("log", status=1).stderr
    (tmp_path / "events.jsonl").touch(mode=0)
    output = agent.cli("log", status=1).stderr
    assert (
        output
        == f"{tmp_path}/events.jsonl: Permission denied; run this as root, or as the agent's user (embargo with the package)\n"
    )


@pytest.mark.root
def test_a_group_without_the_agent_is_a_warning_with_a_hint(tmp_path: Path) -> None:
    prefix = ["setpriv", "--clear-groups", "--bounding-set=-chown", "--inh-caps=-all"]
    agent = Agent(tmp_path, prefix)
    agent.write_config(state={"group": "daemon"})
    agent.start()
    try:
        assert f"{tmp_path}/runtime/control.sock: Operation not permitted; group daemon cannot use the socket" in agent.errors
        assert "is a member: `systemctl edit embargo`, [Service] SupplementaryGroups=daemon\n" in agent.errors
    finally:
        agent.stop()


def test_every_verb_and_option_has_help(agent: Agent) -> None:
    text = agent.cli("--help", status=None).stdout or ""
    for verb in ("run", "check", "status", "why", "apps", "log", "reload", "block", "allow", "forget", "version"):
        help_ = agent.cli(verb, "--help").stdout
        assert "--config" in help_, text
        assert all(len(line.split()) > 1 for line in help_.splitlines() if line.startswith("  -"))


#: what only the agent and a few verbs need; loading it takes longer than asking a running agent
HEAVY = {
    "asyncio", "ssl", "logging", "dnslib", "idna", "publicsuffixlist", "pyroute2", "scapy", "watchdog", "concurrent.futures",
    "embargo.daemon.supervise.supervisor", "embargo.dns.engine", "embargo.export.effective", "embargo.lists.image",
}  # fmt: skip
LOADED = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); from embargo.cli import verbs; "


@pytest.mark.parametrize(
    "words",
    ["version", "--help", "why --help", "status", "why alipay.example", "apps", "log", "top --once", "pause qq 1m", "resume"],
)
def test_a_verb_that_asks_the_agent_loads_only_what_it_needs(agent: Agent, words: str) -> None:
    verb, *rest = words.split()
    options = [] if verb == "--help" else ["-c", str(agent.config)]
    command = [sys.executable, "-c", f"{LOADED}verbs.main()", verb, *options, *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "embargo.cli.verbs" in loaded, "the modules are printed"
    assert HEAVY & loaded == set()


def test_the_log_is_followed_through_a_rotation(tmp_path: Path) -> None:
    with running(tmp_path, log={"max_bytes": 4096}) as agent:
        command = [sys.executable, "-m", "embargo", "log", "-f", "--json", "--layer", "dns", "-c", str(agent.config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            try:
                assert follower.stdout is not None
                seen = []
                for number in range(40):
                    agent.rcode(f"n{number}.alipay.example")
                    seen.append(json.loads(follower.stdout.readline())["qname"])
                assert seen == [f"n{number}.alipay.example" for number in range(40)]
                assert (tmp_path / "events.jsonl.1").exists()
            finally:
                follower.kill()
