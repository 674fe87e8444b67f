"""Names in the configuration: one that could match nothing is an error that says what to write."""

import pytest

from embargo import config
from embargo.errors import ConfigError

WITHOUT_STAR = "a name already covers every name below it; write it without '*.'"


@pytest.mark.parametrize(
    ("zone", "what", "right"),
    [
        ("*.corp.example", "has a wildcard", WITHOUT_STAR),
        ("192.88.99.0/24", "is an address or network", 'write its reverse zone, "99.88.192.in-addr.arpa"'),
        ("192.0.2.0/25", "is an address or network", 'write its reverse zone, "2.0.192.in-addr.arpa"'),
        ("0.0.0.0/0", "is an address or network", 'write its reverse zone, "in-addr.arpa"'),
        ("2001:db8::/33", "is an address or network", 'write its reverse zone, "8.b.d.0.1.0.0.2.ip6.arpa"'),
        ("192.0.2.7", "is an address or network", 'write its reverse zone, "7.2.0.192.in-addr.arpa"'),
        ("192.0.2", "is not an address or network", "write it as in 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32"),
        ("corp/24", "is not a name, address or network", "write the name alone, without a path"),
        ("/corp/", "is not a name, address or network", "write the name alone, without a path"),
        ("corp:53", "has the character :", r"remove it, or write it as \058 where a name really has it"),
        ("corp..example", "is not a domain name",
            "it has an empty label: one dot stands between two labels, none before the first"),
        (".", "the root zone cannot be forwarded", "set dns.upstream instead"),
    ],
)  # fmt: skip
def test_a_zone_that_can_match_nothing_is_refused(zone: str, what: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(f'[dns]\nforward = {{ "{zone}" = ["192.0.2.9"] }}\n'.encode(), "e.toml")
    assert [str(problem) for problem in caught.value.problems] == [f'e.toml:2: dns.forward."{zone}": {what}, {right}']


@pytest.mark.parametrize(
    "zone", ["lan", "corp.example.", "_msdcs.corp.example", "bücher.example", r"0\\04725.2.0.192.in-addr.arpa"]
)
def test_a_zone_is_any_name(zone: str) -> None:
    assert config.parse(f'[dns]\nforward = {{ "{zone}" = ["192.0.2.9"] }}\n'.encode(), "e.toml").dns.forward
