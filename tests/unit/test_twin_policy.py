"""What the twin objects to once a message is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.twin import Policy, addresses, policy
from relay.twin.content import Head

HEAD = b"From: Ann <a@x.org>\r\nTo: b@y.org\r\nSubject: x\r\n"
FAILED = "554 Transaction failed: "


def _said(
    rules: Policy, head: bytes = HEAD, sender: str = "a@x.org", recipients: tuple[str, ...] = ()
) -> str | None:
    message = policy.Message(sender, list(recipients or ("b@y.org",)), Head(head + b"\r\nHi\r\n"))
    return policy.objection(rules, message)


@pytest.mark.parametrize(
    ("verified", "sandbox", "bad"),
    [
        ({"x.org"}, False, ""),
        ({"a@x.org"}, False, ""),
        ({"z.org"}, False, "a@x.org"),
        ({"x.org"}, True, "b@y.org, c@y.org"),
        ({"x.org", "y.org"}, True, ""),
        ({"b@y.org"}, True, "a@x.org, c@y.org"),
    ],
)
def test_identities_that_are_not_verified_are_named(
    verified: set[str], sandbox: bool, bad: str
) -> None:
    """Sender and From always, recipients in the sandbox; each once; domains count."""
    rules = Policy(verified=frozenset(verified), sandbox=sandbox)

    said = _said(rules, recipients=("b@y.org", "c@y.org", "success@simulator.amazonses.com"))

    text = (
        "554 Message rejected: Email address is not verified. The following identities failed"
        " the check in region US-EAST-1: "
    )
    assert said == (text + bad if bad else None)


def test_envelope_and_header_are_both_checked() -> None:
    """A verified sender does not cover another From, nor the other way round."""
    rules = Policy(verified=frozenset({"x.org"}))

    said = _said(rules, sender="s@bounce.net", head=HEAD.replace(b"a@x.org", b"f@other.net"))

    assert said is not None
    assert said.endswith(": s@bounce.net, f@other.net")


def test_subdomain_of_a_verified_domain_is_covered() -> None:
    """Below it, yes; a domain that merely ends alike, no."""
    verified = frozenset({"x.org"})

    assert addresses.is_covered("a@mail.X.org", verified)
    assert not addresses.is_covered("a@notx.org", verified)


def test_paused_account_refuses_everything() -> None:
    """In the words that were seen."""
    assert _said(Policy(paused=True)) == (
        "554 Message rejected: Sending paused for this account. For more information, please"
        " check the inbox of the email address associated with your AWS account."
    )


@pytest.mark.parametrize(
    ("extra", "resource"),
    [(b"", "identity/x.org"), (b"X-SES-CONFIGURATION-SET: main\r\n", "configuration-set/main")],
)
def test_denied_user_is_told_on_what(extra: bytes, resource: str) -> None:
    """The identity, or the configuration set that the message names."""
    assert _said(Policy(denied=True), HEAD + extra) == (
        "554 Access denied: User `arn:aws:iam::123456789012:user/ses-smtp-user.sandbox' is not"
        " authorized to perform `ses:SendRawEmail' on resource"
        f" `arn:aws:ses:us-east-1:123456789012:{resource}'"
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), None),
        (("main",), None),
        (("other",), "554 Configuration set <other> does not exist."),
        (("main", "other"), None),
        (("other", "main"), "554 Configuration set <other> does not exist."),
    ],
)
def test_first_configuration_set_has_to_exist(names: tuple[str, ...], said: str | None) -> None:
    """A message that names none is good, of several the first counts."""
    rules = Policy(configuration_sets=frozenset({"main"}))
    fields = "".join(f"X-SES-CONFIGURATION-SET: {name}\r\n" for name in names).encode()

    assert _said(rules, HEAD + fields) == said


def test_recipients_are_counted_over_the_envelope() -> None:
    """Two are one too many for a limit of one."""
    rules = Policy(recipients_max=1)

    assert _said(rules, recipients=("b@y.org", "c@y.org")) == (
        FAILED + "Recipient count exceeds 1."
    )
    assert _said(rules) is None


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("a@", "Missing domain"),
        ("@x.org", "Missing local name"),
        ("nobody", "Missing final '@domain'"),
        ("a@x!y", "Domain contains illegal character"),
        ("a\x01@x.org", "Local address contains control or whitespace"),
        (
            '"re:ceiver"@x.org',
            "Address contains illegal characters in user name: '<\"re:ceiver\"@x.org>'.",
        ),
    ],
)
def test_address_is_complained_of_in_javamails_words(address: str, text: str) -> None:
    """Wherever after the dot it is met."""
    assert addresses.objection(address) == FAILED + text
    assert _said(Policy(), recipients=(address,)) == FAILED + text


@pytest.mark.parametrize("name", [b"From", b"To", b"Cc"])
def test_addresses_in_the_header_are_judged_too(name: bytes) -> None:
    """A name without a domain is not an address, behind a good one neither."""
    assert _said(Policy(), name + b": good@x.org, nobody\r\n") == FAILED + "Missing final '@domain'"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a@x.org", ["a@x.org"]),
        ("<a@x.org>", ["a@x.org"]),
        (' "Doe, Ann" <a@x.org> ', ["a@x.org"]),
        ("Ann <a@x.org>, Bo <b@y.org>", ["a@x.org", "b@y.org"]),
        ("a@x.org (Ann)", ["a@x.org"]),
        ("=?utf-8?q?J=C3=BC?= <j@x.org>", ["j@x.org"]),
        ("nobody", ["nobody"]),
        ("", []),
    ],
)
def test_header_addresses_are_found(value: str, found: list[str]) -> None:
    """Alone or in a list, named or bare."""
    assert addresses.in_header(value) == found


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"Content-Type: text/plain", None),
        (b'Content-Type: multipart/mixed;\r\n boundary="x"', None),
        (b"Content-Type: text/plain (plain) ; charset=utf-8", None),
        (b"Content-Type: text/plain: charset=utf-8", "Expected ';', got \":\""),
        (b"Content-Type: text/plain charset=utf-8", "Expected ';', got \"charset\""),
        (b"Content-Disposition: attachment; filename=x", None),
        (b"Content-Disposition: =attachment", "Expected disposition, got ="),
        (b"Content-Disposition:", "Expected disposition, got null"),
    ],
)
def test_mime_fields_have_to_parse(field: bytes, text: str | None) -> None:
    """A type and then a semicolon or nothing."""
    assert _said(Policy(), HEAD + field + b"\r\n") == (text and FAILED + text)


def test_objections_come_in_their_order() -> None:
    """Each repaired, the next comes to light, and in the end nothing is left."""
    rules = Policy(
        denied=True,
        paused=True,
        recipients_max=0,
        configuration_sets=frozenset(),
        verified=frozenset(),
    )
    head = HEAD + b"X-SES-CONFIGURATION-SET: z\r\nContent-Type: a/b c\r\nSender: a\r\nSender: a\r\n"
    bad_to = HEAD.replace(b"b@y.org", b"nobody") + b"X-SES-CONFIGURATION-SET: z\r\n"
    steps = [
        (rules, head, "554 Access denied"),
        (replace(rules, denied=False), head, "554 Message rejected: Sending paused"),
        (replace(rules, denied=False, paused=False), head, FAILED + "Recipient count"),
    ]
    rules = replace(rules, denied=False, paused=False, recipients_max=50)
    steps += [
        (rules, head, FAILED + "Duplicate header 'Sender'"),
        (replace(rules, once_only_headers=False), head, FAILED + "Expected ';'"),
        (rules, bad_to, FAILED + "Missing final"),
        (rules, bad_to.replace(b"nobody", b"b@y.org"), "554 Configuration set <z>"),
        (replace(rules, configuration_sets=None), HEAD, "554 Message rejected: Email address is"),
    ]

    for step, content, said in steps:
        assert (_said(step, content) or "").startswith(said)

    assert _said(Policy()) is None
