"""The Debian package: installed, upgraded, removed and purged by dpkg on a machine that is up."""

import re
import subprocess
from pathlib import Path

import pytest

from containers.conftest import CONFIG, GATEWAY, LISTED, UPSTREAM, Site, install, status_of
from containers.steady import assert_nothing_missed, watched
from embargo import __version__
from support.gateway_page import PAGE, advertised_resolvers, block, leased_resolvers
from support.lab import TOP, Container
from tools.rig import until, within

pytestmark = pytest.mark.root

# what dpkg and systemd write about any package, and users, which stay
OTHERS = ("/var/lib/dpkg/", "/var/log/", "/var/cache/", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow",
          "/etc/.pwd.lock", "/etc/subuid", "/etc/subgid", "/tmp/", "/var/tmp/", "/var/lib/systemd/")  # fmt: skip


def files(machine: Container) -> set[str]:
    found = machine.run("find", "/", "/run", "-xdev", "-not", "-type", "d", "-print", "-o", "-name", "*embargo*", "-print")
    paths = (path for path in found.stdout.splitlines() if not path.startswith("/root/"))
    return {path for path in paths if "embargo" in path or not path.startswith((*OTHERS, "/run/"))}


def test_an_installation_leaves_a_running_enabled_service(deb: Path, bare: Container) -> None:
    done = install(bare, deb)
    assert "warning" not in done.stdout + done.stderr
    assert bare.run("systemctl", "is-enabled", "embargo").stdout == "enabled\n"
    assert bare.run("systemctl", "is-active", "embargo").stdout == "active\n"
    assert status_of(bare)["version"] == __version__
    assert "EDE: 15 (Blocked)" in bare.run("dig", "@127.0.0.1", "mygw.alipay.com").stdout
    assert bare.run("id", "-nG", "embargo-dns").stdout == "embargo-dns\n"
    assert bare.run("getent", "group", "embargo").stdout.startswith("embargo:")
    listed = bare.run("dpkg", "--listfiles", "embargo-agent").stdout.splitlines()
    for page in ("man1/embargo.1.gz", "man5/embargo.toml.5.gz", "man5/embargo-lists.5.gz", "man5/embargo-events.5.gz"):
        assert f"/usr/share/man/{page}" in listed


def test_apt_installs_it_as_the_readme_says(deb: Path, bare: Container) -> None:
    bare.path(f"/root/{deb.name}").write_bytes(deb.read_bytes())
    bare.run("sh", "-ec", "apt-get install /root/embargo-agent_*.deb")
    assert bare.run("systemctl", "is-active", "embargo").stdout == "active\n"


def test_the_shipped_configuration_is_one_without_problems(deb: Path, bare: Container) -> None:
    bare.path("/etc/resolv.conf").write_text(f"nameserver {UPSTREAM}\n")
    install(bare, deb)
    assert bare.run("embargo", "check").stdout == "no problems\n"


def test_the_shells_complete_verbs(gateway: Container) -> None:
    script = """. /usr/share/bash-completion/completions/embargo
COMP_WORDS=(embargo rel) COMP_CWORD=1
_embargo_completion embargo
echo "${COMPREPLY[@]}" """
    assert gateway.run("bash", "-c", script).stdout == "reload\n"


def test_an_upgrade_keeps_configuration_lists_and_state(deb: Path, older: Path, site: Site, bare: Container) -> None:
    install(bare, older)
    assert str(status_of(bare)["version"]).startswith("0.0.1~")
    bare.path("/etc/embargo/embargo.toml").write_text(CONFIG)
    bare.path("/etc/embargo/allow.list").write_text("allowed.alipay.com\n")
    bare.run("systemctl", "reload", "embargo")
    bare.run("embargo", "block", "mine.example.net")
    before = status_of(bare)
    install(bare, deb, "--force-confold")  # as unattended-upgrades does; without it dpkg asks
    after = status_of(bare)
    assert after["version"] == __version__
    assert after["pid"] != before["pid"]
    assert int(str(after["generation"])) >= int(str(before["generation"]))
    assert bare.path("/etc/embargo/embargo.toml").read_text() == CONFIG
    assert site.blocked("mine.example.net")
    assert site.answered("allowed.alipay.com")
    assert site.blocked("mygw.alipay.com")
    owners = "find /var/lib/embargo /var/log/embargo -printf '%u\\n' | sort -u"
    assert bare.run("sh", "-c", owners).stdout == "embargo\n"
    for version in (older, deb):  # there and back: units that listen lose their files, and get them again
        install(bare, version, "--force-confold")
        assert bare.run("systemctl", "is-active", "embargo").stdout == "active\n"
        assert site.blocked("mine.example.net")
    assert bare.run("systemctl", "is-active", "embargo-resolver.socket").stdout == "active\n"


