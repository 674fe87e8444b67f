"""A reload that fails, at whatever step, leaves everything as it was."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.rig import LAN4, Rig

pytestmark = pytest.mark.root

TOP = Path(__file__).parent.parent.parent
CONFIG = """
[dns]
listen = [{listen}]
upstream = ["127.0.0.1:9"]
workers = 2
block_mode = "{mode}"
[lists]
apps = ["{root}/apps"]
allow = "{root}/allow.list"
block = "{root}/block.list"
[policy]
functions = "all"
[firewall]
lan = ["lan0"]
[log]
events = "{root}/{log}.jsonl"
[state]
dir = "{root}/state"
runtime = "{root}/runtime"
"""


def test_a_reload_that_fails_at_any_step_leaves_everything_as_it_was(tmp_path: Path) -> None:
    app = tmp_path / "apps/alipay"
    app.mkdir(parents=True)
    (app / "app.toml").write_text('id = "alipay"\nname = "Alipay"\ndefault = true\n')
    (app / "payment.list").write_text("old.example\n203.0.113.10\n")
    old = CONFIG.format(root=tmp_path, listen=f'"{LAN4}.1:53"', mode="nxdomain", log="old")
    new = CONFIG.format(root=tmp_path, listen=f'"{LAN4}.1:53", "127.0.0.7:53"', mode="refused", log="new")
    (tmp_path / "embargo.toml").write_text(old)
    (tmp_path / "changed.toml").write_text(new)
    with Rig() as rig:
        environment = f"PYTHONPATH={TOP}/tests:{TOP}"
        command = ["env", environment, sys.executable, "-m", "support.failing_steps", str(tmp_path / "embargo.toml")]
        done = rig.run("gateway", *command, seconds=120)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    before, through = found["before"], found["through"]
    assert (before["blocked"], through["blocked"]) == (["203.0.113.10"], ["203.0.113.20"])
    assert "127.0.0.7:53" in through["listening"]
    assert "127.0.0.7:53" not in before["listening"]
    assert before["answers"][f"old.example at {LAN4}.1"] == ["NXDOMAIN"]
    assert through["answers"]["new.example at 127.0.0.7"] == ["REFUSED"]
    assert (before["log"], through["log"]) == (f"{tmp_path}/old.jsonl", f"{tmp_path}/new.jsonl")
    assert found["steps"] == [
        "the event log", "the firewall", "the resolvers", "the link to the generation", "the listening sockets"
    ]  # fmt: skip
    assert [(row["step"], row["after"]) for row in found["failures"]] == [
        (step, after) for step in found["steps"] for after in (False, True)
    ]
    for row in found["failures"]:
        assert row["errors"]
        assert f"{row['step']} fails" in row["errors"][0]
        assert row["shows"] == before, (row["step"], row["after"])
