"""The parts of the listener that need no connection: what they read, and the limits they keep."""

from __future__ import annotations

import asyncio
import re

import pytest

from relay import config, errors
from relay.listener import access, address, auth, by_domain, headers, replies, users
from relay.listener.allowance import STEP_BYTES, Allowance, Share
from relay.listener.body import BodyReader, normalised
from relay.listener.inflow import HIGH_WATER_BYTES, LINE_MAX_BYTES, ClientGone, Inflow, LineTooLong
from relay.listener.intake import Via, hostname_of
from relay.listener.observer import NoObserver
from tests.fakes.passwords import cheap

# --- replies ---------------------------------------------------------------------------


def all_failures(
    kind: type[errors.RelayError] = errors.RelayError,
) -> list[type[errors.RelayError]]:
    return [kind, *(sub for one in kind.__subclasses__() for sub in all_failures(one))]


@pytest.mark.parametrize("kind", all_failures())
def test_every_failure_of_ours_has_a_temporary_reply(kind: type[errors.RelayError]) -> None:
    """P1: 4xx, whatever it is; and nothing of the failure's own text."""
    error = kind.__new__(kind)

    assert replies.of_failure(error) in {replies.SURPRISE, replies.NO_ROOM}
    assert replies.of_failure(error).startswith(b"4")


def test_surprise_is_451_and_a_full_spool_452() -> None:
    """Of all failures only the full spool has a reply of its own."""
    assert replies.of_failure(ZeroDivisionError("secret")) == replies.SURPRISE
    assert replies.of_failure(errors.SpoolBroken("secret")) == replies.SURPRISE
    assert replies.of_failure(errors.SpoolFull("secret")) == replies.NO_ROOM


def test_every_reply_is_one_ascii_line_with_its_codes() -> None:
    """RFC 5321 4.5.3.1.5: at most 512 octets; RFC 2034: the classes of both codes agree."""
    texts = [text for name, text in vars(replies).items() if isinstance(text, bytes)]
    texts += [replies.too_big(10**12), replies.stranger("2001:db8::1", may_log_in=True)]

    for text in texts:
        if text == replies.GO_AHEAD:
            continue
        assert len(text) <= 510
        assert text.isascii()
        match = re.fullmatch(rb"([245])\d\d ([245])\.\d\.\d{1,2} \S[^\r\n]*", text)
        assert match is not None, text
        assert match[1] == match[2]


# --- headers ---------------------------------------------------------------------------


def test_fields_are_found_in_any_order_case_and_folding() -> None:
    """Names without regard to case, blanks before the colon, values over several lines."""
    content = (
        b"received: one\r\nMESSAGE-ID:\r\n <a@b>\r\nX-LISTMONK-SUBSCRIBER : \tABC-1\r\n"
        b"Subject: X-Listmonk-Campaign: no\r\n X-Listmonk-Campaign: no\r\nReceived:two\r\n"
        b"x-ses-configuration-set:\r\n\tNews\r\n \r\nX-Listmonk-Campaign: One\r\n"
        b"X-Listmonk-Campaign: Two\r\n\r\nReceived: in the body\r\nMessage-Id: <body@b>\r\n"
    )

    assert headers.read(content) == headers.Fields(
        campaign="one",
        subscriber="abc-1",
        configuration_set="News",
        message_id="<a@b>",
        received=2,
    )


@pytest.mark.parametrize(
    ("value", "campaign"),
    [
        (b"14fe7a64-ac40-4cd4-9783-6a526bb85fd0", "14fe7a64-ac40-4cd4-9783-6a526bb85fd0"),
        (b"My Campaign\xff\t 7", "my_campaign__7"),
        (b"x" * 100, "x" * 64),
        (b"", ""),
        (b" \t ", ""),
        (b"a\x00b\x7f", "ab"),
    ],
)
def test_campaign_is_a_label(value: bytes, campaign: str) -> None:
    """Lower case, printable, without blanks, at most 64; uuids as they are."""
    assert headers.read(b"X-Listmonk-Campaign: " + value + b"\r\n\r\n").campaign == campaign


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"\r\nMessage-Id: <x@y>\r\n", b"no header at all"]
)
def test_no_header_section_gives_nothing(content: bytes) -> None:
    """An empty section, an empty message, a body alone."""
    assert headers.read(content) == headers.Fields()


