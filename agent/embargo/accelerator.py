"""Loads the compiled twins. `EMBARGO_ACCELERATOR` forces a choice: `native` (it is an error if one is missing) or `none`.

The compiled modules in `native` are twins of Python functions with the same results, which property tests verify. A module
with a twin loads it here, and uses its own Python functions if there is none.
"""

import importlib
import os
from types import ModuleType

VARIABLE = "EMBARGO_ACCELERATOR"
TWINS = ("attempts", "columns", "events", "fastpath", "image", "intake", "lists", "message", "response")

_wanted = os.environ.get(VARIABLE, "")
if _wanted not in ("", "native", "none"):
    raise ImportError(f'{VARIABLE} is "{_wanted}": it must be native, none or unset')


def load(name: str) -> ModuleType | None:
    """The compiled twin of this name; None if Python is to be used. ImportError if it is missing but forced."""
    if _wanted == "none":
        return None
    try:
        return importlib.import_module(f"embargo.native.{name}")
    except ImportError:
        if _wanted == "native":
            raise
        return None


def name() -> str:
    """The name of the accelerator in `embargo status`: native if all twins can be loaded."""
    return "native (Cython)" if all(map(load, TWINS)) else "none (pure Python)"
