"""The twin as a whole: an account, a ledger, and a listening socket."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

from relay.clock import SystemClock
from relay.twin.account import Account
from relay.twin.audit import Audit
from relay.twin.certificate import server_context
from relay.twin.ledger import Ledger
from relay.twin.parameters import TwinConfig
from relay.twin.session import Session
from relay.twin.shared import Shared

if TYPE_CHECKING:
    from relay.clock import Clock
    from relay.twin.api import Api
    from relay.twin.faults import Fault
    from relay.twin.parameters import Policy

BACKLOG = 1_024
"""Connects that wait in the kernel; SES's load balancer refuses none that we know of."""

ACCEPT_TURNS = 3
"""Loop turns after which a link that was accepted has reached its session (asyncio's own)."""

STOP_S = 5.0
"""How long ``stop`` waits for links that it has cut; they end in a loop turn or two."""


class Twin:
    """A double of the SES SMTP endpoint on loopback.

    ``clock`` rules the rate, the quota and the ids, so that tests can turn it; latency
    and the idle cut run on the event loop's own time, as real sockets do.
    """

    def __init__(
        self,
        config: TwinConfig | None = None,
        *,
        clock: Clock | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.config = config or TwinConfig()
        self.ledger = Ledger(self.config.ledger_max)
        self.port = self.config.port
        self.api_port = self.config.api_port
        """Where the account's API listens once the twin has started; None if it has none."""
        self._api: Api | None = None
        chance = random.Random(self.config.seed)  # noqa: S311  (ids and latencies, no secrets)
        self._clock = clock or SystemClock()
        account = Account(self.config, self.ledger, self._clock, chance)
        tls = None
        if self.config.tls != "none":
            tls = server_context(self.config.cert_file, self.config.key_file)
        self._shared = Shared(self.config, account, self.ledger, chance, tls)
        self._shared.fault = fault
        self._server: asyncio.Server | None = None

    @property
    def fault(self) -> Fault | None:
        """What is asked before each step; may be set at any moment."""
        return self._shared.fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._shared.fault = fault

    @property
    def rate_per_s(self) -> float:
        """The limit in force, recipients a second."""
        return self._shared.account.rate_per_s

    def set_rate(self, rate_per_s: float, burst: float | None = None) -> None:
        """Another limit from now on; ``burst`` as in ``TwinConfig``."""
        self._shared.account.change_rate(rate_per_s, burst)

    @property
    def policy(self) -> Policy:
        """What messages are refused for; may be set at any moment."""
        return self._shared.account.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._shared.account.policy = policy

    @property
    def credentials_valid(self) -> bool:
        """False: every login is refused; may be set at any moment."""
        return self._shared.account.credentials_valid

    @credentials_valid.setter
    def credentials_valid(self, credentials_valid: bool) -> None:
        self._shared.account.credentials_valid = credentials_valid

    def check_headers(self, *, once_only: bool) -> None:
        """From now on refuse messages with a header twice that may stand once, or take them."""
        self.policy = replace(self.policy, once_only_headers=once_only)

    def skip(self, seconds: float) -> None:
        """Put the quota's clock forward: what was sent is older by that, the rate knows nothing."""
        self._shared.account.skip(seconds)

    def audit(self) -> Audit:
        """What the ledger says of the run so far; a picture of this moment."""
        self._shared.account.catch_up()
        return Audit(self.ledger)

    async def start(self) -> int:
        """Listen; returns the port, which stays the same if the twin is stopped and started.

        Raises ``OSError`` if the address cannot be had.
        """
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Session(self._shared),
            self.config.host,
            self.port,
            backlog=BACKLOG,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        if self.api_port is not None:
            await self._start_api(self.api_port)
        return self.port

    async def stop(self) -> None:
        """Listen no more and cut every session; the ledger stays."""
        if self._server is None:
            return
        server, self._server = self._server, None
        if self._api is not None:
            api, self._api = self._api, None
            await api.stop()
        await _stop_accepting(server)
        server.close()
        for handshake in set(self._shared.handshakes):
            handshake.cancel()
        for session in set(self._shared.sessions):
            session.abort()
        async with asyncio.timeout(STOP_S):
            await asyncio.gather(*self._shared.handshakes, return_exceptions=True)
            await self._all_gone()
            await server.wait_closed()

    async def _start_api(self, port: int) -> None:
        # aiohttp takes longer to import than all the rest of the twin.
        from relay.twin.api import Api  # noqa: PLC0415

        api = Api(self._shared.account, self._clock, self.config.api_lag_s)
        try:
            self.api_port = await api.start(self.config.host, port)
        except OSError:
            await self.stop()
            raise
        self._api = api

    async def _all_gone(self) -> None:
        self._shared.empty.clear()
        if self._shared.sessions:
            await self._shared.empty.wait()


async def _stop_accepting(server: asyncio.Server) -> None:
    """Return once every link that was accepted has reached its session.

    Closing at once would leak a link that is between the two: asyncio's server then
    refuses to attach it and nobody closes its socket (*observed*, CPython 3.11).
    """
    loop = asyncio.get_running_loop()
    for listening in server.sockets:
        loop.remove_reader(listening)
    for _ in range(ACCEPT_TURNS):
        await asyncio.sleep(0)
