"""The compiled modules under sanitizers, for a bounded time."""

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent.parent


@pytest.mark.all  # builds every twin once more; test_twins compares them in each run
def test_the_compiled_modules_survive_what_nobody_means() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz", "--seconds", "6"], cwd=TOP, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert int(done.stdout.split()[0]) > 0, "how many depends on what else the machine does"
