"""PolarDNS, a server whose replies break the protocol in every way that its authors know, as an upstream on loopback."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.agent import free_port
from tools.rig import until

PACKAGE = "polardns"
RANDOM = ("afuzz", "nfz", "rrfz")  # how modules begin whose replies differ from query to query


class Example(NamedTuple):
    """A query of PolarDNS's own documentation."""

    module: str
    name: str
    type: str

    def __str__(self) -> str:
        return f"{self.module}: {self.name} {self.type}"


def package() -> Path:
    """The folder of the installed package."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def examples() -> list[Example]:
    """Every `dig` command of the modules' documentation, once; none of the modules that fuzz at random."""
    found: set[Example] = set()
    for path in (package() / "modules").glob("*.toml"):
        if path.stem.startswith(RANDOM):
            continue
        module = tomllib.loads(path.read_text())["module"]
        for example in module.get("example", ()):
            words = [word for word in example["command"].split()[1:] if word[0] not in "@+-"]
            types = [word for word in words if re.fullmatch(r"[A-Z]+[0-9]*", word)]
            names = [word for word in words if "." in word]
            found.update(Example(path.stem, name, types[0] if types else "A") for name in names[:1])
    return sorted(found)


@contextmanager
def serving(directory: Path) -> Iterator[int]:
    """The server, from a copy, since it takes its settings and generates its code beside itself. Its port on loopback."""
    port = free_port()
    copy = directory / PACKAGE
    shutil.copytree(package(), copy)
    settings = copy / "polardns.toml"
    settings.write_text(re.sub(r"(?m)^listen_addr = .*$", f'listen_addr = "127.0.0.1:{port}"', settings.read_text()))
    command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--pid", "--fork", "--kill-child", "--"]
    with open(directory / "polar.log", "wb") as log:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", f"{PACKAGE}.core"], cwd=directory, env={"PYTHONPATH": str(directory)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or _listens(port), "PolarDNS answers", 30)
        assert process.poll() is None, (directory / "polar.log").read_text(errors="replace")[-2000:]
        yield port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    dig = ["dig", "@127.0.0.1", "-p", str(port), "+tries=1", "+time=1", "always.yourdomain.com"]
    return "status: NOERROR" in subprocess.run(dig, capture_output=True, text=True, timeout=10).stdout
