"""The two calls by which an account's owner may learn its limits, over HTTP on loopback.

``GetSendQuota`` of the v1 Query API (form or query string in, XML out) and ``GetAccount``
of v2 (JSON). Both need an Authorization header, whatever stands in it, and both take one
call a second (*documented* for ``GetSendQuota``, *assumed* for the other). The counter
may lag.

aiohttp, as elsewhere: nothing here is under test itself, and a well-kept library beats
an HTTP server of our own. The twin imports this module only if it is asked for.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from aiohttp import web

if TYPE_CHECKING:
    from relay.clock import Clock
    from relay.twin.account import Account

NAMESPACE = "http://ses.amazonaws.com/doc/2010-12-01/"

CALL_GAP_S = 1.0
"""*documented* ("GetSendQuota"): at most once a second."""

REQUEST_MAX = 64 * 1024
"""Bytes of a request; a signed call has some hundred."""

STOP_S = 1.0
"""How long ``stop`` waits for calls under way."""

UNLIMITED = -1.0


class Api:
    """The account's side API; each call is answered from the account as it is then."""

    def __init__(self, account: Account, clock: Clock, lag_s: float) -> None:
        self._account, self._clock, self._lag_s = account, clock, lag_s
        self._answered_at: dict[str, float] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises ``OSError`` if the address cannot be had."""
        app = web.Application(client_max_size=REQUEST_MAX)
        app.router.add_route("GET", "/", self._query)
        app.router.add_route("POST", "/", self._query)
        app.router.add_get("/v2/email/account", self._account_v2)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        found: int = runner.addresses[0][1]
        return found

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _query(self, request: web.Request) -> web.Response:
        """The v1 Query API."""
        if "Authorization" not in request.headers:
            return _error_v1(
                403, "MissingAuthenticationToken", "Request is missing Authentication Token"
            )
        form = await request.post() if request.method == "POST" else {}
        action = str(form.get("Action") or request.query.get("Action", ""))
        if action != "GetSendQuota":
            text = f"Could not find operation {action} for version 2010-12-01"
            return _error_v1(400, "InvalidAction", text)
        if not self._may_call(action):
            return _error_v1(400, "Throttling", "Rate exceeded")
        fields = "".join(
            f"<{name}>{value!r}</{name}>" for name, value in self._send_quota().items()
        )
        return _xml(
            200,
            f'<GetSendQuotaResponse xmlns="{NAMESPACE}"><GetSendQuotaResult>{fields}'
            f"</GetSendQuotaResult><ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId>"
            "</ResponseMetadata></GetSendQuotaResponse>",
        )

    async def _account_v2(self, request: web.Request) -> web.Response:
        """``GetAccount`` of v2."""
        if "Authorization" not in request.headers:
            return _error_v2(
                403, "MissingAuthenticationTokenException", "Missing Authentication Token"
            )
        if not self._may_call("GetAccount"):
            return _error_v2(429, "TooManyRequestsException", "Rate exceeded")
        policy = self._account.policy
        return web.json_response(
            {
                "DedicatedIpAutoWarmupEnabled": False,
                "EnforcementStatus": "SHUTDOWN" if policy.paused else policy.enforcement,
                "ProductionAccessEnabled": not policy.sandbox,
                "SendQuota": self._send_quota(),
                "SendingEnabled": not policy.paused,
                "SuppressionAttributes": {"SuppressedReasons": []},
            }
        )

    def _send_quota(self) -> dict[str, float]:
        limit = self._account.quota_limit
        return {
            "Max24HourSend": float(limit) if limit else UNLIMITED,
            "MaxSendRate": float(self._account.rate_per_s),
            "SentLast24Hours": float(self._account.sent_until(self._lag_s)),
        }

    def _may_call(self, operation: str) -> bool:
        """True once a second for each operation; refused calls do not count."""
        now = self._clock.monotonic()
        answered_at = self._answered_at.get(operation)
        if answered_at is not None and now - answered_at < CALL_GAP_S:
            return False
        self._answered_at[operation] = now
        return True


def _xml(status: int, body: str) -> web.Response:
    return web.Response(status=status, text=body, content_type="text/xml")


def _error_v1(status: int, code: str, text: str) -> web.Response:
    return _xml(
        status,
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type><Code>{code}</Code>'
        f"<Message>{escape(text)}</Message></Error><RequestId>{uuid.uuid4()}</RequestId>"
        "</ErrorResponse>",
    )


def _error_v2(status: int, code: str, text: str) -> web.Response:
    return web.json_response({"message": text}, status=status, headers={"x-amzn-ErrorType": code})
