"""The control socket: how ``relay`` commands talk to a running relay.

HTTP on a Unix socket beside the spool (``<spool path>.sock``, mode 0600: whoever may open
the spool may steer the relay, nobody else). ``server`` answers, ``client`` asks. Neither
knows the rooms: the service hands the server a ``Commands`` value, one callable for each
thing that can be asked for.
"""

from relay.control.client import ask
from relay.control.server import Commands, ControlServer, socket_path

__all__ = ["Commands", "ControlServer", "ask", "socket_path"]
