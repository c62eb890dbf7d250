"""Secrets stay where they are: a relay with a canary in each place for one, in all its troubles.

Whatever the relay says to anybody (log, dashboard, metrics, commands, process list, ``repr``) is
searched for them, in the clear and in each coding they travel in.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import stat
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import trustme

from relay import config
from relay.listener import users
from relay.service.relay import Relay
from relay.twin import NO_LATENCY, Twin, TwinConfig, certificate_files
from tests.fakes.clock import ManualClock
from tests.fakes.dialogue import Talk
from tests.fakes.running import PATIENCE_S, free_ports
from tests.fakes.spool_file import ROOMY, open_spool

if TYPE_CHECKING:
    from collections.abc import Iterator

SES = "canary-ses-Zt1+/="
SES_WRONG = "canary-ses-wrong-Yq2"
CRAM = "canary-cram-secret-Xp3"
HASHED = "canary-hashed-password-Wo4"
GUESS = "canary-guess-Vn5"
TOKEN = "canary-dashboard-token-Um6"
TOKEN_GUESS = "canary-token-guess-Tl7"
HOOK = "canary-hook-Sk8"
API = "canary-api-token-Rj9"
CANARIES = (SES, SES_WRONG, CRAM, HASHED, GUESS, TOKEN, TOKEN_GUESS, HOOK, API)

EXIT_CONFIG = 78

PROGRAM = """
import sys
from relay.cli import main
from relay.guesses import Patience
from relay.listener import auth

look = auth.Passwords.is_right

async def is_right(self, name, password):
    if name == "boom":
        raise RuntimeError("a surprise")
    return await look(self, name, password)

auth.Passwords.is_right = is_right
auth.FRIENDS = Patience(first_s=0, longest_s=0)
sys.argv[0] = "relay"
main()
"""
"""A relay with a bug in checking passwords, and patience with our guesses."""

TOML = """
[listen]
port = {smtp}
auth = "required"
users_file = "users"
tls_cert_file = "cert.pem"
tls_key_file = "key.pem"
[spool]
free_min_bytes = 1
[dashboard]
port = {http}
token_file = "token"
[[upstream]]
host = "127.0.0.1"
port = {twin}
ca_file = "{ca}"
username = "sandbox"
[[upstream]]
name = "wrong"
host = "127.0.0.1"
port = {twin}
ca_file = "{ca}"
username = "sandbox"
password_file = "wrong-password"
from_domains = ["wrong.example"]
[[upstream]]
name = "tls"
host = "127.0.0.1"
port = {twin}
ca_file = "cert.pem"
username = "sandbox"
from_domains = ["tls.example"]
[listmonk]
url = "https://listmonk.example.com/{hook}"
api_user = "relay"
token_file = "api-token"
[alert]
url = "https://hooks.example.com/{hook}"
command = ["curl", "-H", "Authorization: {hook}"]
[log]
level = "debug"
format = "{form}"
"""


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def shapes(secret: str) -> set[str]:
    """How a secret may look on its way: as it is, in JSON, in a URL, in hex, and in Base64."""
    plain = b64(f"\0listmonk\0{secret}")
    cored = {b64(" " * n + secret)[(4 if n else 0) : -4] for n in range(3)}
    return {secret, json.dumps(secret)[1:-1], quote(secret), secret.encode().hex(), plain, *cored}


def found_in(said: dict[str, str]) -> dict[str, list[str]]:
    """Which secrets are in what was said, by the place."""
    return {
        place: hits
        for place, text in said.items()
        if (hits := [one for one in CANARIES if any(shape in text for shape in shapes(one))])
    }


@dataclass
class Canaries:
    """A relay whose every secret is a canary; ``credential`` and ``form`` are varied."""

    folder: Path
    form: str
    by_credential: bool
    twin_port: int
    smtp: int = 0
    http: int = 0
    said: dict[str, str] = field(default_factory=dict)
    _running: asyncio.subprocess.Process | None = None

    def private(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)

    def write(self) -> None:
        self.smtp, self.http = free_ports(2)
        users.put(self.folder / "users", "cram", users.Plain(CRAM))
        users.put(self.folder / "users", "listmonk", users.scrypt(HASHED))
        self.private("token", f"{TOKEN}\n")
        self.private("wrong-password", SES_WRONG)
        self.private("ses-password", SES)
        self.private("api-token", API)
        issued = trustme.CA().issue_cert("relay.test")
        issued.cert_chain_pems[0].write_to_path(str(self.folder / "cert.pem"))
        self.private("key.pem", issued.private_key_pem.bytes().decode())
        ca, _ = certificate_files()
        toml = TOML.format(
            smtp=self.smtp, http=self.http, twin=self.twin_port, ca=ca, hook=HOOK, form=self.form
        )
        (self.folder / "relay.toml").write_text(toml)

    @property
    def environment(self) -> dict[str, str]:
        if self.by_credential:
            return {**os.environ, "CREDENTIALS_DIRECTORY": str(self.folder)}
        return {**os.environ, "RELAY_SES_PASSWORD": SES}

    async def start(self) -> None:
        with (self.folder / "log").open("wb") as log:
            self._running = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROGRAM, "serve", "-c", str(self.folder / "relay.toml")),
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        async with asyncio.timeout(PATIENCE_S):
            while "200" not in await self.get("/readyz"):
                assert self._running.returncode is None, self.log
                await asyncio.sleep(0.02)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    async def stop(self) -> None:
        if self._running is not None and self._running.returncode is None:
            self._running.terminate()
            async with asyncio.timeout(PATIENCE_S):
                await self._running.wait()

    async def get(self, path: str, *fields: str, host: str = "localhost") -> str:
        """The whole answer to a GET, or "" if nobody listens."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.http)
        except OSError:
            return ""
        lines = [f"GET {path} HTTP/1.0", f"Host: {host}", *fields, "", ""]
        writer.write("\r\n".join(lines).encode())
        answer = await reader.read(200_000 if "events" not in path else 2_000)
        writer.close()
        return answer.decode("latin-1")

    async def talk(self, script: str) -> str:
        """The relay's half of an SMTP dialogue."""
        talk = await Talk.to(self.smtp)
        try:
            return "\n".join(await talk.say(f"S: 220 *\n{script}"))
        finally:
            await talk.close()

    async def command(self, *words: str) -> str:
        """All that a command prints."""
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", *words, "-c", str(self.folder / "relay.toml")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await running.communicate()
        return out.decode()


