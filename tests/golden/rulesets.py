"""Rulesets as they should look, one file a case. `python -m tests.golden.rulesets` writes them anew; people review the diff."""

from collections.abc import Callable
from pathlib import Path

from embargo.config import CT_MARK
from embargo.firewall import listing, ruleset
from embargo.firewall.ruleset import Own
from embargo.firewall.table import Ruleset
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Level, Selection

if __package__ == "tests.golden":  # started as a command
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent))

from support import catalogue

HERE = Path(__file__).parent / "ruleset"

FILES = {
    "alipay/payment.list": ["alipay.com", "203.0.113.7", "203.0.113.0/28", "2001:db8:a::7", "2001:db8:a::/64"],
    "alipay/telemetry.list": ["203.0.113.64/26", "!203.0.113.80/28", "203.0.113.200"],
    "bypass/doh.list": ["203.0.113.129", "2001:db8:d::1"],
    "qq/core.list": ["198.51.100.0/24"],
    "qq/payment.list": ["203.0.113.8/29", "198.51.100.7"],
}
OWN = (
    catalogue.local(Level.ALLOW, "203.0.113.65"),
    catalogue.local(Level.BLOCK, "198.51.100.99", "2001:db8:ff::/48"),
)


def made(
    selection: Selection = Selection(apps="all"),
    generation: int = 1,
    files: dict[str, list[str]] = FILES,
    lan: tuple[str, ...] = (),
    except_: tuple[str, ...] = (),
    port: int = 0,
    fail: str = "closed",
    ct_mark: int = 0,
    own: tuple[Own, ...] = (),
    system: tuple[str, ...] = (),
) -> Ruleset:
    """The ruleset of this catalogue, by way of policy and image as in the daemon."""
    apps = catalogue.apps(files)
    combined = policy.combine(apps, OWN if files else (), selection)
    built, board = Image(image.encode(combined)), policy.select(apps, combined.classes, selection)
    what = ruleset.spec(
        built, board, generation, lan=lan, except_=except_, intercept_port=port, fail=fail, log_group=8137,
        ct_mark=ct_mark, own=own, system=system,
    )  # fmt: skip
    return ruleset.build(what)


EXCEPT = ("192.0.2.7/32", "192.0.2.128/25", "192.0.2.8/32", "2001:db8:1::/64")
CASES: dict[str, Callable[[], Ruleset]] = {
    "nothing": lambda: made(Selection(apps=(), functions=(), bypass=()), files={}),
    "no_lan": lambda: made(),
    "everything_on": lambda: made(Selection(apps="all", functions="all", shared=True), generation=7),
    "lan_not_intercepted": lambda: made(lan=("lan0",)),
    "lan_fail_closed": lambda: made(lan=("lan0", "wlan0"), port=53),
    "lan_fail_open": lambda: made(lan=("lan0",), port=5353, fail="open"),
    "fail_open_without_lan": lambda: made(fail="open"),
    "except_with_lan": lambda: made(lan=("lan0",), except_=EXCEPT, port=53),
    "except_ipv4_alone": lambda: made(except_=EXCEPT[:1]),
    "audit": lambda: made(Selection(apps="all", mode=Action.AUDIT), lan=("lan0",), port=53),
    "judged_once": lambda: made(lan=("lan0",), port=53, ct_mark=CT_MARK),
    "judged_once_fail_open": lambda: made(lan=("lan0",), port=53, fail="open", ct_mark=0xF000),
    "httpdns": lambda: made(
        Selection(apps="all"), files=FILES | {"bypass/httpdns.list": ["203.0.113.150"]}, lan=("lan0",), ct_mark=CT_MARK
    ),
    "own_questions": lambda: made(
        own=(Own(990, "tcp", 53), Own(990, "udp", 53)), system=("203.0.113.129", "198.51.100.53", "fe80::1%eth0")
    ),
    "bypass_ports_off": lambda: made(Selection(apps="all", bypass=("doh",)), lan=("lan0",), port=53),
}


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for stale in {path.stem for path in HERE.glob("*.nft")} - set(CASES):
        (HERE / f"{stale}.nft").unlink()
    for name, case in CASES.items():
        (HERE / f"{name}.nft").write_text(listing.render(case()))


if __name__ == "__main__":
    main()
