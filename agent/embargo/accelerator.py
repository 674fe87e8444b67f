"""Which hot functions run compiled. `EMBARGO_ACCELERATOR` forces it: `native` (an error without them) or `none`.

The compiled modules are twins of Python functions, with the same results; a property test holds them to it. Whoever has a
twin asks here for it and takes the Python function when there is none.
"""

import importlib
import os
from types import ModuleType

VARIABLE = "EMBARGO_ACCELERATOR"


def _load(name: str) -> ModuleType | None:
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "native", "none"):
        raise ImportError(f'{VARIABLE} is "{wanted}": it must be native, none or unset')
    if wanted == "none":
        return None
    try:
        return importlib.import_module(f"embargo.{name}")
    except ImportError:
        if wanted == "native":
            raise
        return None


bulk = _load("_bulk")
fast = _load("_fastpath")

NAME = "native (Cython)" if bulk and fast else "none (pure Python)"