def test_header_section_without_a_body_counts() -> None:
    """A message may end with its headers."""
    assert headers.read(b"Message-Id: <x@y>").message_id == "<x@y>"


# --- addresses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("FROM:<a@b>", "a@b"),
        ("from: <a@b>", "a@b"),
        ("FROM : <a@b>", "a@b"),
        ("FROM:<>", ""),
        ("FROM:a@b", "a@b"),
        ("FROM:<@x,@y:a@b>", "a@b"),
        ("FROM:<@x>", "@x"),
        ("FROM:<a@[IPv6:::1]>", "a@[IPv6:::1]"),
        (r'FROM:<"a\" <>b"@c>', r'"a\" <>b"@c'),
        ('FROM:<"">', '""'),
        ('FROM:<"a>', None),
        ('FROM:<"a\x00"@b>', None),
        ("FROM:<a\x01@b>", None),
        ("FROM:<a@b", None),
        ("FROM:<a@b>x", None),
        ("FROM:<<a@b>>", None),
        ("FROM:", None),
        ("TO:<a@b>", None),
        ("FROM:<" + "x" * 1024 + ">", "x" * 1024),
        ("FROM:<" + "x" * 1025 + ">", None),
        ("FROM:<" + '"' * 9_999, None),
    ],
)
def test_path_is_read_or_refused(argument: str, wanted: str | None) -> None:
    """What can be sent on as one address in brackets is taken, and nothing else."""
    found = address.read("FROM", argument)

    assert (found.address if found else None) == wanted


def test_parameters_are_read_by_upper_case_keyword() -> None:
    """With their values as they are; a value may hold an equals sign."""
    found = address.read("TO", "TO:<a@b>  size=10  SMTPUTF8 x=a=b ")

    assert found == address.Path("a@b", {"SIZE": "10", "SMTPUTF8": "", "X": "a=b"})


# --- who may send ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "is_known"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:10.1.2.3", True),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("fe80::1", False),
        ("", False),
        ("/run/socket", False),
    ],
)
def test_peers_are_known_by_their_network(peer: str, is_known: bool) -> None:
    """IPv4 seen through IPv6 is IPv4; a zone does not matter; what is no address is unknown."""
    assert (peer in access.Networks(["10.0.0.0/8", "fd00::/16"])) is is_known


def test_hostname_is_safe_in_a_header() -> None:
    """The configured name, else the machine's, else localhost; nothing that breaks a line."""
    assert hostname_of(config.Listen(hostname="a.b"), "machine") == "a.b"
    assert hostname_of(config.Listen(), "machine") == "machine"
    assert hostname_of(config.Listen(hostname="x\r\ny: z"), "") == "xy:z"
    assert hostname_of(config.Listen(), "") == "localhost"


def test_with_says_how_the_client_speaks() -> None:
    """RFC 3848."""
    assert str(Via(is_extended=False, is_encrypted=True, auth_user="x")) == "SMTP"
    assert str(Via(is_extended=True, is_encrypted=False, auth_user="")) == "ESMTP"
    assert str(Via(is_extended=True, is_encrypted=True, auth_user="")) == "ESMTPS"
    assert str(Via(is_extended=True, is_encrypted=False, auth_user="x")) == "ESMTPA"
    assert str(Via(is_extended=True, is_encrypted=True, auth_user="x")) == "ESMTPSA"