def message(sender: str) -> str:
    return (
        f"C: MAIL FROM:<{sender}>\nS: 250 *\nC: RCPT TO:<reader@example.org>\nS: 250 *\n"
        f"C: DATA\nS: 354 *\nC~ From: {sender}\\r\\n\\r\\nx\\r\\n.\\r\\n\nS: 250 *\n"
    )


async def trouble_at_the_door(relay: Canaries) -> None:
    """Wrong logins of each kind, broken ones, a surprise, and a handshake that fails."""
    wrong = b64(f"\0listmonk\0{GUESS}")
    scripts = [
        f"C: AUTH PLAIN {wrong}\nS: 535 *",
        f"C: AUTH LOGIN\nS: 334 *\nC: {b64(GUESS)}\nS: 334 *\nC: {b64(GUESS)}\nS: 535 *",
        f"C: AUTH CRAM-MD5\nS: 334 *\nC: {b64(f'cram {GUESS}')}\nS: 535 *",
        f"C: AUTH PLAIN {b64(GUESS)}\nS: 501 *",
        f"C: AUTH PLAIN {wrong}!\nS: 501 *",
        f"C: AUTH {GUESS}\nS: 504 *",
        f"C: {wrong}\nS: 500 *",
        f"C: MAIL FROM:<{GUESS}>\nS: 530 *",
        f"C: AUTH PLAIN {b64(f'{chr(0)}boom{chr(0)}{HASHED}')}\nS: 451 *",
        rf"C: STARTTLS{chr(10)}S: 220 *{chr(10)}C~ {GUESS}\r\n\r\n{chr(10)}S: <closed>",
        f"C: AUTH PLAIN {b64(f'{chr(0)}cram{chr(0)}{CRAM}')}\nS: 235 *",
    ]
    for number, script in enumerate(scripts):
        relay.said[f"SMTP dialogue {number}"] = await relay.talk(script)


async def trouble_upstream(relay: Canaries, twin: Twin) -> None:
    """A message that goes out, one into a wrong password (535), one into a wrong certificate."""
    login = f"C: AUTH PLAIN {b64(f'{chr(0)}listmonk{chr(0)}{HASHED}')}\nS: 235 *\n"
    senders = ("news@lists.example.com", "news@wrong.example", "news@tls.example")
    relay.said["SMTP dialogue with mail"] = await relay.talk(login + "".join(map(message, senders)))
    async with asyncio.timeout(PATIENCE_S):
        while twin.ledger.total.accepted < 1:  # noqa: ASYNC110  # two processes
            await asyncio.sleep(0.02)
        while True:
            status = await relay.get("/api/v1/status")
            if "account:wrong" in status and "account:tls" in status:
                return
            await asyncio.sleep(0.02)


