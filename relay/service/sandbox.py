"""``--sandbox``: the whole relay, with the double of SES inside in Amazon's place.

Every upstream is pointed at the twin, so that nothing can leave the machine; names, rates and
breakers stay as configured. The spool is another one (``<name>.sandbox``), because mail that
waits for the real SES must not end in the twin, nor the twin's mail at SES.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from relay.twin import Twin, TwinConfig, certificate_files

if TYPE_CHECKING:
    from relay.config import Config


def make_twin() -> Twin:
    """An SES account of the usual kind: 14 a second, 50,000 a day."""
    return Twin(TwinConfig())


def redirect(config: Config, port: int) -> Config:
    """``config`` with all upstreams at the twin that listens on ``port``."""
    certificate, _ = certificate_files()
    upstreams = tuple(
        replace(
            upstream,
            host="127.0.0.1",
            port=port,
            tls="starttls",
            ca_file=str(certificate),
            username=TwinConfig().username,
            password_file="",
        )
        for upstream in config.upstreams
    )
    return replace(config, upstreams=upstreams)


def own_spool(config: Config) -> Config:
    """``config`` with a spool beside the real one."""
    path = Path(config.spool.path)
    return replace(config, spool=replace(config.spool, path=str(path) + ".sandbox"))


def tally(twin: Twin) -> dict[str, int]:
    """What the twin saw, for the last line of the log."""
    counts = twin.ledger.total
    return {"accepted": counts.accepted}
