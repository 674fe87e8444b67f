"""What the documents say is so: the map, the links, the configuration page, the commands of the README."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from embargo import config
from embargo.cli.verbs import cli
from embargo.daemon.supervise import reload
from embargo.export.formats import FORMATS
from embargo.verify import crafted
from tools import docs, drawing

TOP = Path(__file__).parent.parent.parent
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md")])


def test_the_configuration_page_is_what_the_code_declares() -> None:
    assert docs.PAGE.read_text() == docs.page(), "run: python -m tools.docs"


def test_the_events_page_has_the_keys_that_the_code_declares() -> None:
    assert docs.EVENTS.read_text() == docs.events_page(), "run: python -m tools.docs"


def test_the_status_page_is_what_the_code_declares() -> None:
    assert docs.STATUS.read_text() == docs.status_page(), "run: python -m tools.docs"


def test_every_key_of_status_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", docs.status_page(), re.MULTILINE)
    assert len(rows) > 80
    assert [key for key, meaning in rows if len(meaning) < 5] == []


def test_the_map_shows_every_module_as_it_describes_itself() -> None:
    text = docs.ARCHITECTURE.read_text()
    assert text == docs.architecture(), "run: python -m tools.docs"
    for path in (*docs.PACKAGE.rglob("*.py"), *docs.PACKAGE.rglob("*.pyx")):
        assert path.name.startswith("__") or re.search(rf"^ +{re.escape(path.name)} +\S", text, re.MULTILINE), path


def test_every_public_function_says_what_it_does() -> None:
    def silent(body: list[ast.stmt], where: str) -> Iterator[str]:
        for each in body:
            if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
                yield from silent(each.body, f"{where}:{each.name}")
            elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_"):
                yield from () if ast.get_docstring(each) else (f"{where}:{each.name}",)

    found = [name for path in docs.PACKAGE.rglob("*.py") for name in silent(ast.parse(path.read_text()).body, path.name)]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_drawing_is_what_its_tool_draws() -> None:
    assert drawing.TARGET.read_text() == drawing.render(), "run: python -m tools.drawing"
    assert f"]({drawing.TARGET.relative_to(TOP)})" in (TOP / "README.md").read_text()


def test_the_drawings_text_fits_its_boxes_and_its_boxes_the_page() -> None:
    ElementTree.fromstring(drawing.render())
    for box in drawing.BOXES:
        assert box.x >= 0 <= box.y
        assert box.x + box.width <= drawing.WIDTH
        assert box.y + box.height <= drawing.HEIGHT
        assert (1 + len(box.lines)) * drawing.LINE <= box.height, box.title
        assert max(map(len, (box.title, *box.lines))) * 7.3 <= box.width, f"{box.title}: wide characters of 13 pixels"


def test_the_drawing_has_both_colours_for_everything() -> None:
    light, dark = drawing.render().split("prefers-color-scheme: dark")
    for name, (property_, *colours) in drawing.COLOURS.items():
        for text, colour in zip((light, dark), colours, strict=True):
            assert f".{name} {{ {property_}: {colour} }}" in text


def test_the_readmes_verbs_exist() -> None:
    verbs = re.findall(r"^(?:\.venv/bin/)?embargo (\w+)", (TOP / "README.md").read_text(), re.MULTILINE)
    assert len(verbs) >= 10
    assert set(verbs) <= set(cli.commands)


def test_every_option_of_verify_is_on_its_page() -> None:
    page = (TOP / "docs/verify.md").read_text()
    options = {option for parameter in cli.commands["verify"].params for option in parameter.opts if option.startswith("--")}
    assert {option for option in options if f"`{option}" not in page} == {"--config"}


def test_scapy_is_asked_for_in_the_same_version_everywhere_and_by_its_package() -> None:
    (bound,) = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]["verify"]
    page = (TOP / "docs/verify.md").read_text()
    assert f'`pip install "{bound}"`' in page
    least = bound.removeprefix("scapy>=").partition(",")[0]
    assert f"Suggests: python3-scapy (>= {least})\n" in (TOP / "tools/debian/control").read_text()
    command = crafted.NEEDS_SCAPY.removeprefix("needs scapy: ")
    assert f"`{command}`" in page


def test_every_format_of_export_is_on_its_page() -> None:
    page = (TOP / "docs/export.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(FORMATS)


def test_the_readmes_gateway_is_a_configuration() -> None:
    text = (TOP / "README.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    parsed = config.parse(example.encode(), "README.md")
    assert parsed.firewall.lan == ("lan0",)


def test_every_configuration_of_the_gateway_page_is_one() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (TOP / "docs/gateway.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        config.parse(block.encode(), "docs/gateway.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text()
    commands = re.findall(r"`embargo ([a-z]+)((?: [^`]*)?)`", text)
    commands += re.findall(
        r"^(?:\.venv/bin/)?embargo ([a-z]+)(.*)$", "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)), re.M
    )
    for verb, rest in commands:
        assert verb in cli.commands, verb
        known = {option for parameter in cli.commands[verb].params for option in parameter.opts}
        assert {word for word in rest.split() if word.startswith("-")} <= known, f"{verb}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_are_named_as_they_are_declared(page: Path) -> None:
    sections = re.split(r"^\[(\w+)\]$", config.reference(), flags=re.MULTILINE)[1:]
    declared = {
        (name, key)
        for name, text in zip(sections[::2], sections[1::2], strict=True)
        for key in re.findall(r"^#(\w+) = ", text, re.MULTILINE)
    }
    assert ("dns", "listen") in declared
    assert set(re.findall(r"`\[(\w+)\] (\w+)[^`]*`", page.read_text())) <= declared


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md", "docs/gateway.md"])
def test_what_needs_a_restart_is_named(page: str) -> None:
    text = " ".join((TOP / page).read_text().split())
    (said,) = re.findall(r"((?:`\[[^`]*`(?:, | and )?)+) need a restart", text)
    assert set(re.findall(r"`([^`]*)`", said)) == {re.sub(r"^(\w+)\.?", r"[\1] ", each).strip() for each in reload.FIXED}


@pytest.mark.parametrize("message", [
    "by others, restored", "lists it, but is off", "dns.allow_from does not include this client", "is in use",
    "is not blocked", "LOST", "learnt:", "NO UPSTREAM", "no interface is named", "NOT COVERED", "port 53 to other resolvers",
    "PROBLEMS", "failing", "unknown key",
])  # fmt: skip
def test_a_message_that_the_gateway_page_quotes_is_one_of_the_program(message: str) -> None:
    assert message in (TOP / "docs/gateway.md").read_text()
    assert any(message in path.read_text() for path in docs.PACKAGE.rglob("*.py"))


def test_a_container_starts_again_after_a_reboot() -> None:
    compose = (TOP / "tools/container/compose.yaml").read_text()
    assert re.findall(r"^    restart: (\S+)", compose, re.MULTILINE) == ["unless-stopped"], "on-failure is not for a reboot"
    assert "--restart=always" in (TOP / "tools/container/Containerfile").read_text()
    for page in ("tools/container/Containerfile", "docs/gateway.md"):
        assert "`systemctl enable podman-restart`" in (TOP / page).read_text(), "podman has no daemon that would start it"


def test_the_lists_pages_app_is_an_app() -> None:
    text = (TOP / "docs/lists.md").read_text()
    assert tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])["id"] == "example"


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(each for extra in ("verify", "test", "bench") for each in extras[extra])]
    table = (TOP / "docs/ARCHITECTURE.md").read_text().partition("## Dependencies")[2]
    for requirement in named:
        name = re.split(r"[<>=]", requirement)[0]
        assert name in table, f"{name}: say in docs/ARCHITECTURE.md what it is for"


def test_every_way_round_that_is_said_to_be_closed_has_its_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (\w+) \|$", (TOP / "docs/bypasses.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 56))
    assert {kind for _, kind in rows} == {"test", "unit", "limits"}
    modules = (TOP / "tests/netns/bypasses").glob("test_*.py")
    tested = {number for path in modules for number in re.findall(r"^def test_(\d\d)_", path.read_text(), re.MULTILINE)}
    assert {int(number) for number in tested} == {int(number) for number, kind in rows if kind == "test"}


def test_each_sentence_about_a_process_that_was_taken_over_has_its_tests() -> None:
    page = (TOP / "docs/security.md").read_text()
    there = "".join(path.read_text() for path in TOP.glob("tests/**/test_*.py"))
    points = [point for part in page.split("\n- ")[1:] for point in [re.split(r"[;.]\n", part)[0]]]
    assert len(points) > 15
    for point in points:
        assert re.findall(r"`(test_\w+)`", point), point
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in there, name


@pytest.mark.parametrize("path", sorted(TOP.glob("systemd/*.service")), ids=lambda path: path.name)
def test_each_unit_has_limits_with_their_reason(path: Path) -> None:
    lines = path.read_text().splitlines()
    for limit in ("MemoryMax=", "TasksMax="):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(limit)]
        assert lines[at - 1].startswith("# ")
