"""The asking side of the control socket, for commands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp

from relay.errors import RelayError

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 30.0
"""A running relay answers in milliseconds; one that is stopped by a debugger does not."""


def ask(path: Path, command: str, **body: object) -> dict[str, Any] | None:
    """The answer of the relay behind the socket, or None if none is running there.

    Raises: RelayError with the relay's own words if it cannot do what was asked.
    """
    return asyncio.run(_ask(path, command, body))


async def _ask(path: Path, command: str, body: dict[str, object]) -> dict[str, Any] | None:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.UnixConnector(path=str(path))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        try:
            async with session.post(f"http://relay/v1/{command}", json=body) as response:
                answer: dict[str, Any] = await response.json()
        except (aiohttp.ClientConnectorError, FileNotFoundError):
            return None
        except TimeoutError as error:
            raise RelayError(f"the relay behind {path} did not answer in {TIMEOUT_S} s") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise RelayError(f"the relay behind {path} broke off: {error}") from error
    if "error" in answer:
        raise RelayError(str(answer["error"]))
    return answer
