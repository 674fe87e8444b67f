"""Writes docs/configuration.md from the options as the code declares them: python -m tools.docs"""

from pathlib import Path

from embargo import config

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

_HEAD = """\
# Configuration

`/etc/embargo/embargo.toml`, or the file that `-c` names. Every key is optional; an unknown one is an error that suggests what
was meant. A changed file is in force within a second; `[state]`, `[metrics]`, `[dns] workers` and `[firewall] enabled` need a
restart.

This page is made from the code by `python -m tools.docs`.

```toml
"""


def page() -> str:
    return _HEAD + config.reference().rstrip() + "\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page())
