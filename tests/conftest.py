"""Rules for every test: property tests repeat themselves in CI, and nothing is left out without a line that says so."""

import operator
import os
import sys
from typing import Any

import pytest
from hypothesis import settings

CI = os.environ.get("CI") == "true"
ROOT = os.geteuid() == 0
NEED_ROOT = pytest.StashKey[int]()
TAKE_LONG = pytest.StashKey[int]()

pytest.register_assert_rewrite("support")  # helpers' asserts show their values, as those of tests do

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if CI else "here")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without root, tests that need it are left out and counted; in CI they stay and fail. `-m "not all"` is counted too."""
    if config.getoption("markexpr") == "not all":
        config.stash[TAKE_LONG] = sum(item.get_closest_marker("all") is not None for item in items)
    needy = {item for item in items if item.get_closest_marker("root")}
    if ROOT or CI or not needy:
        return
    config.stash[NEED_ROOT] = len(needy)
    config.hook.pytest_deselected(items=list(needy))
    items[:] = [item for item in items if item not in needy]


def pytest_collection_finish() -> None:
    """A helper that fails points at the line of the test that called it; any other error is shown where it arose."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("support.", "tools.rig", "containers.steady")):
            vars(module)["__tracebackhide__"] = operator.methodcaller("errisinstance", (AssertionError, TimeoutError))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and not ROOT:
        pytest.fail("this test needs root (network namespaces and nftables), and CI must run every test: run it as root", False)


# ── with several test processes (pytest-xdist), those that collect report what they left out to the one that prints ──────


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = _left_out(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    needy, long = getattr(node, "workeroutput", {}).get("left_out", (0, 0))
    node.config.stash[NEED_ROOT], node.config.stash[TAKE_LONG] = needy, long


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    needy, long = _left_out(config)
    if needy:
        terminalreporter.write_line(f"{needy} tests were left out: they need root. Run `sudo make test`.", yellow=True)
    if long:
        terminalreporter.write_line(f"{long} tests were left out: they take long. Run `make test-all`.", yellow=True)


def _left_out(config: pytest.Config) -> tuple[int, int]:
    return config.stash.get(NEED_ROOT, 0), config.stash.get(TAKE_LONG, 0)
