"""A gateway at work: each app before and after, with real dig and real connections, in throw-away namespaces.

python -m tools.demo (make demo). Exit status 1 when something is not as it should be.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from embargo import config, names
from embargo.cli import show
from embargo.daemon.ask import client
from embargo.daemon.ask.orders import Why
from embargo.daemon.compile import compiler, sources
from embargo.lists import lists
from embargo.lists.policy import BYPASS, App, EntryKind, Network
from tools.rig import LAN4, OTHER4, UPSTREAM4, WEB4, Rig, until

TOP = Path(__file__).parent.parent
GATEWAY = f"{LAN4}.1"
FUNCTIONS = ("payment", "telemetry")

_CONFIG = """\
[dns]
listen = ["127.0.0.1:53", "lan0"]
upstream = ["{upstream}"]

[lists]
apps = ["{blocklists}"]
allow = "{root}/allow.list"
block = "{root}/block.list"

[firewall]
lan = ["lan0"]
on_stop = "remove"

[log]
events = "{root}/events.jsonl"

[state]
dir = "{root}/state"
runtime = "{root}/runtime"
"""


class Sample(NamedTuple):
    """What is tried of an app: a name of each function, and an address where the catalogue has one."""

    app: App
    names: tuple[str, ...]
    address: str


class Demo:
    def __init__(self, rig: Rig, root: Path) -> None:
        self.rig = rig
        self.wrong = 0
        self.config = root / "embargo.toml"
        blocklists = root / "blocklists"
        shutil.copytree(TOP / "blocklists", blocklists)  # a checkout's own files may be writable by a group
        for path in blocklists.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.config.write_text(_CONFIG.format(upstream=UPSTREAM4, blocklists=blocklists, root=root))
        self.samples = tuple(_samples(self.config))

    # ── the client's view ────────────────────────────────────────────────────────────────────────────────────────────

    def name(self, name: str, resolver: str = GATEWAY) -> str:
        """The first address that a resolver answers, or its RCODE; empty without an answer."""
        answer = self.rig.dig("client", f"@{resolver}", name)
        return answer.answers[0].removeprefix("A ") if answer.answers else answer.rcode

    def address(self, address: str) -> str:
        return self.rig.reach("client", address) if address else "-"

    def look(self, resolver: str) -> list[tuple[str, ...]]:
        """What each sample's names lead to and whether its address can be reached."""
        return [(*(self.name(name, resolver) for name in each.names), self.address(each.address)) for each in self.samples]

    # ── the scenes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        progress("Starting the internet's DNS and web servers")
        self.rig.serve_dns()
        self.rig.serve_web()
        self.rig.own(*(sample.address for sample in self.samples if sample.address))
        progress(f"Trying {len(self.samples)} apps from the client, without the agent")
        before = self.look(OTHER4)
        progress("Starting the agent on the gateway")
        agent = self._start()
        try:
            progress("Trying the same apps again")
            after = self.look(GATEWAY)
            self._apps(before, after)
            self._neighbours()
            self._ways_round()
            self._log()
        finally:
            agent.terminate()
            agent.wait(20)

    def _start(self) -> subprocess.Popen[bytes]:
        agent = self.rig.start("gateway", sys.executable, "-m", "embargo", "run", "-c", str(self.config))
        until(lambda: agent.poll() is not None or self.name("alipay.com") == "NXDOMAIN", "the agent answers", 30)
        if agent.poll() is not None:
            sys.exit("the agent did not start:\n" + "".join(p.read_text() for p in sorted(self.rig.directory.glob("*.log"))))
        return agent

    def _expect(self, good: bool) -> str:
        self.wrong += not good
        return "" if good else "  <-- WRONG"

    def _apps(self, before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> None:
        rows = []
        for sample, was, is_ in zip(self.samples, before, after, strict=True):
            for subject, old, new in zip((*sample.names, sample.address), was, is_, strict=True):
                if not subject:
                    rows.append((sample.app.name, "(no address of its own is known)", "", "", ""))
                    continue
                good = (old == WEB4 and new == "NXDOMAIN") or (old == "open" and new == "refused")
                rows.append((sample.app.name, subject, old, new + self._expect(good), self._why(subject)))
        print(f"\nA client ({LAN4}.10), a gateway ({GATEWAY}) and an internet, all in network namespaces.\n")
        show.table(("APP", "NAME OR ADDRESS", "BEFORE", "AFTER", "BECAUSE OF"), rows)

    def _why(self, subject: str) -> str:
        found = client.ask(str(self.config.parent / "runtime/control.sock"), Why(subject))
        return f"{found.list}:{found.line} {found.rule}"

    def _neighbours(self) -> None:
        found = {name: None for sample in self.samples for name in sample.app.neighbours}
        answers = {name: self.name(name) for name in found}
        working = [name for name, answer in answers.items() if answer == WEB4]
        print(f"\nNeighbours that still work: {len(working)} of {len(found)}, among them {', '.join(working[:6])}")
        for name in answers.keys() - set(working):
            print(f"  {name}: {answers[name]}{self._expect(False)}")
        print(f"  a web site: {self.address(WEB4)}{self._expect(self.address(WEB4) == 'open')}")

    def _ways_round(self) -> None:
        print("\nWays around the filter")
        hard_coded = self.rig.dig("client", f"@{OTHER4}", "www.alipay.com").rcode
        canary = self.rig.dig("client", f"@{GATEWAY}", "use-application-dns.net").rcode
        dot = self.rig.reach("client", OTHER4, 853)
        tried = (
            (f"dig @{OTHER4} www.alipay.com (another resolver)", hard_coded, "NXDOMAIN"),
            (f"DNS over TLS to {OTHER4}", dot, "refused"),
            ("use-application-dns.net (Firefox asks whether it may use its own)", canary, "NXDOMAIN"),
        )
        show.table(("WAY", "ANSWER"), ((way, said + self._expect(said == wanted)) for way, said, wanted in tried))

    def _log(self) -> None:
        def lines() -> list[str]:
            command = [*self.rig.prefix("gateway"), sys.executable, "-m", "embargo", "log", "-c", str(self.config)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

        until(lambda: any("  drop " in line for line in lines()), "the drops are logged")
        found = [line for line in lines() if "  dns " in line or "  drop " in line]
        print(f"\nThe event log has {len(found)} records; the last ones:")
        show.lines(f"  {line}" for line in found[-6:])


def _samples(file: Path) -> Iterator[Sample]:
    settings = config.parse(file.read_bytes(), str(file))
    loaded = sources.load(settings, compiler.guard([]))
    for app in loaded.apps:
        if app.default and app.id != BYPASS:
            yield Sample(app, tuple(filter(None, (_name(app, f) for f in FUNCTIONS))), _address(app))


def _name(app: App, function: str) -> str:
    """The first name of a function."""
    found = (
        names.to_text(entry.name)
        for list_ in app.lists
        if list_.source.function == function and not list_.source.shared
        for entry in list_.entries
        if entry.kind is not EntryKind.NETWORK and not entry.exception
    )
    return next(found, "")


def _address(app: App) -> str:
    """An address of the first network of the functions that are on."""
    for list_ in app.lists:
        if list_.source.function in FUNCTIONS and not list_.source.shared:
            for entry in list_.entries:
                if isinstance(entry.network, Network) and not entry.exception:
                    family, first, last = entry.network
                    return lists.int_to_address(family, min(first + 1, last))
    return ""


def progress(step: str) -> None:
    """Print a step on standard error, so that standard output has only the results."""
    print(f"{step} …", file=sys.stderr, flush=True)


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("make demo needs root: it makes network namespaces")
    progress("Making a client, a gateway and an internet as network namespaces")
    with tempfile.TemporaryDirectory(prefix="embargo-demo-") as root, Rig() as rig:
        demo = Demo(rig, Path(root))
        demo.run()
    print("\nEverything is removed again." if not demo.wrong else f"\n{demo.wrong} results are wrong.")
    sys.exit(bool(demo.wrong))


if __name__ == "__main__":
    main()
