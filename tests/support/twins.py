"""The modules that have compiled twins, and how a test makes Python do their work."""

from types import ModuleType

import pytest

from embargo import events
from embargo.daemon.resolve import intake
from embargo.dns import message, response
from embargo.lists import columns, image, lists

#: those that look for their twin at each call; `events` looks once
CALLING: tuple[ModuleType, ...] = (columns, image, intake, lists, message, response)


def without(patch: pytest.MonkeyPatch) -> None:
    """Python does the work of every compiled twin until the patch ends."""
    for module in CALLING:
        patch.setattr(module, "_native", None)
    patch.setattr(events, "_kind", events.Kind)
