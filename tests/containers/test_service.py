"""The service on a gateway with systemd: systemctl, journalctl, nft, and what a client sees of it."""

import json
import re
import time
from functools import partial
from pathlib import Path

import pytest

from containers.conftest import CONFIG, LISTED, UPSTREAM, WEB, Site, status_of
from containers.steady import assert_nothing_missed, watched
from support.lab import Container
from support.secure import NAME, Authority, Unbound
from tools.rig import until

pytestmark = pytest.mark.root

TOML = "/etc/embargo/embargo.toml"
OWNED_OR_NOT = pytest.mark.parametrize(
    "protect", [pytest.param("protect = true", id="owned"), pytest.param("protect = false", id="open", marks=pytest.mark.all)]
)
NET_ADMIN, NET_BIND_SERVICE = 1 << 12, 1 << 10


def pid(gateway: Container) -> str:
    return gateway.run("systemctl", "show", "--property=MainPID", "--value", "embargo").stdout.strip()


def rules(gateway: Container) -> list[str]:
    """Our table's lines, without who owns it, what counts, what is learnt, and the numbers that each new one has."""
    text = gateway.run("nft", "--stateless", "list", "table", "inet", "embargo").stdout
    without = (r"^(table .*|\tflags .*)\n", r"elements = \{[^}]*\}", r"^.* comment \"judgement \d+\"$", r"(?<=[a-z46])_\d+\b")
    return re.sub("|".join(without), "", text, flags=re.MULTILINE).splitlines()


def missing(before: list[str], gateway: Container) -> list[str]:
    after = rules(gateway)
    return [line for line in before if line not in after]


def test_it_is_up_when_the_machine_has_booted(site: Site, gateway: Container) -> None:
    assert gateway.run("systemctl", "is-system-running").stdout == "running\n"
    status = gateway.run("systemctl", "status", "embargo").stdout
    assert "Active: active (running)" in status
    assert "embargo.daemon.guard.guardian" in status
    found = status_of(gateway)
    assert found["accelerator"].startswith("native"), "neither build of the compiled modules fits this Python"
    assert found["firewall"]["present"]
    assert site.blocked("mygw.alipay.com")


def test_it_is_up_before_a_network_that_comes_before_the_rest_of_the_system(site: Site) -> None:
    """As cloud-init does: what everything else comes after waits for the network, and that for us."""
    early = "[Unit]\nDefaultDependencies=no\nWants=network-pre.target\nAfter=network-pre.target\nBefore=sysinit.target\n"
    service = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=nft list table inet embargo\n"
    gateway = site.boot(files={
        "/etc/systemd/system/early.service": early + service,
        "/etc/systemd/system/sysinit.target.d/early.conf": "[Unit]\nWants=early.service\n",
    })  # fmt: skip
    assert "cycle" not in gateway.run("journalctl", "--boot").stdout
    assert gateway.run("systemctl", "is-active", "embargo", "early", "network-pre.target").stdout == "active\n" * 3
    gateway.poweroff()


def test_the_journal_has_events_by_field(gateway: Container) -> None:
    found = gateway.run("journalctl", "--unit=embargo", "EMBARGO_EVENT=start", "--output=json").stdout.splitlines()
    fields = json.loads(found[-1])
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"], fields["_SYSTEMD_UNIT"]) == ("6", "embargo", "embargo.service")
    assert fields["EMBARGO_PID"] == fields["_PID"] == pid(gateway)
    assert fields["MESSAGE"].startswith('"event":"start"')


