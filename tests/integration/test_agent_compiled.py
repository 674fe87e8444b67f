"""What a compiler hands over is checked, and a start goes on with the last generation that works."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.agent import Agent, running

#: for the processes of an agent: a compiler that adds a local record that no resolver can use, a resolver that refuses one
TAKEN_OVER = """
import sys
words = " ".join(sys.orig_argv)
if "compiler" in words:
    from embargo.daemon.compile import sources
    load = sources.load
    sources.load = lambda *a: load(*a)._replace(hosts=HOSTS)
if "resolve" in words:
    from embargo.daemon.resolve import settings
    zones = settings.zones
    def refusing(given):
        if "refused.test" in given.hosts:
            raise ValueError("refused")
        return zones(given)
    settings.zones = refusing
"""


@contextmanager
def taken_over(directory: Path, hosts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(TAKEN_OVER.replace("HOSTS", repr({k: tuple(v) for k, v in hosts.items()})))
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(directory))
        yield


@pytest.mark.parametrize(
    ("hosts", "why"),
    [({"x..y": ["192.0.2.1"]}, "the configured lists cannot be used"), ({"refused.test": ["192.0.2.1"]}, "refused")],
)  # fmt: skip
def test_a_start_goes_on_with_the_last_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: dict[str, list[str]], why: str
) -> None:
    """The first is refused by the supervisor, the second by the resolvers alone."""
    with running(tmp_path) as agent:
        pass
    (tmp_path / "block.list").write_text("fresh.test\n")
    with taken_over(tmp_path / "hook", hosts, monkeypatch):
        for _ in range(2):
            agent.start()
            try:
                assert agent.answer("status")["generation"] == 1
                assert agent.blocked("alipay.example")
                assert not agent.blocked("fresh.test")
                assert why in agent.errors
                assert "generation 1, the last valid one, is in force" in agent.errors
            finally:
                agent.stop()
    agent.start()
    try:
        assert agent.blocked("fresh.test"), "with a good compiler again"
    finally:
        agent.stop()


def test_without_an_earlier_generation_the_agent_says_what_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(tmp_path)
    with taken_over(tmp_path / "hook", {"refused.test": ["192.0.2.1"]}, monkeypatch):
        agent.start(wait=False)
        assert agent.process is not None
        try:
            assert agent.process.wait(30) == 1
        except subprocess.TimeoutExpired:
            agent.process.kill()
            raise
    assert "resolver 0: ValueError: refused" in agent.errors
