"""What a message or a command may cost us: time grows with its size, memory not beyond it."""

from __future__ import annotations

import re
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.listener import address, headers
from relay.listener.body import BodyReader
from relay.listener.inflow import LINE_MAX_BYTES, Inflow, LineTooLong

if TYPE_CHECKING:
    from collections.abc import Callable

MEGABYTE = 1_000_000

HEADERS: dict[str, Callable[[int], bytes]] = {
    "short lines": lambda n: b"a:\r\n" * (n // 4),
    "one long line": lambda n: b"X-Listmonk-Campaign: " + b"a" * n,
    "one folded field": lambda n: b"Message-Id:" + b"\r\n ab" * (n // 5),
    "one field of blanks": lambda n: b"X-Listmonk-Campaign:" + b" " * n + b"x",
    "a name and no colon": lambda n: b"Received" + b" \t" * (n // 2),
    "many names and no colon": lambda n: b"Received                  \r\n" * (n // 28),
    "Received": lambda n: b"Received: by x\r\n" * (n // 16),
    "folded Received": lambda n: b"Received:\r\n\t\r\n\t\r\n" * (n // 17),
    "folds alone": lambda n: b"\r\n " * (n // 3),
    "line ends alone": lambda n: b"\r\r\r\n" * (n // 4),
    "colons": lambda n: b":" * n,
    "NUL": lambda n: b"\0" * n,
    "not UTF-8": lambda n: b"Message-Id: " + b"\xff" * n,
}

ARGUMENTS: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "FROM:" + "<" * n,
    "quotes": lambda n: "FROM:<" + '"' * n,
    "quoted pairs": lambda n: 'FROM:<"' + "\\" * n,
    "blanks": lambda n: "FROM:" + " " * n + "<",
    "route": lambda n: "FROM:<@" + "a,@" * (n // 3) + ":",
    "routes": lambda n: "FROM:<" + "@a:" * (n // 3) + ">",
    "bare": lambda n: "FROM:" + "a" * n + '"',
    "parameters": lambda n: "FROM:<a@b>" + " SIZE=1" * (n // 7),
    "digits": lambda n: "FROM:<a@b> SIZE=" + "9" * n,
    "one parameter": lambda n: "FROM:<a@b> " + "=" * n,
    "no end": lambda n: "FROM:<" + "a@" * (n // 2),
    "colons": lambda n: "FROM" + " :" * (n // 2),
}


def cost_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process, the least of three tries."""
    tries = []
    for _ in range(3):
        begun = time.process_time()
        work()
        tries.append(time.process_time() - begun)
    return min(tries)


def assert_linear(work: Callable[[int], Callable[[], object]], size: int) -> None:
    """Eight times the size costs about eight times the time, where the square would be 64."""
    small, big = work(size), work(8 * size)

    assert cost_s(big) < 25 * cost_s(small) + 0.02


@pytest.mark.parametrize("kind", HEADERS)
def test_reading_headers_takes_time_in_proportion(kind: str) -> None:
    """No header section is worse than its size."""

    def work(size: int) -> Callable[[], object]:
        content = HEADERS[kind](size)
        return lambda: headers.read(content)

    assert_linear(work, 100_000)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_reading_an_argument_takes_time_in_proportion(kind: str) -> None:
    """The pattern never looks twice; a command has 16 kB at most, and this is ten times that."""

    def work(size: int) -> Callable[[], object]:
        argument = ARGUMENTS[kind](size)
        return lambda: address.read("FROM", argument)

    assert_linear(work, 20_000)


@pytest.mark.parametrize("chunk_bytes", [1, 100, 65_536])
@pytest.mark.parametrize("line", [b"x" * 70 + b"\r\n", b".", b"\r\n.", b"\r", b"\r\n.\r"])
def test_reading_a_body_takes_time_in_proportion(line: bytes, chunk_bytes: int) -> None:
    """However it is cut, and whatever looks like its end."""

    def work(size: int) -> Callable[[], object]:
        wire = (line * (size // len(line) + 1))[:size]

        def read() -> None:
            body = BodyReader(8 * MEGABYTE)
            for at in range(0, size, chunk_bytes):
                body.feed(wire[at : at + chunk_bytes])

        return read

    assert_linear(work, 3_000 if chunk_bytes == 1 else 100_000)


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("size", [MEGABYTE, pytest.param(40 * MEGABYTE, marks=pytest.mark.slow)])
def test_reading_headers_takes_little_memory(kind: str, size: int) -> None:
    """A message of one field, or of a million: a bound that does not grow with it."""
    content = HEADERS[kind](size)
    tracemalloc.start()
    try:
        headers.read(content)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 600_000


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.sampled_from([b"\r\n.", b"\r\n", b".", b"x" * 30, b"\r", b"\r\n.\r"]), max_size=80),
    st.integers(0, 200),
    st.integers(1, 40),
)
def test_body_never_holds_more_than_its_limit(
    pieces: list[bytes], size_max: int, chunk_bytes: int
) -> None:
    """The stuffed dots, a third of the wire at most, and what may be part of the end come on top.

    Past twice its size, counted as it comes over the wire, it is called endless.
    """
    body, wire = BodyReader(size_max), b"".join(pieces)
    taken = 0
    for at in range(0, len(wire), chunk_bytes):
        chunk = wire[at : at + chunk_bytes]
        taken += len(chunk)
        if body.feed(chunk) is not None:
            return
        assert body.held_bytes <= size_max * 3 // 2 + 8
        assert body.is_endless == (taken > 2 * size_max)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.sampled_from([b"x" * 3_000, b"\r\n", b"\n", b"NOOP", b"\0" * 20_000]), max_size=40)
)
def test_command_lines_never_hold_more_than_their_limit(pieces: list[bytes]) -> None:
    """Of a line without end nothing is kept; and when its end has come it is told of once."""
    inflow, wire, heard = Inflow(), b"".join(pieces), list[int]()
    for piece in pieces:
        inflow.feed(piece)
        while True:
            try:
                line = inflow.line()
            except LineTooLong:
                heard.append(-1)
                continue
            if line is None:
                break
            heard.append(len(line))
        assert len(inflow._buffer) <= LINE_MAX_BYTES

    lines = re.split(rb"\n", wire)[:-1]
    wanted = [-1 if len(one) > LINE_MAX_BYTES else len(one.removesuffix(b"\r")) for one in lines]
    assert heard == wanted


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(b"", b" ", b"\t folded", b" Message-Id: <folded>", b"Received: by x", b":", b"x"),
                *(b"Message-Id: <a@b>", b"MESSAGE-ID\t : <A@b>", b"Message-Id", b"Message-Id x: y"),
                *(b"X-Message-Id: <no>", b"X-Listmonk-Campaign: C", b"x-listmonk-campaign:", b"\0"),
                *(
                    b"Received :",
                    b"received:" + b" " * 20_000,
                    b"X-Listmonk-Campaign:" + b" " * 20_000,
                ),
            ]
        ),
        st.binary(max_size=8).map(lambda line: line.translate(None, b"\r\n")),
    ),
    max_size=12,
)


def fields_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """Names in lower case and raw values, line by line; blanks may stand before a colon."""
    found: list[tuple[bytes, bytes]] = []
    for line in (b"\r\n" + content).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if line[:1] in {b" ", b"\t"} and found:
            found[-1] = (found[-1][0], found[-1][1] + b"\r\n" + line)
        else:
            # A line that is no field has no name; what is folded onto it is nobody's.
            found.append((name.rstrip(b" \t").lower() if colon else b"", value))
    return found


@settings(deadline=None)
@given(LINES)
def test_headers_are_read_as_line_by_line(lines: list[bytes]) -> None:
    """Of each field the first counts, folded or not; of Received, the number."""
    content = b"\r\n".join([*lines, b"Received: in the body or not"])
    wanted = fields_of(content)

    found = headers.read(content)

    def first(name: bytes) -> str:
        value = next((value for one, value in wanted if one == name), b"")
        return " ".join(value[: headers.VALUE_MAX_BYTES].decode("utf-8", "replace").split())

    assert found.received == sum(name == b"received" for name, _ in wanted)
    if first(b"message-id").isprintable():
        assert found.message_id == first(b"message-id")
    if first(b"x-listmonk-campaign").isascii():
        assert found.campaign == re.sub(r"[^!-~]", "_", printable(first(b"x-listmonk-campaign")))


def printable(text: str) -> str:
    return "".join(one for one in text if one.isprintable()).lower()[: headers.LABEL_MAX]
