"""What upstreams say about their failures and answers (Extended DNS Errors, RFC 8914)."""

import dns.edns
import dns.message
import dns.rcode
import pytest

from support.playbook import SERVERS, answer, play

BLOCKED = "alipay.example"


def explained(name: str, rcode: int, *records: str) -> dns.message.Message:
    made = answer(name, "A", *records, rcode=rcode)
    padding = dns.edns.GenericOption(dns.edns.OptionType.PADDING, bytes(8))
    made.use_edns(options=[padding, dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS, "signature expired")])
    return made


def test_what_the_upstream_says_about_a_failure_is_passed_on_with_its_name() -> None:
    """RFC 8914 section 3: without the name, the reader would look for the fault here."""
    found = play().query("free.test").upstream(explained("free.test", 2)).upstream(answer("free.test", rcode=2))
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 6
    assert f"{SERVERS[0]}: signature expired" in str(found.reply.options[0])
    found = play().query("free.test", edns=False).upstream(explained("free.test", 2)).upstream(answer("free.test", rcode=2))
    assert found.reply.edns == -1


@pytest.mark.parametrize(("rcode", "records"), [(0, ["192.0.2.1"]), (0, []), (3, [])])
def test_what_the_upstream_says_about_an_answer_is_passed_on_and_kept(rcode: int, records: list[str]) -> None:
    found = play(BLOCKED).query("free.test").upstream(explained("free.test", rcode, *records))
    for _ in range(2):
        assert found.replies(*records, rcode=rcode).ede() == 6
        assert f"{SERVERS[0]}: signature expired" in str(found.reply.options[0])
        found.query("free.test").forwards_nothing()
        assert not found.was_fast
    assert found.query("free.test", edns=False).forwards_nothing().reply.edns == -1


def test_a_block_says_why_itself() -> None:
    play(BLOCKED).query("free.test").upstream(explained("free.test", 0, f"free.test CNAME {BLOCKED}.")).is_blocked()
