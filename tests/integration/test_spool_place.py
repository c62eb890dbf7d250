"""Whose the spool's files are, and who may read them: put right if that mends it, else refused."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from relay.errors import SpoolBroken
from relay.spool.place import beside
from tests.fakes.spool_file import keep, open_spool

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = ["", "-wal", "-shm", ".lock", ".ballast"]
NOBODY = 65_534
BALLAST_BYTES = 4096

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


async def a_spool(folder: Path) -> Path:
    """A closed spool with all its files."""
    async with open_spool(folder, ballast_bytes=BALLAST_BYTES) as spool:
        await keep(spool)
    path = folder / "relay.db"
    for suffix in SUFFIXES:
        beside(path, suffix).touch(0o600)
    return path


def modes_in(folder: Path) -> list[int]:
    return [stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()]


async def refusal(folder: Path) -> str:
    with pytest.raises(SpoolBroken) as caught:
        async with open_spool(folder, ballast_bytes=BALLAST_BYTES):
            pass
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_file_open_to_others_is_closed_with_a_warning(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The spool opens, the file has mode 0600, and the log says which one it was."""
    path = beside(await a_spool(tmp_path), suffix)
    path.chmod(0o666)

    async with open_spool(tmp_path, ballast_bytes=BALLAST_BYTES):
        modes = modes_in(tmp_path)

    assert set(modes) == {0o600}
    warned = [one for one in caplog.records if one.message == "spool file was open to others"]
    assert [getattr(one, "file", "") for one in warned] == [str(path)]


async def test_private_files_are_no_reason_for_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The usual start is silent."""
    await a_spool(tmp_path)
    async with open_spool(tmp_path, ballast_bytes=BALLAST_BYTES):
        pass

    assert not caplog.records


@as_root
@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_file_of_another_user_is_refused(tmp_path: Path, suffix: str) -> None:
    """He could read and change it at any time; the text says what to run."""
    path = beside(await a_spool(tmp_path), suffix)
    os.chown(path, NOBODY, NOBODY)

    said = await refusal(tmp_path)

    assert said.startswith(f"{path} belongs to user {NOBODY}")
    assert "chown it to user 0" in said


@as_root
async def test_root_may_open_the_spool_of_the_folders_owner(tmp_path: Path) -> None:
    """``sudo relay queue`` on the spool of a relay that runs as somebody else."""
    path = await a_spool(tmp_path)
    for one in (tmp_path, *(beside(path, suffix) for suffix in SUFFIXES)):
        os.chown(one, NOBODY, NOBODY)

    async with open_spool(tmp_path, ballast_bytes=BALLAST_BYTES) as spool:
        assert sum(spool.depth().values()) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_link_in_the_spools_place_is_not_followed(tmp_path: Path, suffix: str) -> None:
    """Whatever it leads to stays as it is: neither written, nor cut, nor given another mode."""
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    folder.mkdir()
    path = beside(await a_spool(folder), suffix)
    elsewhere.write_bytes(b"dear to somebody")
    elsewhere.chmod(0o644)
    path.unlink()
    path.symlink_to(elsewhere)

    said = await refusal(folder)

    assert said.startswith(f"{path} is a link")
    assert elsewhere.read_bytes() == b"dear to somebody"
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o644


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_dangling_link_makes_no_file(tmp_path: Path, suffix: str) -> None:
    """A link that was planted before the first start."""
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    folder.mkdir()
    path = beside(folder / "relay.db", suffix)
    path.symlink_to(elsewhere)

    assert (await refusal(folder)).startswith(f"{path} is a link")
    assert not elsewhere.exists()


async def test_link_planted_after_the_look_is_not_followed_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the lock, which is written to before anything else: the kernel refuses it."""
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_bytes(b"dear to somebody")
    path = beside(folder / "relay.db", ".lock")
    path.symlink_to(elsewhere)
    monkeypatch.setattr("relay.spool.place.check_owners", lambda _: None)

    assert "cannot be opened" in await refusal(folder)
    assert elsewhere.read_bytes() == b"dear to somebody"


async def test_fifo_in_the_spools_place_is_refused(tmp_path: Path) -> None:
    """Rather than waited for."""
    path = tmp_path / "relay.db.lock"
    os.mkfifo(path, 0o600)

    assert (await refusal(tmp_path)).startswith(f"{path} is not a plain file")


@pytest.mark.parametrize(("mode", "warnings"), [(0o777, 1), (0o1777, 0), (0o775, 0), (0o700, 0)])
async def test_folder_where_everybody_may_delete_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warnings: int
) -> None:
    """Not refused: volumes of Docker are often like that, with nobody else in there."""
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(mode)

    async with open_spool(folder):
        pass

    told = [one for one in caplog.records if one.message.startswith("spool folder open to all")]
    assert len(told) == warnings
