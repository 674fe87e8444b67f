"""Writes the man pages as Markdown, and the shell completions: python -m tools.manual PAGES SHARE

The pages are generated from the click commands, the declared options and docs/; tools/deb converts them to roff.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

import embargo
from embargo import config
from embargo.cli import command, verbs

DOCS = Path(__file__).parent.parent / "docs"

COMPLETIONS = {
    "bash-completion/completions/embargo": BashComplete,
    "zsh/vendor-completions/_embargo": ZshComplete,
    "fish/vendor_completions.d/embargo.fish": FishComplete,
}

FILES = {
    "/etc/embargo/embargo.toml": "the configuration: **embargo.toml**(5)",
    "/etc/embargo/allow.list, /etc/embargo/block.list": "the administrator's exceptions and additions: **embargo-lists**(5)",
    "/etc/embargo/apps.d": "your own apps, which may replace shipped ones",
    "/usr/share/embargo/blocklists": "the shipped apps",
    "/var/log/embargo/events.jsonl": "the event log: **embargo-events**(5)",
    "/var/lib/embargo": "compiled policies, the agent's own lists, learnt addresses",
    "/run/embargo/control.sock": "the socket for requests to a running agent, open to members of the group **embargo**",
}


def pages() -> dict[str, str]:
    """File name → Markdown of each page."""
    return {
        "embargo.1": _page("embargo", 1, "block named apps on a network", _commands()),
        "embargo.toml.5": _page("embargo.toml", 5, "configuration of embargo(1)", _options()),
        "embargo-lists.5": _page("embargo-lists", 5, "lists and apps of embargo(1)", _document("lists")),
        "embargo-events.5": _page("embargo-events", 5, "the event log of embargo(1)", _document("events")),
    }


def completions() -> dict[str, str]:
    """Path below /usr/share → completion script of each shell."""
    return {path: shell(verbs.cli, {}, "embargo", "_EMBARGO_COMPLETE").source() for path, shell in COMPLETIONS.items()}


def _page(name: str, section: int, what: str, body: Iterator[str]) -> str:
    others = ("embargo(1)", "embargo.toml(5)", "embargo-lists(5)", "embargo-events(5)")
    also = ", ".join(f"**{other[:-3]}**{other[-3:]}" for other in others if other != f"{name}({section})")
    head = f'% "{name.upper()}" "{section}" "" "Embargo {embargo.__version__}" "Embargo"\n'
    return "\n\n".join([head, "# NAME", f"{name} - {what}", *body, "# SEE ALSO", also]) + "\n"


def _commands() -> Iterator[str]:
    yield from ("# SYNOPSIS", "**embargo** *COMMAND* \\[*OPTIONS*\\] \\[*ARGUMENTS*\\]", "# DESCRIPTION")
    yield (
        "**embargo run** runs the agent: a filtering DNS resolver and an nftables table, both driven by one policy of apps and "
        "their functions. The other commands query the agent or change its policy. **why**, **apps**, **check**, **export** "
        "and **log** also work without a running agent."
    )
    yield "# COMMANDS"
    for name, each in verbs.cli.commands.items():
        context = click.Context(each, info_name=name)
        yield f"## **embargo {name}** {_plain(' '.join(each.collect_usage_pieces(context)))}"
        yield from (" ".join(map(_plain, part.split())) for part in (each.help or "").split("\n\n"))
        for parameter in each.get_params(context):
            record = parameter.get_help_record(context)
            if record and record[1] and not {"--config", "--help"} & set(parameter.opts):  # every command has these
                yield _definition(f"**{_plain(record[0])}**", _plain(record[1]))
    yield "# OPTIONS"
    yield _definition("**-c**, **--config** *FILE*", f"the configuration file; default: {command.DEFAULT}")
    yield _definition("**-h**, **--help**", "show the commands; after a command, its options")
    yield "# EXIT STATUS"
    yield _definition("0", "success")
    yield _definition("1", "the answer is negative, or the request failed")
    yield _definition("2", "the command line or the configuration is invalid")
    yield "# FILES"
    yield from (_definition(f"*{path}*", what) for path, what in FILES.items())
    yield "# ENVIRONMENT"
    yield _definition("EMBARGO_ACCELERATOR", "**native**: fail without the compiled functions; **none**: do not use them")


def _options() -> Iterator[str]:
    yield "# DESCRIPTION"
    head = (DOCS / "configuration.md").read_text().split("\n\n")[1]
    yield _plain(" ".join(head.replace("`", "").split()))
    yield "The file is TOML in UTF-8. **embargo check** reports every mistake in it with line and key."
    for section, options in config.OPTIONS.items():
        yield f"# [{section}]"
        for key, option in options.items():
            yield _definition(f"**{_plain(key)}** = {_plain(config.literal(option.default))}", _plain(option.help))


def _document(name: str) -> Iterator[str]:
    """A page of docs/, with tables as definition lists."""
    title, *blocks = re.split(r"\n\n(?![^`]*\n```\n)", (DOCS / f"{name}.md").read_text().strip())
    assert title.startswith("# ")
    if not blocks[0].startswith("#"):
        yield "# DESCRIPTION"
    for block in blocks:
        if block.startswith("<!--"):  # a mark for tools/docs.py
            continue
        if block.startswith("## "):
            yield f"# {block[3:].upper()}"
        elif block.startswith("|"):
            yield from _table(block)
        else:
            yield block


def _table(block: str) -> Iterator[str]:
    for row in block.splitlines()[2:]:
        term, what = (cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1])
        yield _definition(re.sub(r"`([^`]*)`", lambda found: f"**{_plain(found[1])}**", term), what)


def _definition(term: str, what: str) -> str:
    return f"{term}\n: {what}"


def _plain(text: str) -> str:
    """Escape characters that have a meaning in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)


def main(directory: Path, share: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / f"{name}.md").write_text(text)
    for name, text in completions().items():
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_text(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
