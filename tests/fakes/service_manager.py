"""systemd's side of one unit with a socket: a stand-in that keeps what it must keep.

It holds the listening socket of ``relay.socket``, hears sd_notify, and has a descriptor store
with systemd's rules (sd_notify(3), ``FDSTORE``: *documented*): what is stored is passed to the
next start together with the socket, a name is forgotten on ``FDSTOREREMOVE``, and a socket whose
peer is gone in both directions is dropped.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tests.fakes.activated import FDS_A_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BACKLOG = 4096
_GONE = select.POLLHUP | select.POLLERR


@dataclass
class ServiceManager:
    """One unit; ``program`` is what ``RunningRelay`` is to run. Use as ``with … as manager``."""

    folder: Path
    host: str = "127.0.0.1"
    keeps: bool = True
    """Whether the unit has ``FileDescriptorStoreMax=``."""
    said: list[dict[str, str]] = field(default_factory=list)
    """What the service told, in order, but for the store and the barrier."""
    stored: list[tuple[str, int]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def running(
        cls, folder: Path, host: str = "127.0.0.1", *, keeps: bool = True
    ) -> Iterator[Self]:
        """A stand-in that serves as long as the block lasts."""
        manager = cls(folder, host, keeps=keeps)
        loop = asyncio.get_running_loop()
        with (
            socket.create_server((host, 0), backlog=BACKLOG) as manager.door,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked,
        ):
            manager._notified = notified
            notified.bind(str(manager._notify_path))
            asked.bind(str(manager._ask_path))
            asked.listen()
            loop.add_reader(notified, manager._hear, notified)
            loop.add_reader(asked, manager._hand_out, asked)
            try:
                yield manager
            finally:
                loop.remove_reader(notified)
                loop.remove_reader(asked)
                manager._drop(lambda *_: True)

    door: socket.socket = field(init=False)
    _notified: socket.socket = field(init=False)

    @property
    def port(self) -> int:
        port: int = self.door.getsockname()[1]
        return port

    @property
    def program(self) -> tuple[str, ...]:
        return ("-m", "tests.fakes.activated", str(self._ask_path))

    @property
    def _notify_path(self) -> Path:
        return self.folder / "notify"

    @property
    def _ask_path(self) -> Path:
        return self.folder / "manager"

    @property
    def clients(self) -> int:
        """Connections in the store."""
        return sum(name == "client" for name, _ in self.stored)

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """While this lasts it reads nothing of what it is told."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._notified)
        try:
            yield
        finally:
            loop.add_reader(self._notified, self._hear, self._notified)

    async def spoken_to(self) -> None:
        """Return once something waits to be read, while it is deaf."""
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._notified, told.set)
        try:
            await told.wait()
        finally:
            loop.remove_reader(self._notified)

    def lose(self, name: str) -> None:
        """Forget what is stored under that name, as no service manager should."""
        self._drop(lambda one, _: one == name)

    def _hear(self, notified: socket.socket) -> None:
        message, fds, _, _ = socket.recv_fds(notified, 65_536, 253)
        fields = dict(line.split("=", 1) for line in message.decode().splitlines())
        name = fields.get("FDNAME", "stored")
        if "FDSTORE" in fields and self.keeps:
            self.stored.extend((name, fd) for fd in fds)
            return
        for fd in fds:  # a barrier's, or what nobody asked it to keep
            os.close(fd)
        if "FDSTOREREMOVE" in fields:
            self._drop(lambda one, _: one == name)
        elif fields.keys().isdisjoint({"FDSTORE", "BARRIER"}):
            self.said.append(fields)

    def _hand_out(self, asked: socket.socket) -> None:
        """The service is starting: pass it the socket and the store, which stays as it is."""
        self._drop_gone()
        held = [("relay.socket", self.door.fileno()), *self.stored]
        service, _ = asked.accept()
        with service:
            names = [name for name, _ in held]
            told = {"notify": str(self._notify_path), "names": names}
            socket.send_fds(service, [json.dumps(told).encode()], [])
            for n in range(0, len(held), FDS_A_MESSAGE):
                part = [fd for _, fd in held[n : n + FDS_A_MESSAGE]]
                socket.send_fds(service, [b"fds"], part)

    def _drop_gone(self) -> None:
        poll = select.poll()
        for _, fd in self.stored:
            poll.register(fd, 0)
        gone = {fd for fd, event in poll.poll(0) if event & _GONE}
        self._drop(lambda _, fd: fd in gone)

    def _drop(self, is_to_go: Callable[[str, int], bool]) -> None:
        for one in tuple(self.stored):
            if is_to_go(*one):
                self.stored.remove(one)
                os.close(one[1])