def test_a_client_gets_what_is_allowed_and_is_told_of_what_is_blocked(site: Site, gateway: Container) -> None:
    assert site.answered("www.example.net")
    site.client.run("sh", "-c", "echo nameserver 192.0.2.1 >/etc/resolv.conf")
    page = site.client.run("curl", "--silent", "http://www.example.net/").stdout
    assert "Directory listing" in page
    out = site.dig("mygw.alipay.com")
    assert "status: NXDOMAIN" in out
    assert re.search(
        r"EDE: 15 \(Blocked\): \(app=alipay function=payment list=alipay/payment\.list:\d+ rule=alipay\.com\)", out
    )
    assert "EDE: 15 (Blocked)" in site.dig("mygw.alipay.com", server=UPSTREAM), "port 53 to others comes to us"
    assert not site.reaches(LISTED)
    assert site.reaches(WEB)
    out = gateway.run("embargo", "log", "--app", "alipay").stdout
    assert "mygw.alipay.com" in out
    until(lambda: LISTED in gateway.run("embargo", "log", "--layer", "drop").stdout, "the refused connection is logged")


def test_a_reload_returns_when_the_new_policy_is_in_force(site: Site, gateway: Container) -> None:
    before = pid(gateway)
    assert site.answered("new.example.net")
    gateway.path("/etc/embargo/block.list").write_text("new.example.net\n")
    gateway.run("systemctl", "reload", "embargo")
    assert site.blocked("new.example.net")
    assert pid(gateway) == before


def test_a_reload_of_a_broken_configuration_fails_and_changes_nothing(site: Site, gateway: Container) -> None:
    gateway.path(TOML).write_text(CONFIG + "\n[policy]\nfunctoins = []\n")
    done = gateway.run("systemctl", "reload", "embargo", check=False)
    assert done.returncode != 0
    wanted = re.compile(rf'^{TOML}:9: policy\.functoins: unknown key.*did you mean "functions"')
    until(lambda: any(map(wanted.match, gateway.messages("embargo"))), "the journal names file, line and key")
    until(lambda: any("stays in force" in text for text in gateway.messages("embargo")), "it has seen the file, too")
    assert gateway.run("systemctl", "is-active", "embargo").stdout == "active\n"
    assert site.blocked("mygw.alipay.com")
    assert site.answered("www.example.net")
    gateway.path(TOML).write_text(CONFIG)
    gateway.run("systemctl", "reload", "embargo")


def test_an_upstream_over_tls(site: Site, gateway: Container, tmp_path: Path) -> None:
    """With this Debian's OpenSSL, under all that the unit forbids."""
    authority = Authority(tmp_path)
    prefix = ["nsenter", f"--target={site.upstream.pid}", "--net", "--"]
    with Unbound(tmp_path, authority.sign("server"), 853, (), prefix):
        gateway.path("/etc/embargo/ca.pem").write_text(authority.own.certificate.read_text())
        secured = CONFIG.replace(f'"{UPSTREAM}"', f'"tls://{UPSTREAM}#{NAME}"').replace(
            "[dns]", '[dns]\ntls_ca = "/etc/embargo/ca.pem"'
        )
        gateway.path(TOML).write_text(secured)
        gateway.run("systemctl", "reload", "embargo")
        until(lambda: "192.0.2.80" in site.dig("free.test", "+short"), "it is answered by the upstream over TLS")
        (row,) = json.loads(gateway.run("embargo", "status", "--json").stdout)["upstreams"]
        assert row["server"] == f"tls://{UPSTREAM}:853#{NAME}"
        assert site.blocked("mygw.alipay.com")
        gateway.path(TOML).write_text(secured.replace("tls_ca", "#tls_ca"))
        gateway.run("systemctl", "reload", "embargo")
        assert "of an authority that is not trusted here" in site.dig("other.test"), "this machine's own authorities"


def test_a_restart_answers_when_it_returns_and_a_stop_stops(site: Site, gateway: Container) -> None:
    before = pid(gateway)
    gateway.run("systemctl", "restart", "embargo")
    assert site.blocked("mygw.alipay.com")
    assert pid(gateway) != before
    gateway.run("systemctl", "stop", "embargo")
    assert "status:" not in site.dig("www.example.net", "+time=1")
    assert gateway.run("systemctl", "is-active", "embargo", check=False).stdout == "inactive\n"
    assert "python3" not in gateway.run("ps", "-e", "-o", "comm,args").stdout
    gateway.run("systemctl", "start", "embargo")
    assert site.answered("www.example.net")


