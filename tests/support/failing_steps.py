"""A supervisor whose reload fails at each step in turn, before the step and after it: python -m support.failing_steps CONFIG.

The configuration file, an app's list and the reload's log file differ from what is in force. What a client, the kernel and the
file system show is printed as JSON before and after each reload that failed, and after the one that was let through.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from embargo import config
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.reload import Step
from embargo.daemon.supervise.supervisor import Supervisor

NAMES = ("old.example", "new.example")


def shown(agent: Supervisor) -> dict[str, Any]:
    """Listening sockets, blocked addresses, answers at every address, the event log's file, files on disk."""
    assert agent.generation is not None
    state = agent.settings.state.dir
    listening = subprocess.run(["ss", "-Hlnut"], capture_output=True, text=True, check=True).stdout
    addresses = sorted({line.split()[4] for line in listening.splitlines()})
    table = subprocess.run(["nft", "list", "table", "inet", "embargo"], capture_output=True, text=True, check=True).stdout
    answers = {
        f"{name} at {address}": subprocess.run(
            ["dig", f"@{address}", "+tries=1", "+time=1", "+noall", "+comments", name], capture_output=True, text=True
        ).stdout
        for address in ("192.0.2.1", "127.0.0.7") for name in NAMES
    }  # fmt: skip
    return {
        "listening": addresses,
        "blocked": sorted(set(re.findall(r"203\.0\.113\.\d+", table))),
        "answers": {key: re.findall(r"status: (\w+)", text) for key, text in answers.items()},
        "log": agent.journal.path,
        "current": os.readlink(f"{state}/generations/current"),
        "generations": sorted(os.listdir(f"{state}/generations")),
        "in force": agent.generation.number,
        "settings": agent.settings.log.events,
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def failing(step: Step, *, after: bool) -> Step:
    async def do() -> None:
        if after:
            await step.do()
        raise OSError(28, f"{step.name} fails")

    return step._replace(do=do)


async def scenario(agent: Supervisor, change: Callable[[], None]) -> dict[str, Any]:
    reloads, real = agent.reloads, agent.reloads._steps
    before = await asyncio.to_thread(shown, agent)
    change()
    failures = []
    number, after = 0, False
    while True:
        names: list[str] = []

        def steps(*arguments: Any, number: int = number, after: bool = after, names: list[str] = names) -> list[Step]:
            made = real(*arguments)
            names += [step.name for step in made]
            return [failing(step, after=after) if n == number else step for n, step in enumerate(made)]

        setattr(reloads, "_steps", steps)  # noqa: B010 # mypy knows it as a method
        outcome = await agent.reload("a test")
        if outcome.ok:
            break
        row = {"step": names[number], "after": after, "errors": [str(error) for error in outcome.errors]}
        failures.append(row | {"shows": await asyncio.to_thread(shown, agent)})
        number, after = (number + 1, False) if after else (number, True)
    return {"steps": names, "before": before, "failures": failures, "through": await asyncio.to_thread(shown, agent)}


def main() -> None:
    file = Path(sys.argv[1])
    settings = config.parse(file.read_bytes(), str(file))

    def change() -> None:
        file.write_text((file.parent / "changed.toml").read_text())
        (file.parent / "apps/alipay/payment.list").write_text("new.example\n203.0.113.20\n")

    @contextlib.asynccontextmanager
    async def serve(agent: Supervisor) -> AsyncIterator[None]:
        yield

    async def forever() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        agent = Supervisor(settings, await asyncio.to_thread(surroundings.look, settings))
        for method in ("files", "machine"):  # only the test reloads
            setattr(agent.follower, method, forever)
        work: list[Awaitable[None]] = []

        def ready(agent: Supervisor) -> None:
            async def play() -> None:
                print(json.dumps(await scenario(agent, change)))
                agent._stop.set()

            work.append(asyncio.get_running_loop().create_task(play()))

        await agent.run(serve, ready)
        await work[0]

    asyncio.run(run())


if __name__ == "__main__":
    main()
