"""Hosts files: a line or a name that cannot be used costs itself only, and is reported with what would be right."""

from pathlib import Path

import pytest

from embargo import config
from embargo.daemon.compile import sources
from embargo.lists.lists import Guard


@pytest.fixture
def load(tmp_path: Path) -> "Load":
    app = tmp_path / "apps/alipay"
    app.mkdir(parents=True)
    (app / "app.toml").write_text('id = "alipay"\nname = "Alipay"\n')
    return Load(tmp_path)


class Load:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, text: bytes) -> tuple[dict[str, list[str]], list[str]]:
        """(names with their addresses, problems)"""
        file = self.root / "hosts"
        file.write_bytes(text)
        written = f'[dns]\nhosts = ["{file}"]\n[lists]\napps = ["{self.root}/apps"]\n[state]\ndir = "{self.root}/state"\n'
        loaded = sources.load(config.parse(written.encode(), str(self.root / "embargo.toml")), Guard())
        return loaded.hosts, [f"{problem.line}: {problem.message}, {problem.hint}" for problem in loaded.problems]


def test_the_usual_lines(load: Load) -> None:
    found, problems = load(b"# a comment\n\n127.0.0.1\tlocalhost\r\n192.0.2.7 NAS.lan nas # the box\n2001:db8::7 nas.lan\n")
    assert found == {"localhost": ["127.0.0.1"], "nas.lan": ["192.0.2.7", "2001:db8::7"], "nas": ["192.0.2.7"]}
    assert not problems


def test_a_byte_order_mark_costs_nothing(load: Load) -> None:
    assert load(b"\xef\xbb\xbf192.0.2.7 nas.lan\n") == ({"nas.lan": ["192.0.2.7"]}, [])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("bad..name", '"bad..name" is not a domain name, it has an empty label'),
        ("*.lan", '"*.lan" has a wildcard, a hosts file has whole names'),
        ("192.0.2.8", '"192.0.2.8" is not an address or network'),
        ("a/b", '"a/b" is not a name, address or network'),
        ("x" * 64, "is not a domain name, a label has 64 octets"),
        ("a,b", '"a,b" has the character ,'),
    ],
)
def test_a_bad_name_costs_itself_only(load: Load, name: str, problem: str) -> None:
    found, problems = load(f"192.0.2.7 good.lan {name} also.lan\n".encode())
    assert found == {"good.lan": ["192.0.2.7"], "also.lan": ["192.0.2.7"]}
    assert len(problems) == 1
    assert problem in problems[0]


def test_a_line_without_an_address_is_reported(load: Load) -> None:
    found, problems = load(b"nas.lan 192.0.2.7\n192.0.2.8 tv.lan\n")
    assert found == {"tv.lan": ["192.0.2.8"]}
    assert problems == ['1: "nas.lan 192.0.2.7" is not a hosts line, write: address name …']


def test_a_file_of_another_format_is_reported_once(load: Load) -> None:
    found, problems = load(b"nas.lan\n" * 1500)
    assert not found
    assert len(problems) == 1001
    assert "500 more" in problems[-1]


def test_names_beyond_what_fits_are_reported(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_HOSTS", 2)
    found, problems = load(b"192.0.2.7 a.lan b.lan c.lan\n192.0.2.8 a.lan d.lan\n")
    assert found == {"a.lan": ["192.0.2.7", "192.0.2.8"], "b.lan": ["192.0.2.7"]}
    (problem,) = problems
    assert "2 names are left out: all hosts files together may have 2" in problem