def test_the_journal_shows_start_reload_and_stop(gateway: Container) -> None:
    gateway.path("/etc/embargo/block.list").write_text("new.example.net\n")
    gateway.run("systemctl", "reload", "embargo")
    gateway.run("systemctl", "stop", "embargo")
    text = "\n".join(gateway.messages("embargo"))
    steps = [
        r"^generation 1 is in force: \d+ names and \d+ networks in its lists$", r"^ready: generation 1,",
        r"^generation 2 is in force", r"^Reloaded embargo\.service", r"^Stopped embargo\.service",
    ]  # fmt: skip
    places = [found.start() for step in steps if (found := re.search(step, text, re.MULTILINE))]
    assert len(places) == len(steps), text
    assert places == sorted(places), text


def configured(gateway: Container, *firewall: str) -> None:
    """The configuration with these lines more in [firewall]; those about the table's owner count for a table made anew."""
    gateway.run("systemctl", "stop", "embargo")
    gateway.run("nft", "delete", "table", "inet", "embargo", check=False)
    gateway.path(TOML).write_text(CONFIG + "".join(f"{line}\n" for line in firewall))
    gateway.run("systemctl", "start", "embargo")
    flags = gateway.run("nft", "list", "table", "inet", "embargo").stdout.splitlines()[1]
    assert ("flags owner" in flags) == ("protect = false" not in firewall), "the table has its flags, or none"


@OWNED_OR_NOT
def test_the_rules_stay_after_a_stop_by_default(protect: str, site: Site, gateway: Container) -> None:
    configured(gateway, protect)
    before = rules(gateway)
    with watched(site, gateway, 4.0) as seen:
        gateway.run("systemctl", "stop", "embargo")
        assert missing(before, gateway) == []
        assert not site.reaches(LISTED)
        assert site.reaches(WEB)
        assert "status:" not in site.dig("www.example.net", "+time=1", server=UPSTREAM), "fail is closed"
        gateway.run("systemctl", "start", "embargo")
    assert (seen[0].wrong, seen[0].opened, seen[0].missing) == (0, 0, 0), seen
    assert missing(before, gateway) == []
    assert site.blocked("mygw.alipay.com")


@OWNED_OR_NOT
def test_the_rules_go_with_a_stop_where_that_is_wanted(protect: str, site: Site, gateway: Container) -> None:
    configured(gateway, protect, 'on_stop = "remove"')
    assert not site.reaches(LISTED)
    gateway.run("systemctl", "stop", "embargo")
    assert gateway.run("nft", "list", "ruleset").stdout == ""
    said = gateway.messages("embargo")
    assert not [text for text in said if "ended with status" in text], "the stop is for the agent alone, not for its processes"
    assert site.reaches(LISTED)
    assert site.answered("mygw.alipay.com", UPSTREAM)


@OWNED_OR_NOT
def test_no_query_is_lost_and_no_moment_without_rules_when_it_is_restarted_and_killed(
    protect: str, site: Site, gateway: Container
) -> None:
    """Also where a stop takes the rules away: this is none. systemd keeps the sockets and queries wait in them."""
    configured(gateway, protect, 'on_stop = "remove"')
    first = pid(gateway)
    with watched(site, gateway, 6.0) as seen:
        gateway.run("systemctl", "restart", "embargo")
        second = pid(gateway)
        gateway.run("kill", "-KILL", second)
        until(lambda: pid(gateway) not in (first, second, "0"), "it runs again")
    assert_nothing_missed(seen, 6.0)


