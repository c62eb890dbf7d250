"""SIGHUP: what is read anew, and what lives on."""

from __future__ import annotations

import os
import signal
import ssl
from typing import TYPE_CHECKING

import trustme

from relay.mailer import Connection
from relay.twin import NO_LATENCY, TwinConfig
from tests.fakes.running import relay_and_twin
from tests.fakes.spool_file import until

if TYPE_CHECKING:
    from pathlib import Path

TWIN = TwinConfig(latency=NO_LATENCY, quota=0)


async def test_renewed_certificate_is_used_after_sighup(tmp_path: Path) -> None:
    """New handshakes show the new one, open connections live on; a broken file changes nothing."""
    pem = tmp_path / "cert.pem"
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    def renew() -> None:
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))

    async def shown(port: int) -> bytes:
        connection = await Connection.open("127.0.0.1", port, starttls=trusting)
        tls = connection._writer.get_extra_info("ssl_object")
        connection.close()
        found: bytes = tls.getpeercert(binary_form=True)
        return found

    renew()
    listen = {"listen": f'tls_cert_file = "{pem}"'}
    async with relay_and_twin(tmp_path, TWIN, **listen) as (relay, _):
        first = await shown(relay.smtp_port)
        idle = await Connection.open("127.0.0.1", relay.smtp_port, starttls=trusting)

        pem.write_text("broken")
        os.kill(relay.pid, signal.SIGHUP)
        await until(lambda: "the old one stays" in relay.log)
        assert await shown(relay.smtp_port) == first
        renew()
        os.kill(relay.pid, signal.SIGHUP)
        await until(lambda: "certificate reloaded" in relay.log)

        assert await shown(relay.smtp_port) != first
        assert (await idle.command("NOOP"))[0] == 250
        idle.close()
