"""What the command line prints for people: `status`, `apps`, `why` and the lines of `log`."""

from dataclasses import replace

import pytest

from embargo.cli import show
from embargo.daemon.ask.orders import (
    AppStatus,
    EventsStatus,
    Explained,
    FirewallOff,
    FirewallStatus,
    FunctionStatus,
    ListStatus,
    PauseStatus,
    ReloadStatus,
    Status,
)
from embargo.report import Claim, Learning, Line, UpstreamStats

FUNCTIONS = {
    "core": FunctionStatus(False, names=100, networks=50, hits=0),
    "payment": FunctionStatus(True, names=3, networks=2, shared_names=10, shared_networks=20, hits=7),
}
ALIPAY = AppStatus("alipay", "Alipay", "", "", "", "", True, True, False, FUNCTIONS, 7)
PORTS = {
    "canary": FunctionStatus(True, names=1, hits=0),
    "doq": FunctionStatus(True, hits=0, inactive="firewall.lan is empty"),
    "dot": FunctionStatus(True, hits=0, inactive="firewall.lan is empty"),
}
BYPASS = AppStatus("bypass", "Ways around the filter", "", "", "", "", None, True, False, PORTS, 0)
OFF = AppStatus("wechat", "WeChat", "", "", "", "", False, False, False, {"core": FunctionStatus(False, names=9, hits=0)}, 0)
LEARNING = Learning(True, 4, 9, 581, (), {"shared": 2, "freed": 1}, "")
FIREWALL = FirewallStatus(
    "inet embargo", True, True, ("lan0",), True, "closed", "keep", 9, 0,
    {"alipay_payment": (9, 540), "intercept_leak": (1, 60)}, 0, 0, 0, 0, LEARNING,
)  # fmt: skip
STATUS = Status(
    pid=9, version="0.1.0", uptime=20, config="/etc/embargo/embargo.toml", generation=2, since=19, names=767, networks=345,
    pauses=(), mode="block", accelerator="native (Cython)", workers=(11, 12), inside=False, worker_restarts=0,
    listen=("127.0.0.1:53",), lists=(ListStatus("alipay/payment.list", "", 5, 0, 0.0, 251),), problems=(),
    reload=ReloadStatus(True, (), 19), apps=(ALIPAY, BYPASS, OFF), firewall=FIREWALL,
    upstreams=(UpstreamStats("udp://192.0.2.53", 5, 1, True, 3.2, "", plain=False),),
    counters={"queries_udp": 1, "upstream_queries": 2},
    cache={}, events=EventsStatus("/var/log/embargo/events.jsonl", 0, ""), uncovered=(),
)  # fmt: skip


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> "Shown":
    return Shown(capsys)


