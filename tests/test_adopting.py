"""Adopting an installation of the ancestor: what its plan says, what it copies, and that `public` stays as it was."""

import ancestor
import pytest
from installation import engine_of
from sqlalchemy import URL

from helios import adopting
from helios.adopting import Plan, Source
from helios.models import SessionMode

SCHEMA = "helios_trading"
PAPER = Source(mode=SessionMode.PAPER)


@pytest.fixture
def installed(upgraded: URL) -> URL:
    """An upgraded database with an installation of the ancestor."""
    ancestor.install(upgraded)
    return upgraded


def plan(url: URL, source: Source = PAPER) -> Plan:
    with engine_of(url).connect() as connection:
        return adopting.plan(connection, source)


def test_try(installed, tmp_path):
    """Try."""
    for share in plan(installed).shares:
        print(share)
    for each in adopting.apply(engine_of(installed), PAPER, rejects=tmp_path):
        print(each)
    for share in plan(installed).shares:
        print(share)
    for f in tmp_path.iterdir():
        print(f, f.read_text())
    assert 0
