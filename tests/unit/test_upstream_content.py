"""Content on its way out: CRLF and dots."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.upstream.content import normalise, stuff

# Small alphabet: endings and dots meet in every order within a few bytes.
PIECES = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"\xe4", b""])).map(b"".join)


def unstuff(wire: bytes) -> bytes:
    """What RFC 5321 §4.5.2 tells a server to make of the bytes after its 354."""
    content = b""
    while True:
        line, _, wire = wire.partition(b"\r\n")
        if line == b".":
            assert wire == b""
            return content
        content += line.removeprefix(b".") + b"\r\n"


@given(PIECES)
def test_peer_gets_the_content_byte_for_byte(content: bytes) -> None:
    """Stuffed once and unstuffed once, normalised content is itself, and ends where it ends."""
    assert unstuff(stuff(normalise(content))) == normalise(content)


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"a\r\n\0.\r\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r\n.\0\r\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r\0\n.\r\n", b"a\r\n..\r\n.\r\n"),
        (b"\0", b".\r\n"),
    ],
)
def test_nul_hides_no_end(content: bytes, sent: bytes) -> None:
    """It is dropped before dots are stuffed, so that a peer that drops it finds no second end."""
    assert stuff(normalise(content)) == sent


@given(PIECES)
def test_normalised_content_has_no_bare_ending(content: bytes) -> None:
    """Each of CRLF, CR and LF is one CRLF; nothing else changes, and twice is once."""
    lines = re.split(rb"\r\n|\r|\n", content)
    wanted = b"\r\n".join(lines) + (b"\r\n" if lines[-1] else b"")

    normal = normalise(content)

    assert normal == wanted
    assert normalise(normal) is normal


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n.\r\n..\r\n", b"..\r\n..\r\n...\r\n.\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\r.\r\nb", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\n\r.b", b"a\r\n\r\n..b\r\n.\r\n"),
    ],
)
def test_content_on_the_wire(content: bytes, wire: bytes) -> None:
    """The known ways to smuggle an end of data come out as lines with a doubled dot."""
    assert stuff(normalise(content)) == wire


def test_clean_content_is_not_copied_to_be_normalised() -> None:
    """What the listener stored is handed on as the same object; the hot path has no regex."""
    content = b"Subject: x\r\n\r\n" + b"line\r\n" * 1000

    assert normalise(content) is content