@OWNED_OR_NOT
def test_no_rule_is_missing_after_others_flushed_the_ruleset(protect: str, site: Site, gateway: Container) -> None:
    configured(gateway, protect)
    before = rules(gateway)
    with watched(site, gateway, 4.0) as seen:
        gateway.run("systemctl", "restart", "nftables")
        time.sleep(1.0)
        gateway.run("nft", "flush", "ruleset")
    if protect == "protect = false":
        assert seen[0].missing, "nothing keeps others from flushing it"
        assert (seen[0].lost, seen[0].wrong) == (0, 0), seen
        assert status_of(gateway)["firewall"]["restored"] >= 2
    else:
        assert_nothing_missed(seen, 4.0)
        assert status_of(gateway)["firewall"]["restored"] == 0
    until(lambda: "table inet embargo" in gateway.run("nft", "list", "tables").stdout, "the table is there")
    until(lambda: not missing(before, gateway), "every rule is there")
    assert not site.reaches(LISTED)
    assert site.blocked("mygw.alipay.com")


def test_each_process_has_its_user_and_its_capabilities_and_no_more(gateway: Container) -> None:
    found: dict[str, set[tuple[str, int]]] = {}
    for line in gateway.run("ps", "-e", "-o", "pid=,user:32=,args=").stdout.splitlines():
        number, user, command = line.split(None, 2)
        if "python3" in command:
            status = gateway.path(f"/proc/{number}/status").read_text()
            assert "\nNoNewPrivs:\t1\n" in status
            assert "\nSeccomp:\t2\n" in status
            capabilities = re.search(r"^CapEff:\t(\w+)$", status, re.MULTILINE)
            assert capabilities
            name = re.search(r"embargo\.daemon\.\w+\.(?:handover )?(\w+)", command)
            found.setdefault(name[1] if name else "supervisor", set()).add((user, int(capabilities[1], 16)))
    assert found == {
        "supervisor": {("embargo", NET_BIND_SERVICE)},
        "guardian": {("embargo", NET_ADMIN)},
        "resolver": {("embargo-dns", 0)},
    }


def test_resolvers_of_another_user_than_the_configuration_says_work_and_that_is_said(site: Site, gateway: Container) -> None:
    """Whose questions pass the firewall is who asks them."""
    drop_in = gateway.path("/run/systemd/system/embargo-resolver@.service.d/user.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nUser=nobody\nGroup=nogroup\n")
    gateway.run("systemctl", "daemon-reload")
    gateway.run("systemctl", "restart", "embargo")
    said = " ".join(gateway.messages("embargo"))
    assert re.search(
        r"resolver \d runs as user 65534, set by its unit, but \[state\] user is user \d+; set both to the same user", said
    )
    users = set(re.findall(r"skuid (\S+)", gateway.run("nft", "--numeric", "list", "table", "inet", "embargo").stdout))
    assert users == {"65534"}
    assert site.answered("www.example.net")


def test_what_an_agent_run_by_hand_as_root_left_is_named_and_handed_over_as_the_page_says(gateway: Container) -> None:
    gateway.run("systemctl", "stop", "embargo")
    gateway.run("chown", "root:", "/var/lib/embargo/lock")
    assert gateway.run("systemctl", "start", "embargo", check=False).returncode
    said = " ".join(gateway.messages("embargo"))
    assert "/var/lib/embargo/lock: Permission denied; it must belong to embargo, the user of the agent" in said
    gateway.run("chown", "-R", "embargo:", "/var/lib/embargo")
    gateway.run("systemctl", "restart", "embargo")


def test_whoever_is_in_the_group_may_ask_and_nobody_else(gateway: Container) -> None:
    gateway.run("useradd", "--groups", "embargo", "friend")
    gateway.run("useradd", "stranger")
    assert "generation 1" in gateway.run("runuser", "-u", "friend", "--", "embargo", "status").stdout
    done = gateway.run("runuser", "-u", "stranger", "--", "embargo", "status", check=False)
    assert "permission denied" in done.stderr
    assert done.returncode == 1


