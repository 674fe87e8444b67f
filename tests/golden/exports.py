"""Exports as they should look, one file a case. `python -m tests.golden.exports` writes them anew; people review the diff."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from embargo import config
from embargo.export import effective, render
from embargo.export.effective import EffectivePolicy
from embargo.export.formats import FORMATS
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Level, List
from embargo.names import Name

if __package__ == "tests.golden":  # started as a command
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent))

from support import catalogue

HERE = Path(__file__).parent / "export"

FILES = {
    "alipay/payment.list": ["alipay.example", "!mail.alipay.example", "=log.alipay.test", "203.0.113.0/28", "2001:db8:a::/64"],
    "alipay/telemetry.list": ["stats.mail.alipay.example", "!x.stats.mail.alipay.example", "sp\\032ace.alipay.test"],
    "alipay/core.shared.list": ["shared.alipay.example"],
    "bypass/canary.list": ["canary.test"],
    "bypass/doh.list": ["203.0.113.129", "2001:db8:d::1"],
    "qq/core.list": ["=deep.under.shared.alipay.example", "203.0.113.64/26", "!203.0.113.80/28"],
}
ALLOW = ("good.example", "=self.block.test", "a.b.block.test", "203.0.113.7")
BLOCK = ("block.test", "bücher.test", "hidden.onion")


def made(
    text: str = "",
    files: Mapping[str, Sequence[str]] = FILES,
    allow: Sequence[str] = ALLOW,
    block: Sequence[str] = BLOCK,
) -> EffectivePolicy:
    """What is in force of this catalogue, by way of policy and image as on the command line."""
    return of(text, files, (catalogue.local(Level.ALLOW, *allow), catalogue.local(Level.BLOCK, *block)))[0]


def of(text: str, files: Mapping[str, Sequence[str]], own: Sequence[List]) -> tuple[EffectivePolicy, Image, policy.Switchboard]:
    settings = config.parse(text.encode(), "embargo.toml")
    apps = catalogue.apps(files, default=("alipay", "qq"))
    combined = policy.combine(apps, own, settings.policy)
    built, board = Image(image.encode(combined)), policy.select(apps, combined.classes, settings.policy)
    return effective.read(built, board, settings, onion), built, board


def onion(name: Name) -> bool:
    """One of the special names, for all of them."""
    return name.endswith(b"\5onion\0")


ALL = '[policy]\nfunctions = "all"\n'
CASES = {
    **{f"default.{each}": ("", each) for each in FORMATS},
    **{f"all.{each}": (ALL, each) for each in FORMATS},
    **{f"null.{each}": ('[dns]\nblock_mode = "null"\n', each) for each in ("rpz", "hosts", "dnsmasq", "unbound")},
    **{f"address.{each}": ('[dns]\nblock_mode = ["192.0.2.9"]\n', each) for each in ("rpz", "hosts", "dnsmasq", "unbound")},
    **{f"{mode}.{each}": (f'[dns]\nblock_mode = "{mode}"\n', each)
       for mode in ("nodata", "refused") for each in ("rpz", "hosts", "dnsmasq", "unbound")},
    "audit.rpz": ('[policy]\nmode = "audit"\n', "rpz"),
    "lan.nft": ('[firewall]\nlan = ["lan0"]\nexcept = ["192.0.2.7", "192.0.2.0/28", "2001:db8:1::/64"]\n', "nft"),
}  # fmt: skip


def rendered(case: str) -> str:
    text, form = CASES[case]
    return render.render(made(text), form, "1.2.3").text


def main() -> None:
    HERE.mkdir(exist_ok=True)
    for stale in {path.name for path in HERE.iterdir()} - set(CASES):
        (HERE / stale).unlink()
    for name in CASES:
        (HERE / name).write_text(rendered(name))


if __name__ == "__main__":
    main()