class Shown:
    """What is printed, as lines."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def status(self, now: Status) -> list[str]:
        show.status(now, every_list=False)
        return self._capsys.readouterr().out.splitlines()

    def row(self, *apps: AppStatus) -> str:
        show.apps(apps)
        return " ".join(self._capsys.readouterr().out.splitlines()[1].split())

    def why(self, found: Explained) -> list[str]:
        show.why(found)
        return self._capsys.readouterr().out.splitlines()


def test_the_status_of_a_gateway(shown: Shown) -> None:
    assert shown.status(STATUS) == [
        "running    pid 9, version 0.1.0, up 0:00:20, /etc/embargo/embargo.toml",
        "policy     generation 2 of the compiled lists, in force for 0:00:19, mode block: "
        "4 names and 2 networks blocked for the chosen apps, out of 767 names and 345 networks in all lists",
        "reload     0:00:19 ago: ok",
        "resolvers  2 processes (11, 12), 0 restarts, compiled code (Cython)",
        "listening  127.0.0.1:53",
        "firewall   table inet embargo in force, protected from other programs; lan: lan0; clients' port 53 redirected here",
        "           if no resolver runs: clients' DNS is rejected (fail = closed); "
        "if the agent stops: rules stay (on_stop = keep)",
        "learnt     4 addresses behind blocked names are blocked; 2 were spared from the start and 1 released later, because "
        "names that are not blocked use them too; blocking starts in 0:09:41 (until then addresses are only recorded)",
        "           rejected packets: alipay/payment 9, intercept_leak 1",
        "queries    1 from clients; 2 to upstreams, including those that no client asked for",
        "events     /var/log/embargo/events.jsonl",
        "",
        "UPSTREAM          STATE  QUERIES  FAILED  RTT (ms)  LAST ERROR",
        "udp://192.0.2.53  ok     5        1       3.2",
        "",
        "APP     NAME                    BLOCKED FUNCTIONS                                   NAMES  NETWORKS  ATTEMPTS",
        "alipay  Alipay                  payment                                             3      2         7",
        "bypass  Ways around the filter  canary; doq, dot (inactive: firewall.lan is empty)  1      0         0",
        "wechat  WeChat                  -                                                   0      0         0",
        "",
        "1 lists, 5 entries, oldest list file changed 0:04:11 ago",
    ]


def test_the_policy_line_counts_what_the_table_below_it_adds_up_to(shown: Shown) -> None:
    """Shared entries are counted where they are on, in both places."""
    shared = replace(ALIPAY, shared=True)
    assert shown.row(shared) == "alipay Alipay payment 13 22 7"
    assert (
        "mode block: 14 names and 22 networks blocked for the chosen apps"
        in shown.status(replace(STATUS, apps=(shared, BYPASS)))[1]
    )
    assert (
        "mode audit: 4 names and 2 networks logged only for the chosen apps" in shown.status(replace(STATUS, mode="audit"))[1]
    )


def test_without_a_lan_or_a_firewall_nothing_is_said_about_redirected_queries(shown: Shown) -> None:
    without = replace(FIREWALL, lan=(), intercept_dns=False, on_stop="remove", learning=None, counters={})
    lines = shown.status(replace(STATUS, firewall=without))
    assert lines[5].endswith("lan: none (all forwarded traffic and this machine's own is filtered); port 53 not redirected")
    assert lines[6] == "           if the agent stops: rules are removed (on_stop = remove)"
    assert "firewall   off (firewall.enabled = false)" in shown.status(replace(STATUS, firewall=FirewallOff()))
    passes = shown.status(replace(STATUS, firewall=replace(FIREWALL, fail="open")))
    assert "if no resolver runs: clients' DNS passes unfiltered (fail = open)" in passes[6]


def test_a_rollback_is_on_the_reload_line_and_among_the_problems_until_a_reload_succeeds(shown: Shown) -> None:
    lines = shown.status(replace(STATUS, reload=ReloadStatus(True, (), 5, rolled_back=True)))
    assert "reload     rolled back 0:00:05 ago; the current files are NOT in force until the next reload" in lines
    problem = "  embargo rollback: the current files are NOT in force until the next reload"
    assert lines[lines.index("PROBLEMS") + 1] == problem
    lines = shown.status(replace(STATUS, reload=ReloadStatus(False, ("a.toml: wrong",), 5, rolled_back=True)))
    assert "reload     0:00:05 ago: FAILED, the previous policy stays in force" in lines
    assert problem in lines
    assert "PROBLEMS" not in shown.status(STATUS)


def test_processes_and_code_in_plain_words(shown: Shown) -> None:
    now = replace(STATUS, workers=(11,), worker_restarts=1, accelerator="none (pure Python)")
    assert "resolvers  1 process (11), 1 restart, interpreted Python (slower)" in shown.status(now)
    assert "resolvers  inside the main process, 0 restarts, compiled code (Cython)" in shown.status(
        replace(STATUS, inside=True)
    )


def test_a_pause_is_shown_with_the_users_name_and_only_where_something_is_blocked(shown: Shown) -> None:
    pause = PauseStatus("", "", "2026-11-30T16:38:30.000000Z", 0)
    assert show.paused(pause) == "everything until 2026-11-30 16:38:30 UTC, by root"
    assert show.paused(replace(pause, app="qq", client="192.0.2.7", uid=4_294_967_294)) == (
        "qq for 192.0.2.7 until 2026-11-30 16:38:30 UTC, by uid 4294967294"
    )
    assert shown.row(replace(ALIPAY, paused=pause.until)) == "alipay Alipay PAUSED: payment 3 2 7"
    assert shown.row(replace(OFF, paused=pause.until)) == "wechat WeChat - 0 0 0"


def test_without_an_agent_there_are_no_attempts_to_show(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    offline = replace(BYPASS, hits=None, functions={name: replace(f, hits=None) for name, f in PORTS.items()})
    assert shown.row(offline).endswith("1 0 -")
    show.app(offline)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert rows[0] == ["canary", "blocked", "1", "0", "0", "0", "-"]
    assert rows[1][:5] == ["doq", "inactive:", "firewall.lan", "is", "empty"]


def line(path: str, number: int, rule: str, *, off: bool = False) -> Line:
    return Line(path, number, rule, path.partition("/")[0], "core", off)


SHARED = line("qq/core.shared.list", 4, "qq.com", off=True)


def test_why_says_what_each_line_is(shown: Shown) -> None:
    excepted = (line("qq/core.shared.list", 8, "!mail.qq.com", off=True), SHARED)
    assert shown.why(Explained("mail.qq.com", "name", "passed", "an exception excludes it", lines=excepted)) == [
        "mail.qq.com is not blocked: an exception excludes it",
        "  exception: qq/core.shared.list:8, !mail.qq.com",
        "  off: qq/core.shared.list:4, qq.com",
    ]
    blocked = Explained("a.qq.com", "name", "blocked", app="qq", function="core", list="qq/core.list", line=1, rule="a.qq.com")
    overridden = (line("qq/core.list", 1, "a.qq.com"), line("qq/core.list", 9, "!qq.com"), line("b/core.list", 2, "!com"))
    assert shown.why(replace(blocked, lines=overridden)) == [
        "a.qq.com is blocked",
        "  app qq, function core, qq/core.list:1, a.qq.com",
        "  overridden: qq/core.list:9, !qq.com",
        "  exception: b/core.list:2, !com",
    ]


def test_why_during_a_pause_names_the_pause_and_the_line_that_would_block(shown: Shown) -> None:
    claim = Claim("alipay", "payment", "alipay/payment.list", 6, "alipay.com", on=False)
    reason = "app alipay is paused until 2026-11-30 16:38:30 UTC"
    found = Explained("alipay.com", "name", "passed", reason, also=(claim,), unless_paused=claim)
    assert shown.why(found) == [
        "alipay.com is not blocked: app alipay is paused until 2026-11-30 16:38:30 UTC",
        "  would be blocked by alipay/payment.list:6, alipay.com",
    ]


@pytest.mark.parametrize(("told", "text"), [
    ({"event": "reload", "ok": True, "why": "start", "generation": 1}, "reload    ok  start  generation 1"),
    (
        {"event": "reload", "ok": False, "why": "asked for", "generation": 1, "errors": ["a: b", "c: d"]},
        "reload    FAILED  asked for  generation 1  errors a: b, c: d",
    ),
    (
        {"event": "policy", "verb": "pause", "entry": "qq", "uid": 0, "until": "2026-01-31T12:00:00Z"},
        "policy    pause  qq  by root  until 2026-01-31T12:00:00Z",
    ),
    ({"event": "stop", "generation": 3}, "stop      generation 3"),
])  # fmt: skip
def test_an_event_as_a_line(told: dict[str, object], text: str) -> None:
    assert show.event({"schema": 1, "ts": "2026-01-31T12:00:00.5Z", **told}) == f"2026-01-31 12:00:00  {text}"


def test_an_upstream_that_is_asked_without_edns_is_shown_as_such(shown: Shown) -> None:
    rows = tuple(replace(STATUS.upstreams[0], plain=True, healthy=healthy) for healthy in (True, False))
    lines = shown.status(replace(STATUS, upstreams=rows))
    found = [line.split("  ")[1] for line in lines if line.startswith("udp://192.0.2.53")]
    assert found == ["ok, without EDNS", "failing, without EDNS"]