def test_each_unit_is_as_confined_as_its_work_allows(gateway: Container) -> None:
    allowed = {"embargo.service": 1.8, "embargo-resolver@1.service": 1.3, "embargo-compiler@1.service": 1.1}
    for unit, exposure in allowed.items():
        out = gateway.run("systemd-analyze", "security", "--no-pager", unit).stdout
        found = re.search(rf"Overall exposure level for {unit}: ([\d.]+)", out)
        assert found
        assert float(found[1]) <= exposure, out
    assert gateway.run("systemd-analyze", "verify", "--man=no", *allowed).stderr == ""


def printed(gateway: Container, module: str) -> list[str]:
    """What the units of a module have in the journal; each has another name, and there may be none yet."""
    gateway.run("journalctl", "--sync")
    return gateway.run("journalctl", "--output=cat", f"--unit=embargo-{module}@*", check=False).stdout.splitlines()


def test_a_start_that_fails_is_told_at_once_and_tried_again_ever_more_rarely(site: Site, gateway: Container) -> None:
    gateway.run("systemctl", "stop", "embargo")
    before = len(starts(gateway))
    holding = 'import socket, time; s = socket.socket(); s.bind(("", 53)); s.listen(); time.sleep(600)'
    gateway.start("python3", "-c", holding)
    until(lambda: ":53 " in gateway.run("ss", "-tln").stdout, "somebody has the port")
    assert gateway.run("systemctl", "start", "embargo", check=False).returncode
    assert any("port 53 is taken" in text or "in use" in text for text in gateway.messages("embargo"))
    until(lambda: len(starts(gateway)) >= before + 6, "it is tried again", 60)
    last = starts(gateway)[-2:]
    assert last[1] - last[0] > 1.6, last
    gateway.run("pkill", "-f", "time.sleep")
    until(lambda: gateway.run("systemctl", "is-active", "embargo", check=False).stdout == "active\n", "it is up by itself", 60)
    assert site.blocked("mygw.alipay.com")


def test_a_unit_that_systemd_cannot_start_is_wanted_again(site: Site, gateway: Container) -> None:
    """Its socket fails, and is there again when the reason is gone."""
    gateway.path("/etc/embargo/block.list").write_text("new.example.net\n")
    gateway.run("systemctl", "mask", "--runtime", "embargo-compiler@.service")
    assert gateway.run("systemctl", "reload", "embargo", check=False).returncode
    assert site.blocked("mygw.alipay.com")
    gateway.run("systemctl", "unmask", "--runtime", "embargo-compiler@.service")
    until(lambda: gateway.run("systemctl", "reload", "embargo", check=False).returncode == 0, "it can be started again", 60)
    assert site.blocked("new.example.net")


def starts(gateway: Container) -> list[float]:
    """When systemd began to start it, in seconds."""
    return [
        int(record["__REALTIME_TIMESTAMP"]) / 1e6
        for record in gateway.journal("embargo") if str(record.get("MESSAGE", "")).startswith("Starting embargo.service")
    ]  # fmt: skip


PROBE = """\
import ctypes, errno, os, socket
def attempt(what, do):
    try:
        do()
        print(what, "done")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
attempt("ask", lambda: socket.socket(socket.AF_UNIX).connect("/run/embargo/control.sock"))
attempt("speak", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("203.0.113.80", 53)))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("firewall", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
def ring():
    if ctypes.CDLL(None, use_errno=True).syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
attempt("ring", ring)  # opens sockets and files past the filter
attempt("signal", lambda: os.kill(os.getpid(), 0))
attempt("read", lambda: open("/etc/embargo/embargo.toml"))
attempt("state", lambda: open("/var/lib/embargo/probe", "w"))
attempt("lists", lambda: open("/etc/embargo/block.list", "a"))
attempt("log", lambda: os.listdir("/var/log/embargo"))
"""


def has_tried_everything(gateway: Container, module: str) -> bool:
    return any(text.startswith("log ") for text in printed(gateway, module))


