"""A double of the Amazon SES SMTP endpoint, for tests and for trying the relay out.

It speaks SES's dialogue byte for byte (facts/ses-smtp.md 1, 2 and 7), keeps its limits
(a bucket of recipients with debt, a 24-hour quota, caps on sessions and messages, the
idle cut), and writes down what it accepted. It shares no code with ``listener`` or
``upstream``, so that it cannot repeat their mistakes, and it never sends mail anywhere.

    twin = Twin(TwinConfig(rate_per_s=200, latency=NO_LATENCY))
    port = await twin.start()
    ...
    await twin.stop()
    assert not twin.ledger.twice()
"""

from relay.twin.audit import Audit
from relay.twin.certificate import certificate_files
from relay.twin.faults import Action, Cut, Fault, Say, Stage, Stall, Transaction, Trickle
from relay.twin.ledger import Accepted, Counts, Ledger, by_message, by_relay_id
from relay.twin.parameters import NO_LATENCY, Farewell, Foreign, Latency, Policy, TwinConfig
from relay.twin.scenarios import SCENARIOS, Scenario, play
from relay.twin.server import Twin
from relay.twin.texts import message_id_time

__all__ = [
    "NO_LATENCY",
    "SCENARIOS",
    "Accepted",
    "Action",
    "Audit",
    "Counts",
    "Cut",
    "Farewell",
    "Fault",
    "Foreign",
    "Latency",
    "Ledger",
    "Policy",
    "Say",
    "Scenario",
    "Stage",
    "Stall",
    "Transaction",
    "Trickle",
    "Twin",
    "TwinConfig",
    "by_message",
    "by_relay_id",
    "certificate_files",
    "message_id_time",
    "play",
]
