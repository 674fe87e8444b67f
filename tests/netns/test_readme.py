"""Every command of the README, executed: the tour beside `make run`, the gateway's on a gateway; and the excerpt."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import excerpt
from tools.rig import until

pytestmark = pytest.mark.root

TOP = Path(__file__).parent.parent.parent
README = (TOP / "README.md").read_text()
BLOCKS = [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]
TOUR = [line for block in BLOCKS for line in block if re.match(r"dig |\.venv/bin/embargo ", line)]
GATEWAY = next(block for block in BLOCKS if block[0].startswith("embargo "))
INSTALL = next(block for block in BLOCKS if block[1:] and block[1].startswith("apt-get install"))
CONTAINER = next(block for block in BLOCKS if block[-1].startswith("docker "))
MAKE = [block[0] for block in BLOCKS if len(block) == 1 and block[0].startswith("make ")]


def test_every_command_is_one_that_is_executed_or_checked_here() -> None:
    assert [line for block in BLOCKS for line in block] == [*MAKE, *TOUR, *INSTALL, *CONTAINER, *GATEWAY]
    assert MAKE == ["make run", "make demo", "make test"]
    package = (TOP / "tests/containers/test_package.py").read_text()
    assert INSTALL[0] == "make deb"
    assert f'"{INSTALL[1].replace("./dist", "/root")}"' in package, "this is how the package is installed"
    assert (TOP / ".ci/run").read_text().rstrip().endswith("exec make test"), "this is how make test is executed"


def test_the_containers_commands_name_what_is_there() -> None:
    """No container engine is needed for the tests, so nothing is built: only files, service and binary are compared."""
    deb, directory, copy, up, status = CONTAINER
    assert deb.split("#")[0].strip() == "make deb"
    assert all((TOP / name).is_file() for name in copy.split()[2:-1])
    assert directory.split()[-1] == f"{copy.split()[-1]}/apps.d"
    compose = up.split()[3]
    assert up == f"docker compose -f {compose} up -d --build"
    service, rest = (TOP / compose).read_text().partition("services:\n  ")[2].split(":", 1)
    assert status == f"docker compose -f {compose} exec {service} embargo status"
    assert f"- {copy.split()[-1]}:/etc/embargo:ro" in rest
    (dockerfile,) = re.findall(r"dockerfile: (\S+)", rest)
    assert (TOP / dockerfile).read_text().count("dist/embargo-agent_*.deb") == 1, "what make deb has built"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as somebody would have it who has just run the set-up."""
    tree = tmp_path_factory.mktemp("checkout") / "embargo"
    ignored = shutil.ignore_patterns(".git", ".venv", "run", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")

    def ignore(directory: str, names: list[str]) -> set[str]:
        return set(ignored(directory, names)) if Path(directory) != TOP / "tools" else {"__pycache__"}

    shutil.copytree(TOP, tree, ignore=ignore, copy_function=shutil.copy2)
    (tree / ".venv").symlink_to(TOP / ".venv")
    return tree


@pytest.fixture(scope="module")
def running(checkout: Path) -> Iterator[tuple[Path, str]]:
    """`make run` in a network namespace of its own; the tree, and the port that it took."""
    out = checkout / "out"
    script = "ip link set lo up && exec make -o .venv/run.stamp run"  # never installs the checkout into the shared .venv
    with open(out, "wb") as file:
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script], cwd=checkout, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: "try:" in out.read_text() or process.poll() is not None, "make run is ready", 60)
        assert process.poll() is None, out.read_text()
        found = re.search(r"try: +dig @127\.0\.0\.1( -p (\d+))? (\S+)", out.read_text())
        assert found, out.read_text()
        yield checkout, found[2] or "53"
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)


def in_its_namespace(checkout: Path, command: str) -> subprocess.CompletedProcess[str]:
    pid = (checkout / "run/state/lock").exists() and _agent(checkout)
    return subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", *shlex.split(command)], cwd=checkout, capture_output=True, text=True,
        timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _agent(checkout: Path) -> int:
    """The pid of the agent that runs there: whoever has its control socket's configuration on the command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"run" in words and f"{checkout}/run/embargo.toml".encode() in words:
            return int(path.parent.name)
    raise AssertionError("no agent")


def test_the_tour_works_as_written(running: tuple[Path, str]) -> None:
    checkout, port = running
    outputs = []
    for line in TOUR:
        command = line.replace("dig @", f"dig -p {port} +tries=1 @") if line.startswith("dig") else line
        done = in_its_namespace(checkout, command)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        outputs.append(done.stdout)
    first, allowed = (out for line, out in zip(TOUR, outputs, strict=True) if line.startswith("dig"))
    assert "status: NXDOMAIN" in first
    assert re.search(
        r"EDE: 15 \(Blocked\): \(app=alipay function=payment list=alipay/payment\.list:\d+ rule=alipay\.com\)", first
    )
    assert "status: NXDOMAIN" not in allowed
    said = dict(zip(TOUR, outputs, strict=True))
    assert "is blocked" in said[next(line for line in TOUR if "43.227" in line)]
    assert "NOT COVERED" in said[next(line for line in TOUR if " status " in line)]
    assert "mygw.alipay.com" in said[next(line for line in TOUR if " log " in line)]


def test_an_edited_list_of_the_checkout_is_in_force(running: tuple[Path, str]) -> None:
    checkout, port = running
    with (checkout / "blocklists/alipay/payment.list").open("a") as file:
        file.write("edited.example  # by hand\n")
    until(lambda: "NXDOMAIN" in in_its_namespace(checkout, f"dig -p {port} @127.0.0.1 edited.example").stdout, "it is in force")


def test_the_demonstration_runs_and_finds_nothing_wrong() -> None:
    done = subprocess.run(["make", "demo"], cwd=TOP, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    steps = [line for line in done.stderr.splitlines() if line.endswith(" …")]
    assert len(steps) >= 5, "each step is printed before it is taken"
    for app in ("Alipay", "CamScanner", "QQ Wallet", "SHAREit", "Tencent QQ", "VMate", "WeChat Pay", "WPS Office"):
        assert app in done.stdout


def test_the_gateways_commands_work_and_print_what_the_excerpt_shows() -> None:
    assert GATEWAY == ["embargo check", "systemctl reload embargo", "embargo verify"], (
        "the transcript is of an agent after all three"
    )
    printed = excerpt.transcript()
    assert "app=alipay function=payment" in printed
    assert "port 53 redirected here" in printed
    assert re.search(r"held, 0 unproven, \d+ kinds? skipped, no leaks$", printed, re.MULTILINE)
    assert excerpt.shape(excerpt.printed(README)) == excerpt.shape(printed), "run: python -m tools.excerpt"


@pytest.mark.parametrize("change", ["verdict", "word", "line"])
def test_the_shape_of_an_excerpt_is_more_than_its_length(change: str) -> None:
    text = excerpt.printed(README)
    other = {
        "verdict": text.replace("NXDOMAIN", "NOERROR"),
        "word": text.replace("queries ", "asked   "),
        "line": text + "more\n",
    }
    assert excerpt.shape(other[change]) != excerpt.shape(text)
    assert excerpt.shape(text.replace("0:00:01", "0:12:59")) == excerpt.shape(text)
