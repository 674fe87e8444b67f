"""app.toml, the file that describes an app: what it may hold, and how its errors are reported."""

import pytest

from embargo.errors import ConfigError
from embargo.lists import lists

EMPTY = "it has an empty label: one dot stands between two labels, none before the first"
APP = """\
id = "alipay"
name = "Alipay"
operator = "Ant Group"
order = "EO 13971"
default = true
homepage = "https://www.alipay.com/"
summary = "payments"
neighbours = ["taobao.com"]
single_registrant = ["alipay"]
"""


def app_problems(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        lists.parse_app(data, "app.toml", "alipay")
    return list(map(str, caught.value.problems))


def test_an_app_is_read() -> None:
    app = lists.parse_app(APP.encode(), "app.toml", "alipay")
    assert (app.id, app.name, app.operator, app.default) == ("alipay", "Alipay", "Ant Group", True)
    assert (app.neighbours, app.single_registrant, app.lists) == (("taobao.com",), ("alipay",), ())
    assert app == lists.parse_app(b"\xef\xbb\xbf" + APP.replace("\n", "\r\n").encode(), "app.toml", "alipay")


def test_an_app_needs_no_more_than_id_and_name() -> None:
    app = lists.parse_app(b'id = "x"\nname = "X"\n', "app.toml", "x")
    assert (app.default, app.neighbours) == (None, ())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('id = "alipay"', 'id = "qq"', 'app.toml:1: id: "qq", it must be the name of the directory, "alipay"'),
        ('id = "alipay"', "id = 5", "app.toml:1: id: wrong type, it must be a string"),
        ('id = "alipay"\n', "", "app.toml: id: missing, every app has an id and a name"),
        ('name = "Alipay"\n', "", "app.toml: name: missing, every app has an id and a name"),
        ("default = true", 'default = "yes"', "app.toml:5: default: wrong type, it must be true or false"),
        ("default = true", "default = 1", "app.toml:5: default: wrong type, it must be true or false"),
        ("operator", "opperator", 'app.toml:3: opperator: unknown key, did you mean "operator"?'),
        (
            "operator", "zzz",
            "app.toml:3: zzz: unknown key, the keys are id, name, operator, order, default, homepage, summary, neighbours, "
            "single_registrant",
        ),
        ('["taobao.com"]', '"taobao.com"', "app.toml:8: neighbours: wrong type, it must be a list of strings"),
        ('["taobao.com"]', "[5]", "app.toml:8: neighbours: wrong type, it must be a list of strings"),
        (
            '["taobao.com"]', '[\n"taobao.com",\n"a..b",\n]',
            'app.toml:10: neighbours: "a..b" is not a domain name, ' + EMPTY,
        ),
        (
            'single_registrant = ["alipay"]', 'single_registrant = [""]',
            'app.toml:9: single_registrant: "" is not a domain name, ' + EMPTY,
        ),
    ],
)  # fmt: skip
def test_a_bad_app_is_reported_with_key_line_and_hint(old: str, new: str, said: str) -> None:
    assert old in APP
    assert app_problems(APP.replace(old, new)) == [said]


def test_all_problems_of_an_app_are_reported_at_once() -> None:
    assert [p.partition(" ")[0] for p in app_problems('id = 5\nnames = "x"\ndefault = 3\n')] == [
        "app.toml:1:", "app.toml:2:", "app.toml:3:", "app.toml:",
    ]  # fmt: skip


@pytest.mark.parametrize("app", ["Alipay", "360", "a b", "a" * 65, "ä", "a/b", "", "a\n"])
def test_an_id_is_a_word_that_fits_names_of_chains(app: str) -> None:
    with pytest.raises(
        ConfigError, match="an id has lower-case letters, digits, - and _, at most 64, and begins with a letter"
    ):
        lists.parse_app(_toml(app), "app.toml", app)


def _toml(app: str) -> bytes:
    escaped = app.replace("\n", "\\n")
    return f'id = "{escaped}"\nname = "X"\n'.encode()


def test_the_id_of_the_local_lists_is_taken() -> None:
    with pytest.raises(ConfigError, match="that id belongs to the administrator's own lists; choose another"):
        lists.parse_app(_toml("local"), "app.toml", "local")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"id = alipay\n", "app.toml:1: not valid TOML: invalid value, "),
        (b'id = "a"\n[[[\n', "app.toml:2: not valid TOML: invalid initial character for a key part, "),
        (b'id = "a"\n\nid = "b"', "app.toml:3: not valid TOML: cannot overwrite a value, "),
        (b'id = "a"\nname = "\xe9"', "app.toml:2: not UTF-8, save the file as UTF-8"),
        ('id = "a"'.encode("utf-16"), "app.toml:1: not UTF-8, save the file as UTF-8"),
        (b"id = " + b"9" * 5000, "app.toml: a number is too long, "),
        (b"id = " + b"[" * 5000, "app.toml: brackets are nested too deeply, "),
    ],
    ids=["bare word", "brackets", "twice", "latin-1", "utf-16", "long number", "deep"],
)
def test_an_app_that_is_no_toml_is_reported_with_its_line(data: bytes, said: str) -> None:
    (problem,) = app_problems(data)
    assert problem.startswith(said)
