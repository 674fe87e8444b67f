"""python -m tools.checked [PYTEST ARGUMENTS] — the tests of the compiled twins, in a build that checks every index.

The released build leaves out checks of what its code has made sure of. This one checks each index (boundscheck), that arrays
are there (initializedcheck) and that objects are (nonecheck). It is made from a copy of the tree, into build/checked.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).parent.parent
INTO = TOP / "build" / "checked"
UNCHECKED = "boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True"
CHECKED = "boundscheck=True, wraparound=False, initializedcheck=True, nonecheck=True, cdivision=True"
TESTS = (
    "tests/property/test_twins.py", "tests/property/test_fastpath.py", "tests/unit/test_fastpath.py",
    "tests/integration/test_intake.py",
)  # fmt: skip


def build(into: Path, *, compiler: str = "", linker: str = "") -> list[Path]:
    """Build the package with checked twins into a directory; their files. `compiler`, `linker`: flags besides."""
    with tempfile.TemporaryDirectory(prefix="embargo-checked-") as copy:
        made = shutil.ignore_patterns("*.so", "*.c", "*.egg-info", "__pycache__")
        shutil.copytree(TOP / "agent", f"{copy}/agent", ignore=made)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(TOP / name, copy)
        for source in Path(copy).rglob("*.pyx"):
            source.write_text(source.read_text().replace(UNCHECKED, CHECKED))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-build-isolation"]
        subprocess.run(
            [*command, "--no-deps", "--no-cache-dir", "--upgrade", "--target", into, copy],
            check=True, env={**os.environ, "CFLAGS": compiler, "LDFLAGS": linker},
        )  # fmt: skip
    built = sorted((into / "embargo" / "native").glob("*.so"))
    if len(built) != len(list((TOP / "agent/embargo/native").glob("*.pyx"))):
        raise SystemExit(f"the twins were not built: there are {[path.name for path in built]}; is there a compiler?")
    return built


def main() -> int:
    build(INTO)
    environment = {**os.environ, "PYTHONPATH": str(INTO), "EMBARGO_ACCELERATOR": "native"}
    return subprocess.call([sys.executable, "-m", "pytest", *(sys.argv[1:] or TESTS)], env=environment, cwd=TOP)


if __name__ == "__main__":
    sys.exit(main())
