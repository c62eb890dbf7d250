"""AWS asked by boto3: of the twin, of moto, of servers that refuse, lie or say nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

from relay.aws import Account, Asker, Endpoint, Enforcement, Silence, asking
from relay.aws.vendor import account_at
from relay.twin import Policy
from tests.fakes.aws import (
    ACCOUNT_ID,
    V2_PATH,
    Said,
    error_v1,
    error_v2,
    fake_aws,
    only_ask,
)
from tests.fakes.rawsmtp import OPEN, PATIENCE_S, dialled, playing

if TYPE_CHECKING:
    from pathlib import Path

    from botocore.awsrequest import AWSPreparedRequest

HERE = Endpoint(region="eu-central-1")
WITH_API = replace(OPEN, api_port=0, rate_per_s=14, quota=50_000, quota_used=7)


# -- Answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Policy(), Account(sending_enabled=True, enforcement=Enforcement.HEALTHY)),
        (Policy(paused=True), Account(sending_enabled=False, enforcement=Enforcement.SHUTDOWN)),
        (
            Policy(enforcement="PROBATION"),
            Account(sending_enabled=True, enforcement=Enforcement.PROBATION),
        ),
        (
            Policy(sandbox=True),
            Account(sending_enabled=True, enforcement=Enforcement.HEALTHY, production_access=False),
        ),
    ],
    ids=["healthy", "paused", "probation", "sandbox"],
)
async def test_get_account_of_the_twin_is_read(
    policy: Policy, said: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits and standing as the double of SES tells them over the wire, counter included."""
    async with (
        playing(replace(WITH_API, policy=policy)) as twin,
        dialled(twin.port) as client,
    ):
        only_ask(f"http://127.0.0.1:{twin.api_port}", tmp_path, monkeypatch)
        sent = (await client.message()).startswith("250 ")

        account = await Asker(HERE).ask()

    assert account == replace(
        said,
        rate_max_per_s=14.0,
        max_24_h=50_000,
        sent_24_h=7 + sent,
        production_access=said.production_access is not False,
        id=ACCOUNT_ID,
    )


async def test_unlimited_account_has_no_daily_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 over the wire is no limit."""
    async with playing(replace(WITH_API, quota=0)) as twin:
        only_ask(f"http://127.0.0.1:{twin.api_port}", tmp_path, monkeypatch)

        account = await Asker(HERE).ask()

    assert isinstance(account, Account)
    assert account.max_24_h is None


def test_without_the_right_to_get_account_the_quota_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ses:GetSendQuota`` alone serves: moto's account, with one message sent, tells its three."""
    with fake_aws(v2=error_v2("AccessDeniedException")) as fake, mock_aws():
        only_ask("", tmp_path, monkeypatch)
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", fake.url)
        ses = boto3.client("ses", HERE.region)
        ses.verify_email_identity(EmailAddress="a@example.com")
        body = {"Subject": {"Data": "x"}, "Body": {"Text": {"Data": "x"}}}
        to = {"ToAddresses": ["b@example.org"]}
        ses.send_email(Source="a@example.com", Destination=to, Message=body)

        account = account_at(HERE)

    assert account == Account(rate_max_per_s=1.0, max_24_h=200, sent_24_h=1, id=ACCOUNT_ID)
    assert fake.asked == [V2_PATH]


def test_region_and_fips_choose_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question goes to the region of the SMTP host, whatever the environment's region is."""
    asked = []

    def send(_session: object, request: AWSPreparedRequest) -> None:
        asked.append(request.url)
        raise EndpointConnectionError(endpoint_url=request.url)

    only_ask("", tmp_path, monkeypatch)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "sa-east-1")
    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", send)

    for region, fips in (("eu-central-1", False), ("us-gov-west-1", True), ("cn-north-1", False)):
        assert account_at(Endpoint(region=region, fips=fips)) is Silence.UNREACHABLE

    assert asked == [
        f"https://email.eu-central-1.amazonaws.com{V2_PATH}",
        f"https://email-fips.us-gov-west-1.amazonaws.com{V2_PATH}",
        f"https://email.cn-north-1.amazonaws.com.cn{V2_PATH}",
    ]


# -- Silence -------------------------------------------------------------------------------

DENIED_V2 = error_v2("AccessDeniedException")
PORTAL = Said(200, "<html>please log in</html>")


