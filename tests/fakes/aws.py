"""Amazon's API as a script has it, and an environment in which nothing but it is asked."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

KEY_ID = "ASIAY34FZKBOKMUTVV7A"
ACCOUNT_ID = "609629065308"
"""The example and the account in it: A. Steele, "AWS Access Key ID formats" (2020)."""
OTHER_KEY_ID, OTHER_ACCOUNT_ID = "ASIAQNZGKIQY56JQ7WML", "029608264753"
"""T. Be'ery, "A short note on AWS KEY ID" (2023)."""
SECRET = "wJalrXUtnFEMIexampleKEY"
US_EAST = "email-smtp.us-east-1.amazonaws.com"

V2_PATH = "/v2/email/account"


@dataclass(frozen=True)
class Said:
    """One answer; ``code`` is v2's way to name an error."""

    status: int
    body: str
    code: str = ""


EMPTY = Said(200, "")


def error_v1(code: str) -> Said:
    return Said(
        403,
        f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>m</Message></Error>"
        "<RequestId>r</RequestId></ErrorResponse>",
    )


def error_v2(code: str) -> Said:
    return Said(403, '{"message": "m"}', code)


@dataclass
class FakeAws:
    """What it answers to either version of the API, and what it was asked."""

    v2: Said
    v1: Said
    asked: list[str] = field(default_factory=list)
    is_mute: threading.Event = field(default_factory=threading.Event)
    """Set: it reads the question and says nothing until its end."""
    heard: threading.Event = field(default_factory=threading.Event)
    """Set with the first question."""
    ended: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, path: str) -> Said | None:
        self.asked.append(path)
        self.heard.set()
        if self.is_mute.is_set():
            self.ended.wait()
            return None
        return self.v2 if path == V2_PATH else self.v1


@contextmanager
def fake_aws(v2: Said = EMPTY, v1: Said = EMPTY) -> Iterator[FakeAws]:
    """It listens inside the block."""
    fake = FakeAws(v2, v1)

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = fake.answer(self.path)
            if said is None:
                self.close_connection = True
                return
            body = said.body.encode()
            self.send_response(said.status)
            self.send_header("Content-Length", str(len(body)))
            if said.code:
                self.send_header("x-amzn-ErrorType", said.code)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = _respond  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def only_ask(
    url: str, folder: Path, patch: pytest.MonkeyPatch, key_id: str | None = KEY_ID
) -> None:
    """Send every question to ``url``, with no credentials but ``key_id`` (None: none at all)."""
    for name in (
        *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"),
        *("AWS_ENDPOINT_URL_SES", "AWS_ENDPOINT_URL_SESV2", "AWS_ROLE_ARN"),
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"),
    ):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_CONFIG_FILE", str(folder / "aws-config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "aws-credentials"))
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if key_id is not None:
        patch.setenv("AWS_ACCESS_KEY_ID", key_id)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
