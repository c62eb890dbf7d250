"""The twin's side API, asked as boto asks: forms and query strings, XML and JSON back."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from relay.twin import Policy, Twin
from tests.fakes.clock import ManualClock
from tests.fakes.rawsmtp import OPEN, PATIENCE_S, dialled, playing

if TYPE_CHECKING:
    from email.message import Message

SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=y"}
FORM = {"Action": "GetSendQuota", "Version": "2010-12-01"}
NAMESPACE = "{http://ses.amazonaws.com/doc/2010-12-01/}"
WITH_API = replace(OPEN, api_port=0, rate_per_s=14, quota=50_000, quota_used=7)


async def _ask(
    twin: Twin, path: str = "/", form: dict[str, str] | None = None, *, signed: bool = True
) -> tuple[int, str, Message]:
    """Status, body and headers; by POST if there is a form."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{twin.api_port}{path}",
        data=None if form is None else urllib.parse.urlencode(form).encode(),
        headers=SIGNED if signed else {},
    )

    def ask() -> tuple[int, str, Message]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return response.status, response.read().decode(), response.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), error.headers

    return await asyncio.to_thread(ask)


def _figures(xml: str) -> dict[str, float]:
    root = ET.fromstring(xml)
    assert root.tag == f"{NAMESPACE}GetSendQuotaResponse"
    result = root.find(f"{NAMESPACE}GetSendQuotaResult")
    assert result is not None
    return {one.tag.removeprefix(NAMESPACE): float(one.text or "") for one in result}


def _code(xml: str) -> str:
    return ET.fromstring(xml).findtext(f"{NAMESPACE}Error/{NAMESPACE}Code") or ""


@pytest.mark.parametrize("by", ["form", "query"])
async def test_send_quota_tells_limits_and_what_was_sent(by: str) -> None:
    """The three doubles of the v1 answer, whichever way the call comes."""
    async with playing(WITH_API) as twin, dialled(twin.port) as client:
        await client.message("b@x.org", "c@x.org")
        if by == "form":
            status, xml, headers = await _ask(twin, form=FORM)
        else:
            status, xml, headers = await _ask(twin, "/?" + urllib.parse.urlencode(FORM))

    assert status == 200
    assert headers.get_content_type() == "text/xml"
    assert _figures(xml) == {"Max24HourSend": 50_000, "MaxSendRate": 14, "SentLast24Hours": 9}


async def test_account_tells_the_same_and_its_state() -> None:
    """The v2 answer follows the policy and the limit of the moment."""
    clock = ManualClock()

    async with playing(replace(WITH_API, effective=0.5), clock=clock) as twin:
        status, text, _ = await _ask(twin, "/v2/email/account")
        healthy: dict[str, Any] = json.loads(text)
        twin.policy = Policy(paused=True, sandbox=True)
        twin.set_rate(20)
        await clock.advance(1)
        paused: dict[str, Any] = json.loads((await _ask(twin, "/v2/email/account"))[1])
        twin.policy = Policy(enforcement="PROBATION")
        await clock.advance(1)
        watched: dict[str, Any] = json.loads((await _ask(twin, "/v2/email/account"))[1])

    keys = ("SendingEnabled", "ProductionAccessEnabled", "EnforcementStatus")
    assert status == 200
    assert [healthy[key] for key in keys] == [True, True, "HEALTHY"]
    assert healthy["SendQuota"] == {
        "Max24HourSend": 50_000.0,
        "MaxSendRate": 14.0,
        "SentLast24Hours": 7.0,
    }
    assert [paused[key] for key in keys] == [False, False, "SHUTDOWN"]
    assert paused["SendQuota"]["MaxSendRate"] == 20
    assert watched["EnforcementStatus"] == "PROBATION"


async def test_no_quota_is_told_as_minus_one() -> None:
    """As AWS tells it of unlimited accounts."""
    async with playing(replace(WITH_API, quota=0)) as twin:
        xml = (await _ask(twin, form=FORM))[1]

    assert _figures(xml)["Max24HourSend"] == -1


async def test_second_call_within_a_second_is_throttled() -> None:
    """400 in v1, 429 in v2, each for itself; a second later both answer again."""
    clock = ManualClock()

    async with playing(WITH_API, clock=clock) as twin:
        first = [await _ask(twin, form=FORM), await _ask(twin, "/v2/email/account")]
        again = [await _ask(twin, form=FORM), await _ask(twin, "/v2/email/account")]
        await clock.advance(1)
        later = [await _ask(twin, form=FORM), await _ask(twin, "/v2/email/account")]

    assert [one[0] for one in first] == [200, 200]
    assert [one[0] for one in again] == [400, 429]
    assert _code(again[0][1]) == "Throttling"
    assert again[1][2]["x-amzn-ErrorType"] == "TooManyRequestsException"
    assert [one[0] for one in later] == [200, 200]


async def test_call_without_signature_is_refused() -> None:
    """403, and it does not use up the second."""
    async with playing(WITH_API, clock=ManualClock()) as twin:
        refused = [
            await _ask(twin, form=FORM, signed=False),
            await _ask(twin, "/v2/email/account", signed=False),
        ]
        signed = await _ask(twin, form=FORM)

    assert [one[0] for one in refused] == [403, 403]
    assert _code(refused[0][1]) == "MissingAuthenticationToken"
    assert signed[0] == 200


async def test_unknown_action_is_named() -> None:
    """Other calls of the API are not there."""
    async with playing(WITH_API) as twin:
        status, xml, _ = await _ask(twin, form={"Action": "Send<Email>"})

    assert (status, _code(xml)) == (400, "InvalidAction")


async def test_counter_lags_as_far_as_is_set() -> None:
    """What was sent in the last minute is not told yet."""
    clock = ManualClock()

    async with (
        playing(replace(WITH_API, api_lag_s=60), clock=clock) as twin,
        dialled(twin.port) as client,
    ):
        await client.message()
        await clock.advance(30)
        early = _figures((await _ask(twin, form=FORM))[1])
        await clock.advance(30)
        late = _figures((await _ask(twin, form=FORM))[1])

    assert (early["SentLast24Hours"], late["SentLast24Hours"]) == (7, 8)


async def test_api_keeps_its_port_and_goes_with_the_twin() -> None:
    """Stopped, nobody listens; started again, it is where it was."""
    async with playing(WITH_API) as twin:
        port = twin.api_port
        await twin.stop()
        with pytest.raises(urllib.error.URLError):
            await _ask(twin, form=FORM)
        await twin.start()

        assert (await _ask(twin, form=FORM))[0] == 200
        assert twin.api_port == port


async def test_twin_without_its_api_does_not_start() -> None:
    """The port is taken: the error is told and no listener is left behind."""
    async with playing(WITH_API) as other:
        twin = Twin(replace(WITH_API, api_port=other.api_port))
        with pytest.raises(OSError, match="address already in use"):
            await twin.start()

        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", twin.port)


async def test_there_is_no_api_unless_asked_for() -> None:
    """Off is the default."""
    async with playing() as twin:
        assert twin.api_port is None
