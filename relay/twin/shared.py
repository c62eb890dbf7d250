"""What all sessions of a twin have in common: account, ledger, chance, and each other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    import ssl

    from relay.twin.account import Account
    from relay.twin.faults import Fault
    from relay.twin.ledger import Ledger
    from relay.twin.parameters import TwinConfig
    from relay.twin.session import Session


class Shared:
    """What all sessions of a twin have in common."""

    def __init__(
        self,
        config: TwinConfig,
        account: Account,
        ledger: Ledger,
        chance: random.Random,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.config, self.account, self.ledger = config, account, ledger
        self.chance, self.tls = chance, tls
        self.fault: Fault | None = None
        self.sessions: set[Session] = set()
        self.empty = asyncio.Event()
        """Set when the last session has gone; only ``stop`` waits for it."""
        self.handshakes: set[asyncio.Task[None]] = set()
