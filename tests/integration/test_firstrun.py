"""What `make run` decides before the agent starts: which port, which layers, and whether an earlier configuration is kept."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo import config
from support.agent import free_port
from tools import firstrun
from tools.firstrun import Choice

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port whose UDP half this process holds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def as_nobody(code: str) -> str:
    command = [*AS_NOBODY, sys.executable, "-c", code]
    return subprocess.run(command, cwd=firstrun.TOP, capture_output=True, text=True, check=True).stdout.strip()


def test_a_port_in_use_is_said_to_be_by_its_process(taken: int) -> None:
    name = Path("/proc/self/comm").read_text().strip()
    assert firstrun.obstacle(taken) == f"is in use by {name} (pid {os.getpid()})"


def test_a_free_port_has_no_obstacle() -> None:
    assert firstrun.obstacle(free_port()) == ""


@pytest.mark.root
def test_a_port_that_needs_root_is_not_said_to_be_in_use() -> None:
    port = next(port for port in range(1000, 600, -1) if not firstrun.obstacle(port))
    code = f"from tools import firstrun; print(firstrun.obstacle({port}))"
    assert as_nobody(code) == "needs root or CAP_NET_BIND_SERVICE"


@pytest.mark.root
def test_a_port_that_needs_root_and_is_in_use_is_said_to_be_in_use() -> None:
    port = next(port for port in range(1000, 600, -1) if not firstrun.obstacle(port))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
        sock.listen()
        assert as_nobody(f"from tools import firstrun; print(firstrun.obstacle({port}))") == "is in use by a process of root"


def test_the_first_port_without_an_obstacle_is_chosen_and_the_reason_given(taken: int) -> None:
    port = free_port()
    choice, notes = firstrun.choose((taken, port))
    assert choice.port == port
    assert notes[0].startswith(f"Port {taken} is in use by ")
    assert notes[0].endswith(f": listening on port {port} instead.")


def test_without_any_port_each_has_its_reason(taken: int) -> None:
    with pytest.raises(SystemExit, match=rf"^No port to listen on: port {taken} is in use by .*\[dns\] listen"):
        firstrun.choose((taken,))


@pytest.mark.parametrize("choice", [Choice(53, True), Choice(5300, False)])
def test_what_is_written_is_a_configuration_and_is_recognised_until_it_is_edited(choice: Choice) -> None:
    text = firstrun.render(choice)
    settings = config.parse(text.encode(), "embargo.toml")
    assert settings.firewall.enabled == choice.firewall
    assert [listen.port for listen in settings.dns.listen] == [choice.port] * 2
    assert firstrun.chosen(text) == choice
    assert firstrun.chosen(text + "# mine\n") is None
    assert firstrun.chosen("") is None


def test_an_unedited_configuration_is_written_again_when_something_else_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "embargo.toml"
    monkeypatch.setattr(firstrun, "choose", lambda: (Choice(5300, False), ["why"]))
    assert firstrun.write(file) == ["why", f"Configuration written: {file}"]
    assert firstrun.write(file) == ["why", f"Configuration: {file}"]
    monkeypatch.setattr(firstrun, "choose", lambda: (Choice(53, True), []))
    (line,) = firstrun.write(file)
    assert line.startswith("Configuration written again")
    assert firstrun.chosen(file.read_text()) == Choice(53, True)


@pytest.mark.root
def test_an_edited_configuration_stays_and_unused_powers_are_named(tmp_path: Path) -> None:
    file = tmp_path / "embargo.toml"
    text = firstrun.render(Choice(5300, False)) + "# mine\n"
    file.write_text(text)
    said = "\n".join(firstrun.write(file))
    assert file.read_text() == text
    assert "edited, so it is not changed" in said
    assert "firewall.enabled = false" in said


def test_an_agent_that_runs_is_noticed_by_its_lock(tmp_path: Path) -> None:
    assert not firstrun.running(tmp_path)
    with open(tmp_path / "lock", "w", encoding="ascii") as file:
        assert not firstrun.running(tmp_path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert firstrun.running(tmp_path)


@pytest.fixture
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `tools/run` needs of a checkout, owned by the user nobody, where that user can reach it."""
    directory = Path("/var/tmp") / f"embargo-checkout-{os.getpid()}"
    for name in ("blocklists", "tools"):
        shutil.copytree(firstrun.TOP / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "bench"))
    shutil.copy(firstrun.TOP / "pyproject.toml", directory)
    (directory / ".venv").symlink_to(firstrun.TOP / ".venv")
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            os.chown(path, NOBODY, NOBODY)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def run(checkout: Path, *prefix: str) -> str:
    """What `tools/run` prints in a network namespace of its own; the agent is stopped once it is ready."""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *prefix, "tools/run"]
    with subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("try:"):
                process.send_signal(signal.SIGINT)
    return "".join(lines)


@pytest.mark.root
def test_a_run_as_root_after_one_without_uses_what_root_may(checkout: Path) -> None:
    without = run(checkout, *AS_NOBODY)
    assert "Port 53 needs root or CAP_NET_BIND_SERVICE: listening on port 5300 instead." in without
    assert "addresses are not" in without
    assert "on 127.0.0.1:5300" in without
    as_root = run(checkout)
    assert "Configuration written again" in as_root
    assert "on 127.0.0.1:53," in as_root
    assert "enabled = true" in (checkout / "run/embargo.toml").read_text()


@pytest.mark.root
def test_a_run_without_root_names_what_an_earlier_run_left_to_root(checkout: Path) -> None:
    (checkout / "run").mkdir()
    os.chown(checkout / "run", NOBODY, NOBODY)
    (checkout / "run/lock").touch()
    out = run(checkout, *AS_NOBODY)
    assert out.startswith(f"{checkout}/run/lock belongs to another user")
    assert "remove" in out


def test_the_set_up_says_each_step_before_it_takes_it(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(firstrun.TOP / "tools/venv", tmp_path / "tools")
    making = 'cp pip "$3/bin/pip"'  # python -m venv .venv
    for name, script in (("tools/apt", 'echo "apt $*"'), ("pip", 'echo "pip $*"'), ("python", making)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [tmp_path / "tools/venv", "some.lock"], env=os.environ | {"PYTHON": str(tmp_path / "python")}, capture_output=True,
        stdin=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    apt, libraries, ours = done.stdout.splitlines()
    assert apt.startswith("apt python3 ")
    assert libraries.endswith("-r some.lock")
    assert ours.endswith("-e .")
    assert done.stderr.splitlines() == [
        "Making the virtual environment .venv …",
        "Installing the Python libraries of some.lock …",
        "Compiling Embargo and installing it into .venv, about 20 s …",
    ]