def test_upstream_is_chosen_by_the_senders_domain() -> None:
    """The nearest domain wins; without one, the first upstream that takes any."""
    upstream_of = by_domain(
        [
            config.Upstream(name="one", from_domains=("Example.com",)),
            config.Upstream(name="two", from_domains=("lists.example.com", "example.com")),
            config.Upstream(name="rest"),
        ]
    )

    assert upstream_of("a@example.com") == "one"
    assert upstream_of("a@X.EXAMPLE.COM") == "one"
    assert upstream_of("a@lists.example.com") == "two"
    assert upstream_of("a@notexample.com") == "rest"
    assert upstream_of("postmaster") == "rest"
    assert by_domain([config.Upstream(name="only")])("a@b") == "only"
    assert by_domain([config.Upstream(name="only", from_domains=("x.y",))])("a@b") == "only"


def test_nobody_observes_without_harm() -> None:
    """The default observer takes every call."""
    nobody = NoObserver()
    nobody.refused(451)
    nobody.stalled(True)
    nobody.connection(1)
    nobody.accept_seconds(0.1)
    nobody.failed("listener")


# --- users and passwords ---------------------------------------------------------------

SALTED = "scrypt:16384$8$1$c2FsdA==$" + "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="


def test_users_file_is_read() -> None:
    """Comments and empty lines are skipped; a plain secret may hold colons and blanks."""
    found = users.parse(f"# comment: x\n\nlistmonk:{SALTED}\no ther:plain:a: b#c\n")

    assert found == {
        "listmonk": users.Scrypt(16384, 8, 1, b"salt", b"0" * 32),
        "o ther": users.Plain("a: b#c"),
    }
    assert str(found["listmonk"]) == SALTED


@pytest.mark.parametrize(
    "line",
    [
        "name",
        "name:",
        "name:plain:",
        "name:plain: x",
        "name:md5:x",
        ":plain:x",
        " name:plain:x",
        "name:scrypt:1$2$3",
        f"name:{SALTED}".replace("16384", "16383"),
        f"name:{SALTED}".replace("16384", "1"),
        f"name:{SALTED}".replace("16384", str(1 << 40)),
        f"name:{SALTED}".replace("$8$", "$0$"),
        f"name:{SALTED}".replace("$1$", "$99$"),
        f"name:{SALTED}".replace("c2FsdA==", "!"),
        f"name:{SALTED}".replace("MDAwMDAwMDAw", "", 3),
    ],
)
def test_users_file_with_a_bad_line_names_it_and_no_secret(line: str) -> None:
    """All bad lines at once, by number; a cost that would take the machine down is bad, too."""
    with pytest.raises(errors.ConfigErrors) as caught:
        users.parse(f"good:plain:secret\n{line}\ngood:plain:secret\n")

    assert [error.found for error in caught.value.errors] == ["line 2", "'good' again in line 3"]
    assert "secret" not in str(caught.value).lower().replace("name:plain:secret", "")


def test_secrets_are_not_in_a_repr() -> None:
    """Neither the password nor its hash."""
    assert "tanstaaf" not in repr(users.Plain("tanstaaf"))
    assert "0000" not in repr(users.Scrypt(2, 1, 1, b"salt", b"0" * 32))


class FewUsers(users.Users):
    """Users that come from no file."""

    def __init__(self, entries: dict[str, users.Secret]) -> None:
        self._entries = entries

    def refresh(self) -> None:
        pass


