"""Small catalogues in which everything overlaps, and what may be asked of them."""

import ipaddress

from hypothesis import strategies as st

from embargo import names
from embargo.lists.policy import Action, App, Level, List, Selection, Source
from support import catalogue

LETTERS = st.sampled_from("ab")
NAMES = st.lists(LETTERS, min_size=1, max_size=4).map(".".join)
V4 = st.builds(
    lambda value, length: str(ipaddress.ip_network((0xCB007100 | value & 31, length), strict=False)), st.integers(0, 31),
    st.integers(26, 32),
)  # fmt: skip
V6 = st.builds(
    lambda value, length: str(ipaddress.ip_network(((0x20010DB8 << 96) | value, length), strict=False)),
    st.integers(0, 31), st.integers(122, 128),
)  # fmt: skip
NETWORKS = V4 | V6
LINES = st.one_of(
    NAMES, NAMES.map("={}".format), NAMES.map("!{}".format), NETWORKS, NETWORKS.map("!{}".format), st.just("# comment")
)
TEXTS = st.lists(LINES, max_size=6).map("\n".join)
ASKED = st.lists(LETTERS, max_size=6).map(lambda labels: names.from_text(".".join(labels) or "."))
ADDRESSES = st.builds(
    lambda base, value: ipaddress.ip_address(base + value), st.sampled_from([0xCB007100, 0x20010DB8 << 96]), st.integers(0, 70)
)


def parsed(path: str, level: Level, app: str, function: str, shared: bool, text: str) -> List:
    return catalogue.parsed(Source(path, level, app, function, shared), text.split("\n"))


@st.composite
def an_app(draw: st.DrawFn, app: str, functions: tuple[str, ...]) -> App:
    files = draw(st.lists(st.tuples(st.sampled_from(functions), st.booleans()), unique=True, max_size=4))
    found = [
        parsed(f"{app}/{function}{'.shared' * shared}.list", Level.APPS, app, function, shared, draw(TEXTS))
        for function, shared in sorted(files)
    ]
    return App(app, app, default=draw(st.booleans()), lists=tuple(found))


APPS = st.tuples(
    an_app("alipay", ("payment", "telemetry", "httpdns", "core")),
    an_app("bypass", ("doh", "httpdns", "canary")),
    an_app("qq", ("payment", "login")),
)
LOCAL = st.tuples(TEXTS, TEXTS, TEXTS).map(
    lambda texts: (
        parsed("allow.list", Level.ALLOW, "local", "allow", False, texts[0]),
        parsed("local/allow.list", Level.ALLOW, "local", "allow", False, texts[1]),
        parsed("block.list", Level.BLOCK, "local", "block", False, texts[2]),
    )
)
SELECTIONS = st.builds(
    Selection,
    apps=st.one_of(st.sampled_from(["default", "all"]), st.lists(st.sampled_from(["alipay", "qq"]), unique=True).map(tuple)),
    functions=st.one_of(
        st.just("all"), st.lists(st.sampled_from(["payment", "telemetry", "login"]), unique=True).map(tuple)
    ),
    bypass=st.lists(st.sampled_from(["doh", "httpdns", "canary", "dot"]), unique=True).map(tuple),
    shared=st.one_of(st.booleans(), st.lists(st.sampled_from(["alipay", "qq"]), unique=True).map(tuple)),
    mode=st.sampled_from([Action.BLOCK, Action.AUDIT]),
)  # fmt: skip
