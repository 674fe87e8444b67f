"""python -m tools.catalogue: writes blocklists/ and docs/catalogue.md from the facts, and says what is wrong with them."""

import sys
from pathlib import Path

from tools.catalogue import build, check, facts, page

TOP = Path(__file__).parent.parent.parent
ROOT = TOP / "blocklists"
PAGE = TOP / "docs" / "catalogue.md"


def main() -> int:
    overlay = facts.overlay()
    wanted = build.files(facts.read(), overlay)
    for path in (path for path in ROOT.rglob("*") if path.is_file() and str(path.relative_to(ROOT)) not in wanted):
        path.unlink()
    for name, text in wanted.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text)
    found = check.problems(ROOT)
    for problem in found:
        print(problem, file=sys.stderr)
    PAGE.write_text(page.page(ROOT))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
