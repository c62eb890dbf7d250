"""The main job in two minutes, without Amazon: ``relay demo``.

A real ``relay serve`` in a process of its own stands between a double of Listmonk's mailer
and a double of SES, both in this process. The relay is told neither the limit nor that it
changes on the way. ``stage`` sets the scene and plays it, ``audit`` compares what the mailer
was told with what the twin's ledger holds. Nothing leaves the machine; the spool lives in a
temporary folder.
"""

from relay.service.demo.audit import Audit
from relay.service.demo.stage import CHANGE_FACTOR, Demo, Progress, Wish, run

__all__ = ["CHANGE_FACTOR", "Audit", "Demo", "Progress", "Wish", "run"]
