"""Which hot functions run compiled. `EMBARGO_ACCELERATOR` forces it: `native` (an error without them) or `none`.

The compiled modules in `native` are twins of Python functions, with the same results; property tests hold them to it. A module
that has a twin loads it here, and does the work itself when there is none.
"""

import importlib
import os
from types import ModuleType

VARIABLE = "EMBARGO_ACCELERATOR"
TWINS = ("columns", "events", "fastpath", "image", "intake", "lists", "message", "response")

_wanted = os.environ.get(VARIABLE, "")
if _wanted not in ("", "native", "none"):
    raise ImportError(f'{VARIABLE} is "{_wanted}": it must be native, none or unset')


def load(name: str) -> ModuleType | None:
    """The compiled twin of this name, or None where Python is to do the work. ImportError when it is forced and missing."""
    if _wanted == "none":
        return None
    try:
        return importlib.import_module(f"embargo.native.{name}")
    except ImportError:
        if _wanted == "native":
            raise
        return None


def name() -> str:
    """What `embargo status` calls the accelerator: native when every twin can be loaded."""
    return "native (Cython)" if all(map(load, TWINS)) else "none (pure Python)"
