"""What several modules of this folder use."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.guard.orders import Stop
from support.guardian import Guardian
from tools.rig import Rig


@pytest.fixture
def guardian(rig: Rig, tmp_path: Path) -> Iterator[Guardian]:
    state = tmp_path / "learnt.jsonl"
    state.write_text(json.dumps({"version": 1, "saved": time.time()}) + "\n")
    made = Guardian(rig, state)
    try:
        yield made
        made.ask(Stop("remove"))
    finally:
        made.close()
