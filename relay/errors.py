"""Every failure the relay can raise, by whose limit was hit.

An outcome is a value (``verdict``), a failure is an exception; this module holds the
failures and nothing else (all but ``upstream.Refused``, which carries a reply). Two tables
turn them into answers: ``listener`` has the SMTP reply for each, ``cli`` the exit code for
each. Tests walk all subclasses, so a new one without an answer does not land.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class RelayError(Exception):
    """Something the relay could not do; the text says what to do about it."""


class ConfigError(RelayError):
    """One key of the configuration that cannot be used.

    ``found`` is what stands there, already made safe to print (never a secret);
    ``wanted`` says what would be accepted; ``nearest`` is the known key that an
    unknown one was probably meant to be.
    """

    def __init__(self, key: str, found: str, wanted: str, nearest: str | None = None) -> None:
        hint = f" (did you mean {nearest!r}?)" if nearest else ""
        super().__init__(f"{key}: found {found}, wanted {wanted}{hint}")
        self.key, self.found, self.wanted, self.nearest = key, found, wanted, nearest


class ConfigErrors(RelayError):
    """All that is wrong with a configuration, at once, so that one run is enough to mend it."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


class AddressBusy(RelayError):
    """Another program listens where the relay should; starting again later may help."""


class SpoolError(RelayError):
    """The spool cannot do what was asked."""


class SpoolFull(SpoolError):
    """No room: the disk, ``spool.free_min_bytes`` or ``spool.size_max_bytes`` is reached."""


class SpoolBusy(SpoolError):
    """Another process owns the spool."""


class SpoolBroken(SpoolError):
    """The spool's file is missing, damaged, too new, or on a file system that cannot keep it."""


class SpoolDamaged(SpoolBroken):
    """A page of the spool's file makes no sense; what does not stand on it can still be read."""


class ContentDamaged(SpoolBroken):
    """One message's stored bytes do not match their hash; the rest of the spool is sound."""


class UpstreamError(RelayError):
    """The upstream gave no reply that could be judged."""


class Unreachable(UpstreamError):
    """No usable session could be opened.

    ``trusted`` is False when the peer was reached but could not prove who it is or
    offered no encryption (TLS failure, wrong certificate, STARTTLS missing): then mail
    is held and nothing goes out in plain text.
    """

    def __init__(self, text: str, *, trusted: bool = True) -> None:
        super().__init__(text)
        self.trusted = trusted


class SessionLost(UpstreamError):
    """The link died, or a reply did not come in time, at ``stage`` (a ``reply.Stage`` value)."""

    def __init__(self, stage: str, text: str) -> None:
        super().__init__(f"at {stage}: {text}")
        self.stage, self.text = stage, text
