"""The programs are built before the first test has a relay running, or all tests skip."""

from __future__ import annotations

import pytest

from tests.fakes.smtppool import VERSIONS
from tests.fakes.smtppool_programs import program


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    for version in VERSIONS:
        program(version)
