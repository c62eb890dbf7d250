"""HTTP for Prometheus and for whoever watches over the relay.

``/healthz`` says that the process is alive, ``/readyz`` whether it takes mail and if not
why, ``/metrics`` everything in Prometheus' text format. Nothing here changes anything.
Off loopback all but ``/healthz`` want ``Authorization: Bearer <token>``: metrics tell
how much is sent and how well, and a page that is open to a network is open to strangers.
"""

from relay.dashboard.server import DashboardServer, read_token

__all__ = ["DashboardServer", "read_token"]