@pytest.mark.parametrize("how", ["upgrade", "rollback"])
def test_nothing_gets_lost_or_through_while_another_version_is_installed(
    how: str, newer: Path, older: Path, site: Site, gateway: Container
) -> None:
    """By apt-get to a newer one, by dpkg back to an older one, with clients at work all the time."""
    gateway.path("/etc/embargo/allow.list").write_text("allowed.alipay.com\n")
    gateway.run("systemctl", "reload", "embargo")
    gateway.run("embargo", "block", "mine.example.net")
    before = status_of(gateway)
    with watched(site, gateway, 6.0) as seen:
        if how == "upgrade":
            gateway.path(f"/root/{newer.name}").write_bytes(newer.read_bytes())
            gateway.run("apt-get", "install", "--yes", f"/root/{newer.name}")
        else:
            done = install(gateway, older, "--force-confold")
            assert "downgrading embargo-agent" in done.stdout + done.stderr
    assert_nothing_missed(seen, 6.0)
    after = status_of(gateway)
    version = gateway.run("embargo", "version").stdout.strip()
    assert str(after["version"]).startswith("99+" if how == "upgrade" else "0.0.1~")
    assert str(after["version"]) in version
    assert after["pid"] != before["pid"]
    assert int(str(after["generation"])) >= int(str(before["generation"]))
    assert gateway.path("/etc/embargo/embargo.toml").read_text() == CONFIG
    assert site.blocked("newly-listed.example.net") == (how == "upgrade")
    assert site.blocked("mine.example.net")
    assert site.answered("allowed.alipay.com")
    assert gateway.run("systemctl", "show", "--property=NRestarts", "--value", "embargo").stdout == "0\n"


def test_a_removal_ends_the_blocking_and_a_purge_leaves_nothing(deb: Path, site: Site, bare: Container) -> None:
    before = files(bare)
    install(bare, deb)
    bare.path("/etc/embargo/embargo.toml").write_text(CONFIG)
    bare.path("/etc/embargo/apps.d/mine.txt").write_text("")
    bare.run("systemctl", "restart", "embargo")
    bare.run("embargo", "block", "mine.example.net")
    assert not site.reaches(LISTED)
    bare.run("dpkg", "--remove", "embargo-agent")
    assert site.reaches(LISTED)
    assert site.answered("mygw.alipay.com", UPSTREAM)
    assert bare.path("/etc/embargo/embargo.toml").read_text() == CONFIG
    assert bare.path("/var/lib/embargo").is_dir()
    done = bare.run("dpkg", "--purge", "embargo-agent")
    assert "warning" not in done.stdout + done.stderr
    bare.run("systemctl", "daemon-reload")
    assert files(bare) - before == set()
    assert before - files(bare) == set()


def test_a_backup_as_the_page_makes_it_brings_everything_back(deb: Path, site: Site, bare: Container) -> None:
    (command,) = block("sh", "tar ").splitlines()
    install(bare, deb)
    bare.path("/etc/embargo/embargo.toml").write_text(CONFIG)
    bare.path("/etc/embargo/allow.list").write_text("allowed.alipay.com\n")
    bare.run("systemctl", "reload", "embargo")
    bare.run("embargo", "block", "mine.example.net")
    bare.run("sh", "-c", f"cd /root && {command}")
    bare.run("dpkg", "--purge", "embargo-agent")
    install(bare, deb)
    assert not bare.path("/var/lib/embargo/local/block.list").exists()
    bare.run("tar", "-C", "/", "-xf", "/root/embargo.tar.gz")
    bare.run("chown", "-R", "embargo:", "/var/lib/embargo")
    bare.run("systemctl", "restart", "embargo")
    assert bare.run("embargo", "check").stdout == "no problems\n"
    assert site.blocked("mine.example.net")
    assert site.answered("allowed.alipay.com")


def test_every_path_of_the_page_is_there(gateway: Container) -> None:
    gateway.run("embargo", "block", "mine.example.net")
    paths = set(re.findall(r"`(/(?:etc|usr/share|usr/share/doc|var/lib|var/log|run)/embargo[^`\s]*)`", PAGE))
    assert len(paths) > 8
    assert {path for path in paths if gateway.run("test", "-e", path, check=False).returncode} == set()


