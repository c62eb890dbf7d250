"""``relay`` that asks again after two seconds where the real one waits for minutes.

    python -m tests.fakes.impatient serve -c …

The waits between probes (the quota's 2 to 15 minutes, the breaker's minute to an hour) are all
that changes, so that a twin's trouble of twenty seconds shows its end within the minute.
"""

from __future__ import annotations

from relay.breaker import breaker
from relay.quota import quota

FIRST_MS, MAX_MS = 2_000, 4_000


def hurry() -> None:
    """From now on this process asks again soon."""
    quota.PROBE_FIRST_MS, quota.PROBE_MAX_MS = FIRST_MS, MAX_MS
    breaker.PROBE_FIRST_MS, breaker.PROBE_MAX_MS = FIRST_MS, MAX_MS


if __name__ == "__main__":
    hurry()
    from relay.cli import main

    main(prog_name="relay")
