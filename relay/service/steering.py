"""What people may ask of a running relay: the commands behind the control socket.

Each hold has a source, and each source lifts only its own. A person who says *release* has
looked at the matter, so that this lifts the operator's hold and the breaker's; Listmonk's
stays unless it is named, since it would be back at the next poll.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from relay.breaker import (
    Hold,
    Source,
    account_key,
    campaign_key,
    configuration_set_key,
    in_doubt_key,
    sandbox_key,
    sender_key,
)
from relay.control import Commands
from relay.dispatcher import parks
from relay.envelope import redact_all
from relay.service.figures import found_as_json
from relay.service.rates import chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from relay.figures import Figures
    from relay.service.branch import Shared
    from relay.service.rates import Rates

_log = logging.getLogger(__name__)

REASON_MAX = 200
"""Characters of an operator's reason."""
PAUSED = "paused by an operator: relay resume goes on"
_WHOLE = (account_key, sandbox_key, in_doubt_key)
_BEGUN = (sender_key, configuration_set_key)
_RELEASED = (Source.OPERATOR, Source.BREAKER)


class Steering:
    """Carries commands out on the shared rooms."""

    def __init__(
        self,
        shared: Shared,
        upstreams: Iterable[str],
        rates: Rates,
        *,
        figures: Callable[[], Figures],
        on_change: Callable[[], None],
    ) -> None:
        """``on_change`` is called when mail may go, or may go no longer."""
        self._shared, self._upstreams, self._rates = shared, tuple(upstreams), rates
        self._figures, self._on_change = figures, on_change

    @property
    def commands(self) -> Commands:
        """For the control socket."""
        return Commands(
            status=self._status,
            find=self._find,
            hold=self._hold,
            release=self._release,
            pause=self.pause,
            resume=self._resume,
            rate=self._rates.show,
            set_rate=self._rates.told,
        )

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return self._figures().as_json()

    async def _find(self, request: dict[str, Any]) -> dict[str, Any]:
        found = await self._shared.spool.find(_text(request, "query"))
        return {"found": found_as_json(found, self._shared.holds)}

    async def _hold(self, request: dict[str, Any]) -> dict[str, Any]:
        key = await self._key(request)
        reason = str(request.get("reason") or "by an operator")[:REASON_MAX]
        hold = Hold(key, Source.OPERATOR, reason, since_at=self._shared.clock.wall_ms())
        await self._shared.spool.put_hold(hold)
        self._shared.holds.add(hold)
        self._shared.ageing.stop(key, hold.since_at)
        facts = {"key": redact_all(key), "source": "operator", "reason": redact_all(reason)}
        _log.warning("mail held", extra=facts)
        self._on_change()
        return {"held": key, "waiting": self._waiting_under(key)}

    async def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        key = await self._key(request)
        sources = [Source(request["source"])] if "source" in request else _RELEASED
        lifted = [source.value for source in sources if self._shared.holds.lift(key, source)]
        for source in sources:
            await self._shared.spool.drop_hold(key, source)
        left = sorted(source.value for source in self._shared.holds.sources(key))
        returned = 0
        if not left:
            self._shared.ageing.go(key, self._shared.clock.wall_ms())
            if parks(key):
                returned = await self._shared.spool.release(key)
        if lifted:
            _log.warning("hold lifted", extra={"key": redact_all(key), "source": ",".join(lifted)})
        self._on_change()
        return {"key": key, "lifted": lifted, "left": left, "returned": returned}

    async def pause(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send nothing more until resumed: an operator's hold on the account of each upstream.

        What is under way is finished, and mail is still taken. Kept over a restart.
        """
        names = chosen(request, self._upstreams)
        already = [name for name in names if self._is_paused(name)]
        reason = str(request.get("reason") or PAUSED)
        for name in names:
            if name not in already:
                await self._hold({"key": account_key(name), "reason": reason})
        return {"paused": names, "already": already}

    async def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lift what ``pause`` has done; a breaker's hold on an account stays, and is named."""
        names = chosen(request, self._upstreams)
        resumed = [name for name in names if self._is_paused(name)]
        for name in resumed:
            await self._release({"key": account_key(name), "source": Source.OPERATOR.value})
        keys = {account_key(name) for name in names}
        left = [hold for hold in self._shared.holds.all() if hold.key in keys]
        return {
            "resumed": resumed,
            "still_held": [{"key": hold.key, "reason": hold.reason} for hold in left],
        }

    def _is_paused(self, upstream: str) -> bool:
        return Source.OPERATOR in self._shared.holds.sources(account_key(upstream))

    def _waiting_under(self, key: str) -> int | None:
        """Recipients that wait in a campaign; None for other keys."""
        kind, _, campaign = key.partition(":")
        if kind != "campaign":
            return None
        depth = self._shared.spool.depth()
        return sum(count for stream, count in depth.items() if stream.campaign == campaign)

    async def _key(self, request: dict[str, Any]) -> str:
        """The hold's key in a request. Raises: ValueError: there can be no such key."""
        key = _text(request, "key")
        if self._makes_sense(key) or self._shared.holds.held(key):
            return key
        # Left over from an upstream that is no longer configured.
        if key in await self._shared.spool.parked_keys():
            return key
        accounts = sorted(map(account_key, self._upstreams))
        wanted = ", ".join((*accounts, "campaign:UUID", "or one from relay status"))
        raise ValueError(f"{key!r} is no key of a hold: wanted {wanted}")

    def _makes_sense(self, key: str) -> bool:
        """Whether something could be held by ``key``."""
        whole = {make(name) for name in self._upstreams for make in _WHOLE}
        begun = tuple(make(name, "") for name in self._upstreams for make in _BEGUN)
        return key in whole or any(
            key.startswith(one) and key != one for one in (*begun, campaign_key(""))
        )


def _text(request: dict[str, Any], field: str) -> str:
    """A field that must be there. Raises: ValueError."""
    value = request.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field!r} is missing")
    return value.strip()
