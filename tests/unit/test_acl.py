"""Which clients are answered."""

from embargo.dns.acl import MEMO, Acl


def test_clients_are_remembered_and_bounded() -> None:
    acl = Acl(["192.0.2.0/24", "2001:db8::/32"])
    for number in range(2 * MEMO):
        assert not acl.allows(f"198.51.{number >> 8 & 255}.{number & 255}")
        assert acl.allows("192.0.2.1")
    assert acl.allows("2001:db8::1%lan0")
    assert acl.allows("::ffff:192.0.2.1")
    assert not acl.allows("::ffff:198.51.100.1")
    assert len(acl) <= MEMO