async def test_right_pair_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign opens fifty connections; a wrong one, and an unknown name, cost a hash each."""
    hashed: list[bytes] = []
    hash_once = users.Scrypt.hash

    def count(entry: users.Scrypt, password: bytes) -> bytes:
        hashed.append(password)
        return hash_once(entry, password)

    monkeypatch.setattr(auth, "_NOBODY", cheap(""))
    passwords = auth.Passwords(FewUsers({"a": cheap("right")}))
    monkeypatch.setattr(users.Scrypt, "hash", count)

    for _ in range(3):
        assert await passwords.is_right("a", "right")
    assert hashed == [b"right"]
    assert not await passwords.is_right("a", "wrong")
    assert not await passwords.is_right("a", "wrong")
    assert not await passwords.is_right("b", "right")
    assert len(hashed) == 4


async def test_new_password_ends_the_old_one_at_once() -> None:
    """What is remembered is the pair with the entry that it was checked against."""
    few = FewUsers({"a": cheap("old")})
    passwords = auth.Passwords(few)
    assert await passwords.is_right("a", "old")

    few._entries = {"a": cheap("new")}

    assert not await passwords.is_right("a", "old")
    assert await passwords.is_right("a", "new")


async def test_pairs_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, one that was used lately is not."""
    monkeypatch.setattr(auth, "REMEMBERED_MAX", 2)
    passwords = auth.Passwords(FewUsers({name: cheap(name) for name in "abc"}))

    for name in "abac":
        assert await passwords.is_right(name, name)

    assert len(passwords._right) == 2
    kept = {passwords._pair(name, name, passwords._users.find(name)) for name in "ac"}
    assert set(passwords._right) == kept


async def test_checks_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads hash, however many ask."""
    running = most = 0

    async def to_thread(work: object, *_: object) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return b""

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    passwords = auth.Passwords(FewUsers({"a": cheap("x")}))
    await asyncio.gather(*(passwords.is_right("a", str(n)) for n in range(20)))

    assert most == auth.CHECKS_MAX


def test_cram_md5_is_that_of_rfc_2195() -> None:
    """The example of its section 2; hexadecimal digits in either case."""
    passwords = auth.Passwords(FewUsers({"tim": users.Plain("tanstaaftanstaaf")}))
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    answer = "b913a602c7eda7a495b4e6e7334d3890"

    assert passwords.is_right_answer("tim", challenge, answer)
    assert passwords.is_right_answer("tim", challenge, answer.upper())
    assert not passwords.is_right_answer("tim", challenge + b"x", answer)
    assert not passwords.is_right_answer("tom", challenge, answer)


async def test_plain_entry_is_good_for_login_too() -> None:
    """Whoever was added with --cram may choose LOGIN as well."""
    passwords = auth.Passwords(FewUsers({"a": users.Plain("p\u00e4ss")}))

    assert await passwords.is_right("a", "p\u00e4ss")
    assert not await passwords.is_right("a", "pass")


# --- body ------------------------------------------------------------------------------


def test_body_over_its_size_is_not_kept() -> None:
    """Memory stays bounded while the rest of it is swallowed."""
    body = BodyReader(100)

    for _ in range(50):
        assert body.feed(b"x" * 50) is None
        assert body.held_bytes <= 152
    assert body.feed(b"\r\n.\r\nNOOP") == b"NOOP"
    assert body.too_big


def test_doubled_dots_do_not_count_as_size() -> None:
    """RFC 1870 5: what is sent to keep the message transparent is not part of it."""
    stuffed = b"..\r\n" * 1000

    fits, too_big = BodyReader(3000), BodyReader(2999)
    for at in range(0, len(stuffed), 7):
        fits.feed(stuffed[at : at + 7])
        too_big.feed(stuffed[at : at + 7])
    fits.feed(b".\r\n")
    too_big.feed(b".\r\n")

    assert not fits.too_big
    assert fits.content() == b".\r\n" * 1000
    assert too_big.too_big


def test_clean_content_is_not_copied() -> None:
    """Listmonk's line ends are right: the common case costs three scans."""
    clean = b"a\r\n\r\nb\r\n"

    assert normalised(clean) is clean
    assert normalised(b"a\rb\nc\r\r\nd") == b"a\r\nb\r\nc\r\n\r\nd"


# --- inflow ----------------------------------------------------------------------------


class Wire(asyncio.ReadTransport):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


def test_socket_is_read_no_further_until_the_buffer_is_used() -> None:
    """Paused once above the high water, resumed once below."""
    inflow, wire = Inflow(), Wire()
    inflow.attach(wire)

    inflow.feed(b"NOOP\r\n" + b"x" * HIGH_WATER_BYTES)
    inflow.feed(b"\r\n")
    assert wire.calls == ["pause"]
    assert inflow.line() == b"NOOP"
    inflow.take(1_000_000)
    inflow.feed(b"more")
    assert wire.calls == ["pause", "resume"]


