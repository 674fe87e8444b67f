"""Rules that hold for every test: property tests repeat themselves in CI, and nothing that needs root is left out unseen."""

import os

import pytest
from hypothesis import settings

CI = os.environ.get("CI") == "true"
ROOT = os.geteuid() == 0
LEFT_OUT = pytest.StashKey[int]()

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if CI else "here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without root, what needs it is left out, with a line that says so; in CI it stays and fails."""
    needy = [item for item in items if item.get_closest_marker("root")]
    if ROOT or CI or not needy:
        return
    config.stash[LEFT_OUT] = len(needy)
    config.hook.pytest_deselected(items=needy)
    items[:] = [item for item in items if item not in set(needy)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and not ROOT:
        pytest.fail("this test needs root (network namespaces and nftables), and CI must run every test: run it as root", False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{number} tests were left out: they need root. Run `sudo make test` for all.", yellow=True)
