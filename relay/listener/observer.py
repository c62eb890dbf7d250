"""Who is told what the listener does: the metrics, or nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from relay.envelope import Envelope


class Observer(Protocol):
    """Counts what happens; its methods return at once and never fail."""

    def received(self, envelope: Envelope) -> None:
        """An envelope is on disk."""

    def refused(self, code: int) -> None:
        """A client was told 4xx or 5xx."""

    def stalled(self, begins: bool, /) -> None:  # noqa: FBT001  # begins, or ends
        """A client begins, or ends, to wait for room."""

    def connection(self, change: int) -> None:
        """A client connected (+1) or left (-1)."""

    def accept_seconds(self, seconds: float) -> None:
        """From the end of a message to the answer to it."""

    def failed(self, room: str) -> None:
        """A surprise was caught in a loop of ``room``, logged, and survived."""


class NoObserver:
    """Nobody: for a listener without a service around it, as the tests of this room run it."""

    def received(self, envelope: Envelope) -> None:
        """As ``Observer.received``."""

    def refused(self, code: int) -> None:
        """As ``Observer.refused``."""

    def stalled(self, begins: bool, /) -> None:  # noqa: FBT001
        """As ``Observer.stalled``."""

    def connection(self, change: int) -> None:
        """As ``Observer.connection``."""

    def accept_seconds(self, seconds: float) -> None:
        """As ``Observer.accept_seconds``."""

    def failed(self, room: str) -> None:
        """As ``Observer.failed``."""
