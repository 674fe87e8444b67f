"""Checks by themselves; what each key of the configuration takes is in test_config.py."""

from dataclasses import dataclass

import pytest

from embargo import checks
from embargo.checks import Option, Several
from embargo.errors import BadValue


@dataclass(frozen=True, slots=True)
class Section:
    count: int = checks.option(3, checks.integer(0, 9), "how many")
    import_: tuple[str, ...] = checks.option(["a"], checks.many(checks.text), "names", value=())
    derived: bool = False


def test_an_option_is_a_field_with_its_checked_default() -> None:
    assert (Section().count, Section().import_) == (3, ())
    found = checks.options(Section)
    assert list(found) == ["count", "import"]
    assert isinstance(found["count"], Option)
    assert (found["count"].default, found["import"].default, found["import"].help) == (3, ["a"], "names")
    assert found["import"].check(["b"]) == ("b",)


def test_a_default_that_its_own_check_refuses_is_an_error() -> None:
    with pytest.raises(BadValue):
        checks.option(10, checks.integer(0, 9), "")


def test_every_wrong_member_is_reported_with_its_path() -> None:
    with pytest.raises(Several) as caught:
        checks.members([(("a",), [1, "x", 2], checks.many(checks.text)), (("b",), "", checks.text), (("c",), "y", checks.text)])
    assert [(path, bad.message) for path, bad in caught.value.bad] == [
        (("a", 0), "wrong type"), (("a", 2), "wrong type"), (("b",), "is empty"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [("Resolver.Example.", "resolver.example"), ("bücher.example", "xn--bcher-kva.example"), ("a-b.c_d", "a-b.c_d"),
     ("", None), ("192.0.2.1", None), ("*.example", None), ("a..b", None), ("-a.example", None)],
)  # fmt: skip
def test_a_host_name_is_normalised_or_none(text: str, name: str | None) -> None:
    assert checks.host(text) == name


def test_a_misspelt_word_has_a_closest_one() -> None:
    assert checks.closest("listne", ["upstream", "listen"]) == "listen"
    assert checks.closest("zzz", ["upstream", "listen"]) == ""


def test_a_widened_check_says_what_else_is_accepted() -> None:
    with pytest.raises(BadValue) as caught:
        checks.widened(checks.integer(0, 64), '"auto"')(65)
    assert (caught.value.message, caught.value.hint) == ("65 is out of range", 'it must be a number from 0 to 64, or "auto"')
