"""What a single key of ``relay.toml`` accepts, and how that is said to a person.

A check is a value: ``wanted`` in words, and ``read``, which gives the value to keep or
``UNFIT``. ``Each`` applies one to the items of a list. Neither knows which key it stands
for; ``tables`` does. Contradictions between keys are not seen here; ``rules`` sees them.

What was found is shown as TOML would write it and cut short. It is never shown where it
might be a secret (URLs may carry a password or a token) nor for tables, whose keys
nobody has looked at.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from relay.errors import ConfigError

UNFIT = object()
"""What ``read`` gives for a value that cannot be used."""

_SHOWN_CHARS_MAX = 80
_INT_BITS_MAX = 64
# RFC 1123 §2.1 and RFC 1035 §2.3.4; underscores occur in names of containers.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+\Z")
_LABEL_LIKE = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Check:
    """One value: what is wanted, the reading of it, and whether it must never be shown."""

    wanted: str
    read: Callable[[object], object]
    is_secret: bool = False

    def apply(self, key: str, value: object, errors: list[ConfigError]) -> object:
        """The value to keep, or ``UNFIT`` with the reason added to ``errors``."""
        kept = self.read(value)
        if kept is UNFIT:
            found = "a value not shown here" if self.is_secret else show(value)
            errors.append(ConfigError(key, found, self.wanted))
        return kept


@dataclass(frozen=True, slots=True)
class Each:
    """A list, every item of which the same check reads; each wrong item is an error of its own.

    ``items_min`` and ``items_max`` bound its length. With ``may_be_alone`` a value outside
    a list counts as a list of one.
    """

    item: Check
    wanted: str
    items_min: int = 0
    items_max: int = 1000
    may_be_alone: bool = False

    def apply(self, key: str, value: object, errors: list[ConfigError]) -> object:
        """The items as a tuple, or ``UNFIT`` with every reason added to ``errors``."""
        if self.may_be_alone and isinstance(value, str):
            value = [value]
        items = value if isinstance(value, list | tuple) else None
        if items is None or not self.items_min <= len(items) <= self.items_max:
            errors.append(ConfigError(key, show(value), self.wanted))
            return UNFIT
        kept = tuple(self.item.apply(f"{key}[{n}]", item, errors) for n, item in enumerate(items))
        return UNFIT if UNFIT in kept else kept


def show(value: object) -> str:
    """``value`` as TOML would write it, cut short; only its kind for tables and nested lists."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return _show_list(value)
    text = _show_one(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


def _show_list(value: list[object] | tuple[object, ...]) -> str:
    is_plain = not any(isinstance(item, Mapping | list | tuple) for item in value)
    text = f"[{', '.join(_show_one(item) for item in value[:10])}]"
    fits = is_plain and len(value) <= 10 and len(text) <= _SHOWN_CHARS_MAX
    return text if fits else f"a list of {len(value)}"


def _show_one(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        start = value[: _SHOWN_CHARS_MAX + 1]
        return json.dumps(start, ensure_ascii=not start.isprintable())
    if isinstance(value, int) and value.bit_length() > _INT_BITS_MAX:
        return "a huge number"  # str() itself refuses more than 4300 digits
    if isinstance(value, int | float):
        return str(value)
    return f"a {type(value).__name__}"


def flag() -> Check:
    """True or false."""
    return Check("true or false", lambda value: value if isinstance(value, bool) else UNFIT)


def integer(low: int, high: int) -> Check:
    """A whole number in ``low..high``; true and 1.0 are none."""

    def read(value: object) -> object:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return value if fits else UNFIT

    return Check(f"a whole number from {low} to {high}", read)


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Check:
    """A number in ``low..high``; ``above`` and ``below`` leave the bound itself out."""

    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return UNFIT
        # Not a number is in no range: each comparison with it is false.
        fits = (low < value if above else low <= value) and (
            value < high if below else value <= high
        )
        return float(value) if fits else UNFIT

    start = f"above {low:.15g}" if above else f"from {low:.15g}"
    return Check(f"a number {start} {'and below' if below else 'to'} {high:.15g}", read)


def choice(*words: str) -> Check:
    """One of a few words."""
    quoted = [f'"{word}"' for word in words]
    wanted = f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    return Check(wanted, lambda value: value if value in words else UNFIT)


def line(wanted: str, chars_max: int = 1000) -> Check:
    """A text of one line, perhaps empty."""

    def read(value: object) -> object:
        fits = isinstance(value, str) and len(value) <= chars_max and not _CONTROL.search(value)
        return value if fits else UNFIT

    return Check(wanted, read)


def path(*, may_be_empty: bool = True) -> Check:
    """The path of a file."""

    def read(value: object) -> object:
        fits = isinstance(value, str) and (may_be_empty or value) and not _CONTROL.search(value)
        return value if fits else UNFIT

    return Check('the path of a file, or ""' if may_be_empty else "the path of a file", read)


def host_name(*, may_be_empty: bool = False) -> Check:
    """An IP address or a host name."""

    def read(value: object) -> object:
        fits = isinstance(value, str) and (is_host(value) or (may_be_empty and not value))
        return value if fits else UNFIT

    return Check(f"an IP address or a host name{', or nothing' if may_be_empty else ''}", read)


def is_host(text: str) -> bool:
    """Whether ``text`` is an address, or a name that cannot be taken for a broken address."""
    if address(text) is not None:
        return True
    return bool(_HOST_NAME.match(text)) and not text.rstrip(".").rpartition(".")[2].isdecimal()


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that ``text`` is, if it is one."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def network() -> Check:
    """An IP network, given back in its canonical form."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return UNFIT
        try:
            return str(ipaddress.ip_network(value))
        except ValueError:
            return UNFIT

    return Check('an IP network such as "10.1.2.0/24", no bits set right of its mask', read)


def domain() -> Check:
    """A mail domain, given back in lower case."""

    def read(value: object) -> object:
        return value.lower() if isinstance(value, str) and _DOMAIN.match(value) else UNFIT

    return Check('a domain such as "example.com" (in Punycode if it is not ASCII)', read)


def url() -> Check:
    """An http or https URL without user name and password, or nothing. Never shown."""

    def read(value: object) -> object:
        fits = isinstance(value, str) and (not value or _is_url(value))
        return value if fits else UNFIT

    wanted = 'a URL such as "https://example.com/path", without user name or password, or ""'
    return Check(wanted, read, is_secret=True)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or "@" in parts.netloc or port == 0:
        return False
    return host is not None and is_host(host) and not re.search(r"[\s\x00-\x1f\x7f]", text)


def is_label(text: str) -> bool:
    """Whether ``text`` can name an upstream or a lane: it becomes a label in logs and metrics."""
    return bool(_LABEL_LIKE.match(text))


LABEL_WANTED = "a name of 1 to 32 characters: a-z, 0-9, - and _, letters or digits at both ends"


def label() -> Check:
    """The name of an upstream."""
    return Check(LABEL_WANTED, lambda v: v if isinstance(v, str) and is_label(v) else UNFIT)
