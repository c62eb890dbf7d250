"""What must hold of every byte a client may send."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from relay.errors import ConfigErrors
from relay.listener import address, headers, users
from relay.listener.allowance import STEP_BYTES, Allowance
from relay.listener.body import BodyReader
from relay.listener.inflow import Inflow

PIECES = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"a", b"\r\n..", b"\xff\x00", b".\r\n"]
    ),
    max_size=30,
).map(b"".join)

END = b"\r\n.\r\n"


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def model(wire: bytes) -> tuple[bytes, bytes]:
    """Content and rest, line by line as RFC 5321 4.5.2 tells it; a line ends with CRLF only."""
    lines = wire.split(b"\r\n")
    end = lines.index(b".")
    unstuffed = [line[1:] if line.startswith(b".") else line for line in lines[:end]]
    content = b"".join(b"\r\n".join(re.split(rb"[\r\n]", one)) + b"\r\n" for one in unstuffed)
    return content, b"\r\n".join(lines[end + 1 :])


@given(PIECES, PIECES, st.lists(st.integers(0, 1000), max_size=20))
def test_body_is_what_rfc_5321_says_however_it_is_cut(
    content: bytes, tail: bytes, cuts: list[int]
) -> None:
    """Whole, byte by byte, with a tail: the same content and the same rest; no bare CR or LF."""
    wire = content + END + tail
    wanted, rest = model(wire)

    for pieces in ([wire], split_at(wire, cuts), [wire[n : n + 1] for n in range(len(wire))]):
        body, left = BodyReader(10_000), b""
        found = None
        for piece in pieces:
            if found is None:
                found = body.feed(piece)
            else:
                left += piece

        assert found is not None
        assert found + left == rest
        assert body.content() == wanted
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", body.content())


@given(st.lists(st.binary(max_size=20).map(lambda line: line.translate(None, b"\r\n"))))
def test_body_survives_the_way_there(lines: list[bytes]) -> None:
    """What a client stuffs as it should arrives byte-identical."""
    content = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." + line if line[:1] == b"." else line) + b"\r\n" for line in lines)
    body = BodyReader(10_000)

    assert body.feed(stuffed + b".\r\n") == b""
    assert body.content() == content


@example(b"", 2, [4])
@example(b"..\r\n", 5, [8])
@given(PIECES, st.integers(0, 60), st.lists(st.integers(0, 1000), max_size=5))
def test_size_limit_is_exact_however_it_is_cut(
    content: bytes, size_max: int, cuts: list[int]
) -> None:
    """Too big is what has more octets, dots unstuffed, than the limit; its end is found anyway."""
    wire = content + END + b"NOOP"
    before, rest = model(wire)
    raw = (b"\r\n" + wire)[: -len(rest) - 3 or None]
    size = len(raw.replace(b"\r\n.", b"\r\n")) - 2
    body, left = BodyReader(size_max), b""
    found = None
    for piece in split_at(wire, cuts):
        if found is None:
            found = body.feed(piece)
        else:
            left += piece

    assert found is not None
    assert found + left == rest
    assert body.too_big is (size > size_max)
    assert body.too_big or body.content() == before


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8),
)
def test_bodies_all_come_to_an_end_within_the_memory(
    cap: int, bodies: list[tuple[int, int]]
) -> None:
    """Whatever they want, in whatever order they come, and however long they are kept then.

    Memory stays below the cap plus one body.
    """
    allowance, most = Allowance(cap * STEP_BYTES), 0

    async def receive(steps: int, pause: int) -> None:
        nonlocal most
        share = allowance.open()
        for step in range(steps):
            await share.grow(step * STEP_BYTES)
            most = max(most, allowance.used_bytes)
            for _ in range(pause):
                await asyncio.sleep(0)
        share.close()

    async def all_of_them() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(receive(*body) for body in bodies))

    asyncio.run(all_of_them())

    assert allowance.used_bytes == 0
    assert most <= (cap + max(steps for steps, _ in bodies)) * STEP_BYTES


@given(st.binary(max_size=400))
def test_reading_headers_never_raises(content: bytes) -> None:
    """Whatever stands in a message; labels stay short and printable."""
    found = headers.read(content)

    for label in (found.campaign, found.subscriber, found.configuration_set):
        assert re.fullmatch(r"[!-~]{0,64}", label)
    assert found.message_id.isprintable()


FOLD = st.sampled_from([b" ", b"\t", b"\r\n ", b"\r\n\t", b" \r\n  "])
NAMES = {
    "campaign": b"X-Listmonk-Campaign",
    "subscriber": b"X-Listmonk-Subscriber",
    "message_id": b"Message-Id",
    "configuration_set": b"X-SES-Configuration-Set",
}


@given(st.data())
def test_headers_are_found_in_any_order_case_and_folding(data: st.DataObject) -> None:
    """As Listmonk's Go map walks, and as other clients fold."""
    values = {key: data.draw(st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)) for key in NAMES}
    others = data.draw(
        st.lists(st.sampled_from([b"To: x", b"Subject: Message-Id: <no>", b"Received: x"]))
    )
    lines = list(others)
    for key, name in NAMES.items():
        cased = data.draw(st.sampled_from([name, name.lower(), name.upper(), name.title()]))
        lines.append(cased + b":" + data.draw(FOLD) + values[key].encode() + data.draw(FOLD))
    content = b"\r\n".join([*data.draw(st.permutations(lines)), b"", b"Message-Id: <body>"])

    found = headers.read(content)

    assert {key: getattr(found, key) for key in NAMES} == values
    assert found.received == others.count(b"Received: x")


