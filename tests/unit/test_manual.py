"""The man pages and completions say what the code knows; the shipped configuration says what is the default."""

import re
from pathlib import Path

import pytest

from embargo import config
from embargo.cli.verbs import cli
from tools import manual

TOP = Path(__file__).parent.parent.parent
PAGES = manual.pages()


def plain(text: str) -> str:
    return text.replace("\\", "")


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_stands_in_the_manual_with_its_options(verb: str) -> None:
    part = plain(PAGES["embargo.1"]).partition(f"## **embargo {verb}**")[2].partition("\n#")[0]
    assert part
    for parameter in cli.commands[verb].params:
        for option in parameter.opts:
            assert option in part or option in ("-c", "--config") or not option.startswith("-"), option
    assert "--help" not in part, "it is the same for all, and said once"


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_the_first_sentence_of_a_verb_fits_into_the_list_of_verbs(verb: str) -> None:
    assert not cli.commands[verb].get_short_help_str(60).endswith("...")


@pytest.mark.parametrize("section", sorted(config.OPTIONS))
def test_every_key_stands_in_the_manual_with_default_and_help(section: str) -> None:
    part = plain(PAGES["embargo.toml.5"]).partition(f"\n# [{section}]\n")[2].partition("\n# ")[0]
    for key, option in config.OPTIONS[section].items():
        assert f"**{key}** = {config.literal(option.default)}\n: {plain(option.help)}" in part


@pytest.mark.parametrize(("page", "document"), [("embargo-lists.5", "lists.md"), ("embargo-events.5", "events.md")])
def test_everything_of_a_document_stands_in_its_page(page: str, document: str) -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"\w{3,}", text.lower()))

    text = re.sub("<!--.*?-->", "", (TOP / "docs" / document).read_text())  # marks for tools/docs.py
    assert words(text) <= words(plain(PAGES[page])) | {"key", "value", "line", "meaning"}


@pytest.mark.parametrize("path", sorted(manual.COMPLETIONS))
def test_a_completion_asks_the_command(path: str) -> None:
    assert "_EMBARGO_COMPLETE=" in manual.completions()[path]


def test_the_shipped_configuration_has_the_default_values() -> None:
    shipped = (TOP / "tools/debian/embargo.toml").read_bytes()
    assert config.parse(shipped, "embargo.toml") == config.parse(b"", "embargo.toml")
    assert b"listen" in shipped
