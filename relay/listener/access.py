"""Who may send: the rules that keep the relay from being an open one, and TLS at the door.

What counts is the address a socket is really bound to, also of one that systemd opened
for us: a check of ``listen.host`` alone would miss it. The README warns of Docker, whose
published ports make strangers look like the bridge's address.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.errors import AddressBusy, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from relay import config

log = logging.getLogger(__name__)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_Address = tuple[Any, ...]
"""A socket's: host, port, and for IPv6 two numbers more."""

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Networks:
    """``listen.allow_networks``: peers who may send without logging in."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __contains__(self, host: str) -> bool:
        """Whether the peer at this address is one of them; what is no address is not."""
        address = read_address(host)
        return address is not None and any(address in network for network in self._networks)

    @property
    def reach_out(self) -> bool:
        """Whether anybody outside this machine is among them."""
        return any(not network.is_loopback for network in self._networks)


def read_address(host: str) -> IPAddress | None:
    """The address as a peer or socket has it: IPv4 seen through IPv6 is IPv4, no zone."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def check_sockets(sockets: Iterable[socket.socket], listen: config.Listen) -> None:
    """Refuse to listen where strangers could send.

    Raises:
        ConfigError: a socket is not one for TCP, or is a connection; or it is bound beyond
            loopback, nobody has to log in, and ``allow_networks`` does not say which other
            machines may send.
    """
    for one in sockets:
        if one.family not in _FAMILIES or one.type != socket.SOCK_STREAM:
            # Who is at the other end of another one cannot be told by an address.
            raise ConfigError(
                "listen.host",
                f"a socket of {_said(one.family)} and {_said(one.type)} from systemd",
                "TCP over IPv4 or IPv6: in relay.socket, ListenStream= with a port",
            )
        if _is_connected(one):
            wanted = "a listening socket: in relay.socket, Accept=no"
            raise ConfigError("listen.host", "a connection from systemd", wanted)
        bound = str(one.getsockname()[0])
        address = read_address(bound)
        if address is not None and address.is_loopback:
            continue
        if listen.auth != "required" and not Networks(listen.allow_networks).reach_out:
            raise ConfigError(
                "listen.allow_networks",
                f"only this machine, with a socket bound to {bound}",
                'the networks that may send, or listen.auth = "required": '
                "otherwise anybody could send through this relay, or nobody",
            )


def _is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True


def _said(number: int) -> str:
    """The name of a family or a type; a number, if Python knows none."""
    return getattr(number, "name", str(number))


def open_sockets(listen: config.Listen) -> list[socket.socket]:
    """Sockets bound to every address of ``listen.host``, not yet listening.

    Raises:
        AddressBusy: another program listens there.
        ConfigError: an address cannot be bound. Either way none is left open.
    """
    opened: list[socket.socket] = []
    try:
        for host in listen.host:
            for found in _resolve(host, listen.port):
                opened.append(_bind(*found, reuse_port_of=opened))
    except OSError as error:
        for one in opened:
            one.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressBusy(
                f"listen.port {listen.port} on {', '.join(listen.host)} is taken by another "
                "program: stop it, or choose another port"
            ) from error
        found_text = f"{', '.join(listen.host)} with port {listen.port}: {error.strerror or error}"
        raise ConfigError("listen.host", found_text, "an address of this machine") from error
    return opened


def _resolve(host: str, port: int) -> Sequence[tuple[int, _Address]]:
    answers = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in answers))


def _bind(family: int, address: _Address, *, reuse_port_of: list[socket.socket]) -> socket.socket:
    """A socket bound to ``address``; port 0 becomes the port of the sockets before it."""
    if address[1] == 0 and reuse_port_of:
        address = (address[0], reuse_port_of[0].getsockname()[1], *address[2:])
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Else "::" would take the IPv4 port as well, and a second host could not bind.
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def tls_context(listen: config.Listen) -> ssl.SSLContext | None:
    """What STARTTLS is done with, TLS 1.2 or newer; None if no certificate is configured.

    Raises:
        ConfigError: the files cannot be used.
    """
    if not listen.tls_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, listen)
    return context


def load_certificate(context: ssl.SSLContext, listen: config.Listen) -> None:
    """Let new handshakes of ``context`` show the certificate that is in the files now.

    Raises:
        ConfigError: the files cannot be used.
    """
    try:
        context.load_cert_chain(listen.tls_cert_file, listen.tls_key_file or None)
    except OSError as error:  # ssl.SSLError is one
        files = " and ".join(filter(None, (listen.tls_cert_file, listen.tls_key_file)))
        found = f"{files}: {error.strerror or error}"
        wanted = (
            "readable PEM files: the certificate with its chain, and its key without a passphrase"
        )
        raise ConfigError("listen.tls_cert_file", found, wanted) from error
    key_file = Path(listen.tls_key_file or listen.tls_cert_file)
    if key_file.stat().st_mode & stat.S_IROTH:
        # Not refused: the key has been read by whoever wanted to, and mail would stop as well.
        log.warning("TLS key open to all users; chmod o-r it", extra={"file": str(key_file)})
