"""The relay's own log: one line a record, on standard error.

The message is a constant that can be counted and searched for; facts stand beside it as
fields, handed in by ``extra``. Both formats hold the same fields in the same order:
``time`` (UTC), ``level``, ``room`` (the logger, without ``relay.``), ``msg``, the extras,
and for an exception ``error`` and ``trace``, folded to one line. A field is cut at
``FIELD_CHARS_MAX``, so that no text from outside fills the disk.

Other libraries are heard from WARNING up: aiosmtpd logs addresses in full at INFO and the
answers of a login at DEBUG. Nothing here knows what is secret; whoever logs an address
redacts it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from relay import config

FIELD_CHARS_MAX = 4000
"""Room for a deep traceback; the systemd journal splits lines at 48 KiB (LineMax=)."""

_BARE = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z")
_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""What every record has; all else came by ``extra``. ``taskName`` is Python 3.12's."""


class _Formatter(logging.Formatter):
    """What both formats share: the fields of a record."""

    def fields(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        """Each field, in order; extras as they were handed in."""
        at = datetime.fromtimestamp(record.created, UTC)
        yield "time", f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
        yield "level", record.levelname.lower()
        yield "room", record.name.removeprefix("relay.")
        yield "msg", record.getMessage()
        yield from ((key, value) for key, value in record.__dict__.items() if key not in _OWN)
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            yield "error", "".join(traceback.format_exception_only(error)).strip()
            yield "trace", _folded(error)


class LogfmtFormatter(_Formatter):
    """``time=… level=info room=dispatcher msg="envelope deferred" envelope=… lane=bulk``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of key=value, quoted where a reader would stumble."""
        return " ".join(f"{key}={_quoted(_plain(value))}" for key, value in self.fields(record))


class JsonFormatter(_Formatter):
    """The same fields as one JSON object; numbers and booleans stay what they are."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        return json.dumps({key: _json(value) for key, value in self.fields(record)})


def setup(log: config.Log) -> None:
    """Send every logger of this program to standard error, as ``[log]`` says; may be repeated."""
    form = JsonFormatter() if log.format == "json" else LogfmtFormatter()
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(form)
    level = logging.getLevelNamesMapping()[log.level.upper()]
    logging.basicConfig(handlers=[stream], level=max(level, logging.WARNING), force=True)
    logging.getLogger("relay").setLevel(level)


def _folded(error: BaseException) -> str:
    """The traceback of ``error``, causes and groups included, on one line; its end if too long."""
    lines = [
        line.strip() for part in traceback.format_exception(error) for line in part.split("\n")
    ]
    text = " | ".join(filter(None, lines))
    return text if len(text) <= FIELD_CHARS_MAX else f"…{text[-FIELD_CHARS_MAX + 1 :]}"


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= FIELD_CHARS_MAX else f"{text[: FIELD_CHARS_MAX - 1]}…"


def _quoted(text: str) -> str:
    """``text`` bare if it is one plain word, else in JSON's quotes: one line, whatever is in it."""
    if _BARE.match(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029]", lambda char: f"\\u{ord(char[0]):04x}", quoted)


def _json(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no infinity
    return value if isinstance(value, bool | int | None) else _plain(value)
