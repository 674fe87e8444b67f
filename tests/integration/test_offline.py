"""Verbs without a running agent: a compiler process reads the lists for them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    made = Agent(tmp_path)
    made.write_config()
    return made


def test_check_reports_a_neighbour_that_the_catalogue_would_block(agent: Agent) -> None:
    with open(agent.root / "apps/qq/app.toml", "a") as file:
        file.write('neighbours = ["mail.qq.example", "qq.test"]\n')
    said = agent.cli("check", status=1).stdout
    assert said.startswith("qq/app.toml: mail.qq.example must keep working beside qq, and qq/core.list:1 blocks it, ")
    assert said.endswith("\n1 problem\n")


ONLY_AN_AGENT_KNOWS = ("hits", "generation")
NO_AGENT_NEEDED = (
    ("why", "alipay.example"), ("why", "203.0.113.9"), ("why", "mail.alipay.example"), ("why", "free.test"), ("apps",),
    ("apps", "qq"), ("check",), ("export", "hosts"), ("export", "nft"),
)  # fmt: skip


def test_every_verb_that_needs_no_agent_says_the_same_with_and_without_one(agent: Agent) -> None:
    def known(members: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in members.items() if key not in ONLY_AN_AGENT_KNOWS}

    def answers() -> dict[tuple[str, ...], Any]:
        done = {words: agent.cli(*words, status=None) for words in NO_AGENT_NEEDED}
        done |= {(*words, "--json"): agent.cli(*words, "--json", status=None) for words in NO_AGENT_NEEDED}
        assert not any("Traceback" in each.stderr for each in done.values())
        return {
            words: (
                each.returncode,
                json.loads(each.stdout, object_hook=known) if "--json" in words
                else re.sub("(?m) (0|-)$", "", each.stdout),  # without an agent, ATTEMPTS are -
            )
            for words, each in done.items()
        }  # fmt: skip

    without = answers()
    agent.start()
    try:
        assert answers() == without
    finally:
        agent.stop()


def test_a_list_that_cannot_be_used_is_named_by_every_verb(agent: Agent) -> None:
    (agent.root / "apps/qq/core.list").write_bytes(b"\xff\n")
    for words in (("why", "qq.example"), ("apps",), ("export", "hosts")):
        done = agent.cli(*words, status=2)
        assert f"{agent.root}/apps/qq/core.list:1: " in done.stderr, words
        assert not done.stdout, words
    assert f"{agent.root}/apps/qq/core.list:1: " in agent.cli("check", status=1).stdout


def test_a_line_that_cannot_be_used_is_a_problem_and_the_others_are_exported(agent: Agent) -> None:
    (agent.root / "block.list").write_text("com\nblock.test\n")
    done = agent.cli("export", "domains")
    assert "\nblock.test\n" in done.stdout
    assert "the lists have 1 problem; embargo check shows all" in done.stderr


def test_nothing_is_left_in_the_temporary_directory(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    agent.cli("why", "alipay.example")
    assert list(scratch.iterdir()) == []
