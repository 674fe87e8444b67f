"""Verbs without a running agent: a compiler process reads the lists for them."""

from pathlib import Path

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