async def trouble_at_the_dashboard(relay: Canaries) -> None:
    """Tokens right and wrong, in the right place and in wrong ones."""
    wrong, right = f"Authorization: Bearer {TOKEN_GUESS}", f"Authorization: Bearer {TOKEN}"
    asked = [
        ("/", wrong, "evil.example"),
        ("/", f"Authorization: Basic {b64(f'me:{TOKEN_GUESS}')}", "evil.example"),
        (f"/?token={TOKEN_GUESS}", "", "localhost"),
        (f"/{TOKEN_GUESS}", "", "localhost"),
        ("/", f"{TOKEN_GUESS}", "localhost"),
        ("/", f"Authorization: {TOKEN_GUESS}\0", "localhost"),
        ("/metrics", right, "evil.example"),
        ("/api/v1/status", right, "evil.example"),
        ("/api/v1/events", right, "evil.example"),
        ("/", right, "evil.example"),
    ]
    for path, given, host in asked:
        relay.said[f"GET {path} {given[:15]}"] = await relay.get(path, given or "X: y", host=host)


async def gather(relay: Canaries) -> None:
    relay.said["process list"] = Path(f"/proc/{relay.pid}/cmdline").read_text()  # noqa: ASYNC240
    for words in (["status", "--json"], ["status"], ["check"], ["find", "reader@example.org"]):
        relay.said[f"relay {' '.join(words)}"] = await relay.command(*words)


@pytest.mark.parametrize(("form", "by_credential"), [("logfmt", False), ("json", True)])
async def test_no_secret_is_ever_told(tmp_path: Path, form: str, by_credential: bool) -> None:
    """At log level debug, in both formats, through wrong passwords, failed TLS and a surprise."""
    twin = Twin(TwinConfig(password=SES, latency=NO_LATENCY))
    relay = Canaries(tmp_path, form, by_credential, await twin.start())
    await asyncio.to_thread(relay.write)
    try:
        await relay.start()
        await trouble_at_the_door(relay)
        await trouble_upstream(relay, twin)
        await trouble_at_the_dashboard(relay)
        await gather(relay)
        environment = Path(f"/proc/{relay.pid}/environ")
        only_ours = stat.S_IMODE(environment.stat().st_mode)  # noqa: ASYNC240
    finally:
        await relay.stop()
        await twin.stop()
    relay.said["log"] = relay.log

    assert found_in(relay.said) == {}
    # The troubles did take place, and where a secret must be in memory, only we can look.
    for told in ("wrong login", "a surprise", "TLS handshake failed", "wrong dashboard token"):
        assert told in relay.log
    assert only_ours == 0o400


BAD_TOML = f"""
token = "{HOOK}"
[listen]
password = "{HOOK}"
[[upstream]]
password = "{HOOK}"
secret_access_key = "{HOOK}"
[listmonk]
url = "https://user:{HOOK}@example.com/"
[dashboard]
token = "{HOOK}"
[alert]
url = "https://user:{HOOK}@example.com/"
"""


@pytest.mark.parametrize("command", ["check", "serve"])
def test_no_secret_is_shown_by_a_refused_configuration(tmp_path: Path, command: str) -> None:
    """Exit code 78, each key, and where a secret belongs instead."""
    (tmp_path / "relay.toml").write_text(BAD_TOML)

    words = [sys.executable, "-m", "relay", command, "-c", str(tmp_path / "relay.toml")]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)

    assert done.returncode == EXIT_CONFIG
    assert done.stderr.count("not shown here") == 7
    assert HOOK not in done.stdout + done.stderr


def ours() -> Iterator[object]:
    """Every object of a class of ours that lives in this process."""
    for one in gc.get_objects():
        with contextlib.suppress(ReferenceError):
            if str(type(one).__module__).startswith("relay."):
                yield one


async def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    """Of no object of ours, while a relay runs: tracebacks and debuggers show them."""
    canaries = Canaries(tmp_path, "logfmt", by_credential=False, twin_port=1)
    await asyncio.to_thread(canaries.write)
    toml = (tmp_path / "relay.toml").read_text()
    whole = config.resolve(config.parse(tomllib.loads(toml)), tmp_path)
    twin = Twin(TwinConfig(password="other", latency=NO_LATENCY))
    whole = replace(
        whole,
        spool=replace(ROOMY, path=str(tmp_path / "relay.db")),
        upstreams=(replace(whole.upstreams[0], port=await twin.start()),),
    )
    clock, shown = ManualClock(), dict[str, str]()
    async with open_spool(tmp_path, clock, whole.spool) as spool:
        relay = Relay(whole, spool, clock, {"ses": SES})
        running = asyncio.create_task(relay.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await relay.ready.wait()
            talk = await Talk.to(canaries.smtp)
            login = f"C: AUTH PLAIN {b64(f'{chr(0)}listmonk{chr(0)}{HASHED}')}\nS: 235 *\n"
            await talk.say(f"S: 220 *\n{login}{message('a@b.example')}")
            for number, one in enumerate(ours()):
                shown[f"{type(one)} {number}"] = repr(one)
            await talk.close()
        finally:
            relay.drain()
            await asyncio.wait([running])
            await twin.stop()
        running.result()
    assert len({kind.rpartition(" ")[0] for kind in shown}) > 60
    assert found_in(shown) == {}