def test_the_pages_are_in_the_package_and_their_links_lead_somewhere(gateway: Container) -> None:
    top = "/usr/share/doc/embargo-agent"
    pages = gateway.run("find", top, "-name", "*.md").stdout.splitlines()
    assert {f"{top}/{page.relative_to(TOP)}" for page in (TOP / "README.md", *TOP.glob("docs/*.md"))} <= set(pages)
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", gateway.path(page).read_text()):
            assert "://" in target or (gateway.path(page).parent / target).exists(), f"{page}: {target}"
    named = gateway.run("systemctl", "show", "--property=Documentation", "--value", "embargo").stdout.split()
    (page,) = (each.removeprefix("file:") for each in named if each.startswith("file:"))
    assert gateway.path(page).read_text() == PAGE


def test_clients_of_an_agent_that_does_not_start_get_out_and_back_as_the_page_says(site: Site, gateway: Container) -> None:
    (row,) = re.findall(r"^\| the agent does not start and everybody is offline .*$", PAGE, re.MULTILINE)
    stop, delete, start = re.findall(r"`((?:systemctl st|nft )[^`]*)`", row)
    gateway.path("/etc/embargo/embargo.toml").write_text(CONFIG + "[policy]\nfunctoins = []\n")
    gateway.run("systemctl", "restart", "embargo", check=False)
    assert "status:" not in site.dig("www.example.net", "+time=1"), "nobody is there"
    assert not site.answered("www.example.net", UPSTREAM), "and nobody else may be asked"
    for command in (stop, delete):
        gateway.run(*command.split())
    assert site.answered("mygw.alipay.com", UPSTREAM)
    assert site.reaches(LISTED)
    gateway.path("/etc/embargo/embargo.toml").write_text(CONFIG)
    gateway.run(*start.split())
    assert site.blocked("mygw.alipay.com")
    assert "EDE: 15 (Blocked)" in site.dig("mygw.alipay.com", server=UPSTREAM)
    assert not site.reaches(LISTED)


def test_networkd_tells_clients_of_us_as_the_page_says(site: Site, gateway: Container) -> None:
    gateway.path("/etc/systemd/network/lan0.network").write_text(block("networkd"))
    # that of Debian 12 has trouble with one that somebody else has put there without a broadcast address
    site.lab.shell("ip -n gateway address flush dev lan0 scope global")
    gateway.run("systemctl", "start", "systemd-networkd")
    space = f"/proc/{site.client.pid}/ns/net"
    try:
        until(lambda: within(space, leased_resolvers) == [GATEWAY], "the lease names us alone", 60)
        until(lambda: within(space, advertised_resolvers) == ["2001:db8:1::1"], "so does the advertisement", 60)
        said = gateway.messages("systemd-networkd")
        assert not [text for text in said if "Unknown" in text or "Failed to parse" in text]
        until(lambda: site.blocked("mygw.alipay.com"), "the agent has followed")
    finally:
        gateway.kill()
        site.lab.shell(f"""ip -n gateway address flush dev lan0 scope global
ip -n gateway address add {GATEWAY}/24 dev lan0""")


def test_a_later_commit_is_a_higher_version(deb: Path, older: Path, newer: Path) -> None:
    def version(path: Path) -> str:
        return subprocess.run(
            ["dpkg-deb", "--field", path, "Version"], capture_output=True, text=True, check=True
        ).stdout.strip()

    own = version(deb)
    assert re.fullmatch(rf"{re.escape(__version__)}(\+git\d{{14}}\.[0-9a-f]{{8,}})?", own)
    assert deb.name.startswith(f"embargo-agent_{own}_")
    assert list(deb.parent.glob("*.deb")) == [deb], "so the commands of the pages name one file; others are in previous/"
    later = f"{__version__}+git29991231235959.00000000"
    for low, high in ((version(older), own), (own, later), (later, f"{__version__}.1"), (own, version(newer))):
        subprocess.run(["dpkg", "--compare-versions", low, "lt", high], check=True)


def test_lintian_finds_no_error(deb: Path) -> None:
    done = subprocess.run(["lintian", "--allow-root", "--fail-on", "error", deb], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = [line for line in done.stdout.splitlines() if line.startswith("W:")]
    assert all("unusual-interpreter" in line and "pyroute2" in line for line in warnings), "\n".join(warnings)
