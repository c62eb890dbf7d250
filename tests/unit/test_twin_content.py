"""How the twin reads a message: dots, sizes, header fields."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.twin.content import Body, Head


def _stuffed(content: bytes) -> bytes:
    """As RFC 5321 §4.5.2 says, line by line: slow, and not the twin's way."""
    lines = content.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)


_LINES = st.lists(st.sampled_from([b"", b".", b"..", b".x", b"x.", b"x\n.\n", b"x\r.\r"]))


@given(lines=_LINES, cuts=st.lists(st.integers(0, 60)), tail=st.binary(max_size=8))
def test_content_comes_out_as_it_went_in_however_it_is_cut(
    lines: list[bytes], cuts: list[int], tail: bytes
) -> None:
    """Stuffed, ended, cut anywhere: the same content, and what follows the dot is kept."""
    content = b"".join(line + b"\r\n" for line in lines)
    wire = _stuffed(content) + b".\r\n"
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = [wire[a:b] for a, b in pairwise(edges)]
    pieces[-1] += tail
    body = Body(1000)

    rests = [body.feed(piece) for piece in pieces]

    assert rests[:-1] == [None] * (len(pieces) - 1)
    assert rests[-1] == tail
    assert body.content() == content


def test_content_fed_byte_by_byte_ends_at_the_last_byte_of_the_dot() -> None:
    """The dot line is seen across any boundary."""
    body, wire = Body(1000), b"..a\r\n\r\nb\r\n.\r\n"

    rests = [body.feed(wire[n : n + 1]) for n in range(len(wire))]

    assert rests == [None] * (len(wire) - 1) + [b""]
    assert body.content() == b".a\r\n\r\nb\r\n"


def test_client_that_forgets_to_stuff_loses_its_dot() -> None:
    """RFC 5321 §4.5.2: the first dot of a line goes, whoever put it there."""
    body = Body(1000)

    body.feed(b".x\r\n.y\r\n.\r\n")

    assert body.content() == b"x\r\ny\r\n"


@pytest.mark.parametrize("end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r"])
def test_only_crlf_dot_crlf_ends_a_message(end: bytes) -> None:
    """Nothing that merely looks like the end is one (CVE-2024-27305 and its kin)."""
    body = Body(1000)

    assert body.feed(b"a" + end + b"b\r\n") is None


@pytest.mark.parametrize("cut", range(1, 5))
def test_content_beyond_the_limit_is_dropped_but_read_to_its_end(cut: int) -> None:
    """A message that is too big is not kept, yet its dot is found wherever it is cut."""
    end = b"\r\n.\r\n"
    body = Body(1000)

    rests = [body.feed(b"x" * 700) for _ in range(10)]
    rests.append(body.feed(b"x" * 2000 + end[:cut]))
    rests.append(body.feed(end[cut:] + b"RSET\r\n"))

    assert rests == [None] * 11 + [b"RSET\r\n"]
    assert body.content() is None


def test_stuffing_does_not_count_against_the_limit() -> None:
    """A message of nothing but dots is a third longer on the wire and still kept."""
    content = b".\r\n" * 333
    body = Body(1000)

    assert body.feed(_stuffed(content)) is None
    assert body.feed(b".\r\n") == b""

    assert body.content() == content


def test_head_knows_fields_folded_or_not_and_stops_at_the_blank_line() -> None:
    """Names in any case, values with their folds, nothing of the body."""
    head = Head(b"Received: by x\r\n\tid 1\r\nX-A : 1\r\nx-b:\r\n\r\nX-C: body\r\n")

    assert [field.name for field in head.fields] == [b"received", b"x-a", b"x-b"]
    assert head.text(b"received") == "by x\r\n\tid 1"
    assert head.text(b"x-a") == "1"
    assert head.text(b"x-b") == ""
    assert head.first(b"x-c") is None


def test_field_says_where_it_stands() -> None:
    """Cutting start..end out of the content removes that field and its folds, no more."""
    content = b"A: 1\r\nReceived: x\r\n y\r\nB: 2\r\n\r\nbody\r\n"

    field = Head(content).first(b"received")

    assert field is not None
    assert content[: field.start] + content[field.end :] == b"A: 1\r\nB: 2\r\n\r\nbody\r\n"


@pytest.mark.parametrize("content", [b"", b"\r\nX-A: 1\r\n", b"no header\r\n\r\nX-A: 1\r\n"])
def test_content_without_header_has_no_fields(content: bytes) -> None:
    """What is not a header is not read as one."""
    assert Head(content).fields == []


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b"Content-Type: a\r\ncontent-type: b\r\n", "Content-Type"),
        (b"MIME-Version: 1\r\nTo: x\r\nMIME-VERSION: 1\r\n", "MIME-Version"),
        (b"DKIM-Signature: a\r\nDKIM-Signature: b\r\n", "DKIM-Signature"),
        (b"Received: a\r\nReceived: b\r\nTo: x\r\nTo: y\r\nX-A: 1\r\nX-A: 2\r\n", None),
        (b"Content-Type: a\r\nMIME-Version: 1\r\n", None),
    ],
)
def test_second_once_only_field_is_found_under_its_proper_name(
    header: bytes, name: str | None
) -> None:
    """SES names the field as the standard writes it; others may come as often as they like."""
    assert Head(header + b"\r\nContent-Type: in the body\r\n").duplicate() == name
