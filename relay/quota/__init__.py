"""The daily quota of one upstream: how much is used, and who may still send.

``quota`` has the ledger, what the upstream said and the decisions, ``told`` what AWS says. Pure.
"""

from relay.quota.quota import (
    ALLOWED_BELIEVED_MS,
    ALLOWED_KEPT_MS,
    ALLOWED_MIN,
    BUCKET_MS,
    BUCKETS_MAX,
    PROBE_FIRST_MS,
    PROBE_MAX_MS,
    SIGV2_PERSISTS_MS,
    WINDOW_MS,
    Quota,
    QuotaState,
)
from relay.quota.told import TOLD_FOR_MS

__all__ = [
    "ALLOWED_BELIEVED_MS",
    "ALLOWED_KEPT_MS",
    "ALLOWED_MIN",
    "BUCKETS_MAX",
    "BUCKET_MS",
    "PROBE_FIRST_MS",
    "PROBE_MAX_MS",
    "SIGV2_PERSISTS_MS",
    "TOLD_FOR_MS",
    "WINDOW_MS",
    "Quota",
    "QuotaState",
]
