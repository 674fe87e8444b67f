"""Writes the man pages as Markdown, and the shells' completions: python -m tools.manual PAGES SHARE

The pages are made from the commands as click knows them, the options as the code declares them, and docs/; tools/deb turns
them into roff.
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
    "/etc/embargo/apps.d": "apps of one's own, and those that replace a shipped one",
    "/usr/share/embargo/blocklists": "the shipped apps",
    "/var/log/embargo/events.jsonl": "the block log: **embargo-events**(5)",
    "/var/lib/embargo": "compiled policies, the agent's own lists, what was learnt",
    "/run/embargo/control.sock": "where a running agent is asked; members of the group **embargo** may",
}


def pages() -> dict[str, str]:
    """Each page's Markdown, by its file name."""
    return {
        "embargo.1": _page("embargo", 1, "makes named apps stop on a network", _commands()),
        "embargo.toml.5": _page("embargo.toml", 5, "configuration of embargo(1)", _options()),
        "embargo-lists.5": _page("embargo-lists", 5, "lists and apps of embargo(1)", _document("lists")),
        "embargo-events.5": _page("embargo-events", 5, "the block log of embargo(1)", _document("events")),
    }


def completions() -> dict[str, str]:
    """Each shell's file, by its path below /usr/share."""
    return {path: shell(verbs.cli, {}, "embargo", "_EMBARGO_COMPLETE").source() for path, shell in COMPLETIONS.items()}


def _page(name: str, section: int, what: str, body: Iterator[str]) -> str:
    others = ("embargo(1)", "embargo.toml(5)", "embargo-lists(5)", "embargo-events(5)")
    also = ", ".join(f"**{other[:-3]}**{other[-3:]}" for other in others if other != f"{name}({section})")
    head = f'% "{name.upper()}" "{section}" "" "Embargo {embargo.__version__}" "Embargo"\n'
    return "\n\n".join([head, "# NAME", f"{name} - {what}", *body, "# SEE ALSO", also]) + "\n"


def _commands() -> Iterator[str]:
    yield from ("# SYNOPSIS", "**embargo** *COMMAND* \\[*OPTIONS*\\] \\[*ARGUMENTS*\\]", "# DESCRIPTION")
    yield (
        "**embargo run** is the agent: a filtering DNS resolver and an nftables table, driven by one policy of apps and "
        "functions. The other commands ask it or change what is in force. Without a running agent, too, "
        "**why**, **apps**, **check**, **export** and **log** tell what would be."
    )
    yield "# COMMANDS"
    for name, each in verbs.cli.commands.items():
        context = click.Context(each, info_name=name)
        yield f"## **embargo {name}** {_plain(' '.join(each.collect_usage_pieces(context)))}"
        yield from (" ".join(map(_plain, part.split())) for part in (each.help or "").split("\n\n"))
        for parameter in each.get_params(context):
            record = parameter.get_help_record(context)
            if record and record[1] and parameter.name not in ("file", "help"):  # every command has these
                yield _definition(f"**{_plain(record[0])}**", _plain(record[1]))
    yield "# OPTIONS"
    yield _definition("**-c**, **--config** *FILE*", f"the configuration, instead of {command.DEFAULT}")
    yield _definition("**-h**, **--help**", "what there is; after a command, its options")
    yield "# EXIT STATUS"
    yield _definition("0", "done")
    yield _definition("1", "the answer is no, or what was asked for failed")
    yield _definition("2", "the command line or the configuration cannot be used")
    yield "# FILES"
    yield from (_definition(f"*{path}*", what) for path, what in FILES.items())
    yield "# ENVIRONMENT"
    yield _definition(
        "EMBARGO_ACCELERATOR", "**native** or **none**: with or without the compiled functions, whatever is there"
    )


def _options() -> Iterator[str]:
    yield "# DESCRIPTION"
    head = (DOCS / "configuration.md").read_text().split("\n\n")[1]
    yield _plain(" ".join(head.replace("`", "").split()))
    yield "The file is TOML, UTF-8. **embargo check** names everything that is wrong with it, with line and key."
    for section, options in config.OPTIONS.items():
        yield f"# [{section}]"
        for key, option in options.items():
            yield _definition(f"**{_plain(key)}** = {_plain(config.literal(option.default))}", _plain(option.help))


def _document(name: str) -> Iterator[str]:
    """A page of docs/: its tables as definitions, its sections as they are."""
    title, *blocks = re.split(r"\n\n(?![^`]*\n```\n)", (DOCS / f"{name}.md").read_text().strip())
    assert title.startswith("# ")
    if not blocks[0].startswith("#"):
        yield "# DESCRIPTION"
    for block in blocks:
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
    """Text that Markdown is to leave alone."""
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