@pytest.mark.parametrize(
    ("v2", "v1", "silence", "questions"),
    [
        (DENIED_V2, error_v1("AccessDenied"), Silence.DENIED, 2),
        (DENIED_V2, error_v1("Throttling"), Silence.REFUSED, 2),
        (DENIED_V2, PORTAL, Silence.REFUSED, 2),
        (error_v2("UnrecognizedClientException"), PORTAL, Silence.CREDENTIALS, 1),
        (error_v2("ExpiredTokenException"), PORTAL, Silence.CREDENTIALS, 1),
        (error_v2("InvalidSignatureException"), PORTAL, Silence.CREDENTIALS, 1),
        (error_v2("TooManyRequestsException"), PORTAL, Silence.REFUSED, 1),
        (Said(503, "busy"), PORTAL, Silence.REFUSED, 1),
        (PORTAL, PORTAL, Silence.REFUSED, 1),
    ],
    ids=lambda value: value.name if isinstance(value, Silence) else "",
)
def test_refusal_is_silence_and_asked_once(
    v2: Said,
    v1: Said,
    silence: Silence,
    questions: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each refusal has its word; nothing is tried twice, the next poll is the next attempt."""
    with fake_aws(v2=v2, v1=v1) as fake:
        only_ask(fake.url, tmp_path, monkeypatch)

        assert account_at(HERE) is silence
        assert len(fake.asked) == questions


def test_dead_network_is_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there."""
    with fake_aws() as fake:
        pass
    only_ask(fake.url, tmp_path, monkeypatch)

    assert account_at(HERE) is Silence.UNREACHABLE


def test_no_credentials_is_silence_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the environment, no files, no metadata service."""
    with fake_aws() as fake:
        only_ask(fake.url, tmp_path, monkeypatch, key_id=None)

        assert account_at(HERE) is Silence.CREDENTIALS
        assert fake.asked == []


def test_credential_process_that_fails_tells_no_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What such a program prints may be a secret: it comes to no log and no exception of ours."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho hunter2; echo hunter2 >&2; exit 1\n")
    program.chmod(0o700)
    (tmp_path / "aws-config").write_text(f"[default]\ncredential_process = {program}\n")
    with fake_aws() as fake:
        only_ask(fake.url, tmp_path, monkeypatch, key_id=None)

        answer = account_at(HERE)

    assert answer is Silence.CREDENTIALS
    assert "hunter2" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "content", ["[default\n", "[default]\naws_access_key_id = x\n", "\x00\xff"]
)
def test_damaged_credentials_file_is_silence(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip of the editor costs the answer, nothing else."""
    (tmp_path / "aws-credentials").write_bytes(content.encode("latin-1"))
    with fake_aws() as fake:
        only_ask(fake.url, tmp_path, monkeypatch, key_id=None)

        assert account_at(HERE) is Silence.CREDENTIALS


def test_mute_metadata_service_is_given_up_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off EC2 the look-up of a role goes into the void: it ends by itself, within seconds."""
    with fake_aws() as fake:
        fake.is_mute.set()
        only_ask(fake.url, tmp_path, monkeypatch, key_id=None)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", fake.url)
        began_at = time.monotonic()

        answer = account_at(HERE)
        took_s = time.monotonic() - began_at

    assert answer is Silence.CREDENTIALS
    assert fake.asked
    assert took_s < asking.ANSWER_MAX_S / 2


# -- Without the extra ---------------------------------------------------------------------


def _python(program: str) -> tuple[str, str, int]:
    """What a fresh interpreter says to ``program``, where none of our imports are."""
    told = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 4,
    )
    return told.stdout, told.stderr, told.returncode


_WITHOUT = """
import asyncio, sys
sys.modules.update(dict.fromkeys(["boto3", "botocore"], None))  # as if it were not installed
import relay.service.relay
from relay.aws import Asker, Endpoint
print((asyncio.run(Asker(Endpoint(region="eu-central-1")).ask())).name)
"""


def test_without_the_extra_the_relay_runs_and_is_silent() -> None:
    """A process in which boto3 cannot be imported imports the whole relay, and asks nobody."""
    assert _python(_WITHOUT) == ("EXTRA\n", "", 0)


def test_boto3_is_imported_by_the_first_question_only() -> None:
    """It costs 20 MB: a relay that asks nobody does not pay."""
    program = "import relay.service.relay, relay.aws, sys; print('boto3' in sys.modules)"

    assert _python(program) == ("False\n", "", 0)


# -- Bounds --------------------------------------------------------------------------------


async def test_late_answer_is_left_behind_and_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread at most hangs, as a daemon; when it is through, asking goes on."""
    monkeypatch.setattr(asking, "ANSWER_MAX_S", 0.2)
    with fake_aws(v2=DENIED_V2, v1=error_v1("AccessDenied")) as fake:
        fake.is_mute.set()
        only_ask(fake.url, tmp_path, monkeypatch)
        asker = Asker(HERE)

        late, again = await asker.ask(), await asker.ask()
        hanging = [one for one in threading.enumerate() if one.name == "relay-aws"]

        assert (late, again) == (Silence.LATE, Silence.LATE)
        assert [one.daemon for one in hanging] == [True]
        assert len(fake.asked) <= 1
        fake.ended.set()
        await asyncio.to_thread(hanging[0].join, PATIENCE_S)
        fake.is_mute.clear()
        monkeypatch.setattr(asking, "ANSWER_MAX_S", PATIENCE_S)
        assert await asker.ask() is Silence.DENIED


_HANGING = """
import asyncio, threading, time
from relay.aws import Asker, Endpoint
begun = threading.Event()
def hang(_):
    begun.set()
    time.sleep(3600)
async def main():
    asking = asyncio.create_task(Asker(Endpoint(region="eu-central-1"), hang).ask())
    await asyncio.to_thread(begun.wait)
    asking.cancel()
    await asyncio.wait([asking])
    print("cancelled", asking.cancelled())
asyncio.run(main())
"""


def test_hung_question_holds_up_no_end() -> None:
    """The process ends while a thread still waits for AWS; the event loop's pool would join it."""
    assert _python(_HANGING) == ("cancelled True\n", "", 0)


async def test_answer_after_the_end_of_the_loop_is_dropped() -> None:
    """Whoever asked is gone, loop and all: no traceback from the thread."""
    go_on = threading.Event()

    def slow(_: Endpoint) -> Silence:
        go_on.wait(PATIENCE_S)
        return Silence.DENIED

    def ask_and_leave() -> None:
        async def leave() -> None:
            asyncio.ensure_future(Asker(HERE, slow).ask())  # noqa: RUF006  # cancelled by run
            await asyncio.sleep(0)

        asyncio.run(leave())

    await asyncio.to_thread(ask_and_leave)
    [thread] = [one for one in threading.enumerate() if one.name == "relay-aws"]
    go_on.set()
    await asyncio.to_thread(thread.join, PATIENCE_S)

    assert not thread.is_alive()


async def test_surprise_in_the_thread_reaches_the_asker() -> None:
    """Our own bug is not mistaken for silence."""

    def broken(_: Endpoint) -> Silence:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Asker(HERE, broken).ask()