@given(st.text(max_size=60))
def test_reading_a_path_never_raises_and_gives_one_safe_address(text: str) -> None:
    """What is taken can be put into a command of ours: it reads back as itself."""
    for argument in (text, f"TO:<{text}>", f'TO:<"{text}"@b>', f"TO:{text}"):
        found = address.read("TO", argument)
        if found is not None:
            assert not re.search(r"[\x00-\x1f\x7f]", found.address)
            if not found.address.startswith("@"):
                assert address.read("TO", f"TO:<{found.address}>") == address.Path(
                    found.address, {}
                )


@given(st.lists(st.binary(max_size=12).map(lambda one: one.replace(b"\n", b"\r\n"))), st.data())
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes], data: st.DataObject) -> None:
    """Commands come in any pieces."""
    wire = b"\n".join(parts)
    inflow, lines = Inflow(), []
    for piece in split_at(wire, data.draw(st.lists(st.integers(0, 200), max_size=9))):
        inflow.feed(piece)
        while (line := inflow.line()) is not None:
            lines.append(line)

    assert lines == [line.removesuffix(b"\r") for line in wire.split(b"\n")[:-1]]
    assert inflow.take(len(wire)) == wire.split(b"\n")[-1]


NAME = st.text(max_size=20).filter(users.is_name)
SECRET = st.one_of(
    st.builds(users.Plain, st.text(max_size=20).filter(users.is_secret)),
    st.builds(
        users.Scrypt,
        st.sampled_from([2, 1024, 16384]),
        st.integers(1, 16),
        st.integers(1, 16),
        st.binary(max_size=32),
        st.binary(min_size=16, max_size=64),
    ),
)


@given(st.dictionaries(NAME, SECRET, max_size=5))
def test_users_file_reads_back_what_was_written(entries: dict[str, users.Secret]) -> None:
    """Any name and secret that ``relay user add`` lets through."""
    text = "".join(f"{name}:{secret}\n" for name, secret in entries.items())

    assert users.parse(text) == entries


@given(st.text(max_size=100))
def test_users_file_that_is_wrong_is_a_config_error(text: str) -> None:
    """Never another exception."""
    with suppress(ConfigErrors):
        users.parse(text)