def test_line_over_the_limit_is_thrown_away_once() -> None:
    """In one piece or in many; the next line is read as it is."""
    inflow = Inflow()

    for piece in (b"x" * LINE_MAX_BYTES, b"x", b"y" * LINE_MAX_BYTES * 2, b"z\r\nnext\r\n"):
        assert inflow.line() is None
        inflow.feed(piece)
    with pytest.raises(LineTooLong):
        inflow.line()
    assert inflow.line() == b"next"
    inflow.feed(b"x" * (LINE_MAX_BYTES + 1) + b"\nnext\n")
    with pytest.raises(LineTooLong):
        inflow.line()
    assert inflow.line() == b"next"


async def test_end_comes_after_all_that_was_sent() -> None:
    """``more`` raises only when nothing will come, at once or while it waits."""
    inflow = Inflow()
    waiting = asyncio.ensure_future(inflow.more())
    await asyncio.sleep(0)
    inflow.end()
    await waiting

    with pytest.raises(ClientGone):
        await inflow.more()


# --- allowance -------------------------------------------------------------------------


async def grown(share: Share, steps: int) -> asyncio.Task[None]:
    task = asyncio.create_task(share.grow((steps - 1) * STEP_BYTES))
    await asyncio.sleep(0)
    return task


async def test_new_body_waits_while_others_hold_all() -> None:
    """First come, first served, when there is room again."""
    allowance = Allowance(2 * STEP_BYTES)
    one, two, three, four = (allowance.open() for _ in range(4))
    tasks = [await grown(share, 1) for share in (one, two, three, four)]
    assert [task.done() for task in tasks] == [True, True, False, False]

    one.close()
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [True, True, True, False]
    two.close()
    await asyncio.sleep(0)
    assert tasks[3].done()


async def test_one_body_that_has_begun_may_go_over() -> None:
    """Two want more and there is none: one leads, and the other follows when it is done."""
    allowance = Allowance(2 * STEP_BYTES)
    one, two, new = (allowance.open() for _ in range(3))
    await grown(one, 1)
    await grown(two, 1)
    waiting = await grown(new, 1)

    assert (await grown(one, 2)).done()
    behind = await grown(two, 4)
    assert (await grown(one, 9)).done()
    assert not behind.done()
    assert not waiting.done()
    one.close()
    await waiting
    await behind
    assert allowance.used_bytes == 5 * STEP_BYTES


async def test_body_that_has_begun_comes_before_one_that_has_not() -> None:
    """Else the one that waits first would wait for the others, and they for it."""
    allowance = Allowance(2 * STEP_BYTES)
    one, two, new = (allowance.open() for _ in range(3))
    await grown(one, 2)
    waiting = await grown(new, 1)
    assert one.try_grow(2 * STEP_BYTES)
    begun = await grown(two, 1)
    assert not begun.done()

    assert one.try_grow(3 * STEP_BYTES)
    one.close()
    one.close()
    await waiting
    await begun
    two.close()
    new.close()
    assert allowance.used_bytes == 0


async def test_one_body_is_admitted_however_little_there_is() -> None:
    """A cap below one step still lets mail through, one at a time."""
    allowance = Allowance(1)
    one, two = allowance.open(), allowance.open()

    assert one.try_grow(0)
    assert not two.try_grow(0)
    one.close()
    assert two.try_grow(0)


async def test_turn_that_is_given_up_goes_to_the_next() -> None:
    """Cancelled while waiting: nothing taken, nobody blocked."""
    allowance = Allowance(STEP_BYTES)
    one, two, three = (allowance.open() for _ in range(3))
    await grown(one, 1)
    gone, last = await grown(two, 1), await grown(three, 1)

    gone.cancel()
    one.close()
    await last
    two.close()

    assert allowance.used_bytes == STEP_BYTES
