"""One line a record, in both formats, whatever is in it."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import TYPE_CHECKING

import pytest

from relay import config
from relay.service.logs import FIELD_CHARS_MAX, JsonFormatter, LogfmtFormatter, setup

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGFMT = re.compile(r'([A-Za-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |\Z)')


def record(msg: object = "envelope deferred", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("relay.dispatcher", logging.WARNING, __file__, 1, msg, (), None)
    made.created = 1_800_000_000.0425
    made.__dict__.update(extra)
    return made


def read(line: str) -> dict[str, str]:
    """What a logfmt reader sees; fails if the line is not logfmt to its end."""
    assert LOGFMT.sub("", line) == ""
    return {k: json.loads(v) if v.startswith('"') else v for k, v in LOGFMT.findall(line)}


def raised(text: str = "no\nroom") -> BaseException:
    """An exception with a cause, as it looks when it was caught."""

    def fall() -> None:
        try:
            json.loads("{")
        except ValueError as error:
            raise OSError(text) from error

    with pytest.raises(OSError, match=re.escape(text)) as caught:
        fall()
    return caught.value


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EAST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_east")
def test_logfmt_is_one_line_of_facts_in_order() -> None:
    """Time in UTC with milliseconds, level, room, the constant message, then the extras."""
    line = LogfmtFormatter().format(record(envelope="01h", cost=3, waited_s=0.25, final=True))

    assert line == (
        "time=2027-01-15T08:00:00.042Z level=warning room=dispatcher "
        'msg="envelope deferred" envelope=01h cost=3 waited_s=0.25 final=true'
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "two words",
        'say "no"',
        "'no'",
        "a=b",
        "back\\slash",
        "line\nbreak\r\n",
        "tab\t",
        "\x00\x7f\x9b",
        "\u2028",
        "naïve ☂",
        "\udcff",
    ],
)
def test_logfmt_survives_any_text(value: str) -> None:
    """A text from outside can neither end the line nor forge a field."""
    line = LogfmtFormatter().format(record(reply=value, lane="bulk"))

    assert len(line.splitlines()) == 1
    assert read(line)["reply"] == value
    assert read(line)["lane"] == "bulk"


def test_json_keeps_numbers_and_booleans() -> None:
    """What a machine reads has the types it was logged with."""
    extra: dict[str, object] = {
        "cost": 3,
        "rate": 0.1,
        "final": False,
        "ses": None,
        "rest": float("inf"),
    }

    line = JsonFormatter().format(record(**extra, lane=["bulk"]))

    said = json.loads(line)
    assert list(said)[:4] == ["time", "level", "room", "msg"]
    assert {key: said[key] for key in extra} == extra | {"rest": "inf"}
    assert said["lane"] == "['bulk']"


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()])
def test_an_exception_is_folded_to_one_line(formatter: logging.Formatter) -> None:
    """Both the error and the way to it, cause included, on the record's own line."""
    made = record("dispatch failed")
    error = raised()
    made.exc_info = (type(error), error, error.__traceback__)

    line = formatter.format(made)

    assert len(line.splitlines()) == 1
    said = json.loads(line) if line.startswith("{") else read(line)
    assert said["error"] == "OSError: no\nroom"
    assert "JSONDecodeError" in said["trace"]
    assert "raise OSError(text) from error" in said["trace"]
    assert "\n" not in said["trace"]


def test_fields_are_cut() -> None:
    """A reply of a megabyte, or a deep recursion, makes a long line and not a full disk."""
    made = record(reply="x" * 100_000)
    error = raised("y" * 100_000 + "z")
    made.exc_info = (type(error), error, error.__traceback__)

    said = read(LogfmtFormatter().format(made))

    assert len(said["reply"]) == FIELD_CHARS_MAX
    assert said["reply"].endswith("…")
    assert len(said["trace"]) == FIELD_CHARS_MAX
    assert said["trace"].startswith("…y")
    assert said["trace"].endswith("yz")
    assert len(said["error"]) == FIELD_CHARS_MAX


def test_messages_of_other_libraries_get_their_arguments() -> None:
    """Others do not keep to constants; no exception passed in is no exception shown."""
    made = record("%r connection lost: %d", args=("peer", 3))
    made.exc_info = (None, None, None)

    said = read(LogfmtFormatter().format(made))

    assert said["msg"] == "'peer' connection lost: 3"
    assert "error" not in said


@pytest.fixture
def untouched_root() -> Iterator[None]:
    """The root logger as it was, whatever the test does to it."""
    root, own = logging.getLogger(), logging.getLogger("relay")
    before = (root.handlers[:], root.level, own.level)
    root.handlers.clear()
    yield
    root.handlers[:], root.level, own.level = before


@pytest.mark.usefixtures("untouched_root")
def test_setup_lets_our_steps_through_and_others_warnings_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At debug, aiosmtpd would log what a client answers to AUTH; it is not heard."""
    setup(config.Log(level="debug", format="logfmt"))

    logging.getLogger("relay.listener").debug("client connected", extra={"peer": "127.0.0.1"})
    logging.getLogger("a.library").info("AUTH hunter2")
    logging.getLogger("a.library").warning("odd")

    said = [read(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["room"], one["msg"]) for one in said] == [
        ("listener", "client connected"),
        ("a.library", "odd"),
    ]


@pytest.mark.usefixtures("untouched_root")
def test_setup_again_replaces_what_was_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    """After a reload each record is still one line, in the new format, at the new level."""
    setup(config.Log(level="debug"))
    setup(config.Log(level="error", format="json"))

    logging.getLogger("relay.spool").warning("low on room")
    logging.getLogger("asyncio").warning("slow")
    logging.getLogger("relay.spool").error("spool broken")

    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["msg"] for line in lines] == ["spool broken"]
    assert sys.stderr is not None