MAY = {
    "resolver": {"ask": "EAFNOSUPPORT", "speak": "done", "packet": "EAFNOSUPPORT", "firewall": "EAFNOSUPPORT", "ring": "EPERM",
                 "signal": "done", "read": "done", "state": "EACCES", "lists": "EACCES", "log": "EACCES"},
    "compiler": {"ask": "EAFNOSUPPORT", "speak": "EAFNOSUPPORT", "packet": "EAFNOSUPPORT", "firewall": "EAFNOSUPPORT",
                 "ring": "EPERM", "signal": "EPERM", "read": "done", "state": "EROFS", "lists": "EACCES", "log": "done"},
}  # fmt: skip


def test_what_parses_may_do_what_it_must_and_no_more(gateway: Container) -> None:
    """As if it was taken over: another program tries in its unit. What is printed there is in the journal."""
    gateway.path("/usr/local/lib/probe.py").write_text(PROBE)
    for module in MAY:
        drop_in = gateway.path(f"/run/systemd/system/embargo-{module}@.service.d/probe.conf")
        drop_in.parent.mkdir(parents=True)
        drop_in.write_text("[Service]\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/lib/probe.py\n")
    gateway.run("systemctl", "daemon-reload")
    for module, may in MAY.items():
        connect = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/run/embargo-units/{module}')"
        gateway.run("python3", "-c", connect)
        until(partial(has_tried_everything, gateway, module), "it has tried everything")
        lines = printed(gateway, module)
        assert dict(line.split() for line in lines) == may, "and systemd does not tell of each start and end beside it"


def test_a_resolver_that_hangs_is_ended_without_a_capability_and_another_serves(site: Site, gateway: Container) -> None:
    """It is another user's, and another unit's: its warden is killed by the kernel, and what is left of the unit by systemd."""
    hanging, *others = status_of(gateway)["workers"]
    gateway.run("kill", "-STOP", str(hanging))
    gateway.path("/etc/embargo/block.list").write_text("new.example.net\n")
    gateway.run("systemctl", "reload", "embargo")
    until(lambda: len(found := status_of(gateway)["workers"]) == 1 + len(others) and hanging not in found, "another has begun")
    until(lambda: not gateway.path(f"/proc/{hanging}").exists(), "it is gone, though it was stopped")
    assert site.blocked("new.example.net")
    said = " ".join(gateway.messages("embargo"))
    assert "did not answer in 5 s; killing it" in said
    assert re.search(r"resolver \d ended with status -9; restarting it", said)


def test_a_resolver_does_not_outlive_its_warden_nor_the_agent(site: Site, gateway: Container) -> None:
    worker, *others = status_of(gateway)["workers"]
    warden = gateway.run("ps", "-o", "ppid=", "-p", str(worker)).stdout.strip()
    looked = gateway.run("runuser", "-u", "embargo-dns", "--", "cat", f"/proc/{warden}/environ", check=False)
    assert "Permission denied" in looked.stderr, "what parses packets has its user, and must not get at it"
    gateway.run("kill", "-KILL", warden)
    until(lambda: not gateway.path(f"/proc/{worker}").exists(), "it is gone with its warden")
    until(lambda: len(status_of(gateway)["workers"]) == 1 + len(others), "another has begun")
    first, before = status_of(gateway)["workers"], pid(gateway)
    for each in first:
        gateway.run("kill", "-STOP", str(each))
    gateway.run("kill", "-KILL", before)
    until(lambda: not any(gateway.path(f"/proc/{each}").exists() for each in first), "they are gone with the agent")
    until(lambda: pid(gateway) not in (before, "0"), "it runs again")
    until(lambda: site.blocked("mygw.alipay.com"), "it serves again")
    assert gateway.run("systemctl", "list-units", "--failed", "--no-legend").stdout == ""


def test_verify_finds_no_leak(gateway: Container) -> None:
    out = gateway.run("embargo", "verify").stdout
    assert re.search(r" held, 0 unproven, \d+ kinds? skipped, no leaks$", out, re.MULTILINE), out
