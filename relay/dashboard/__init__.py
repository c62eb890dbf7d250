"""HTTP for Prometheus and for whoever watches over the relay.

``/`` is a page with the figures of ``relay status``, fed by ``/api/v1/events``;
``/api/v1/status`` the same figures once; ``/healthz`` says that the process is alive,
``/readyz`` whether it takes mail and if not why, ``/metrics`` everything in Prometheus' text
format. Nothing here changes anything. Who may see what: ``access``; how many, and how much
they may send: ``connection``. What the page says: ``view``. Its files lie beside this one and
go out as they are: no build step, no other host.
"""

from relay.dashboard.access import read_token
from relay.dashboard.server import DashboardServer

__all__ = ["DashboardServer", "read_token"]
