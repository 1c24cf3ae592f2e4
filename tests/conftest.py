"""What tests of every kind share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.aptrepo import HttpServer, Repository, Signer, signer

# A shell starts what it puts in the background with Ctrl-C ignored, and programs pass that on: tests that send it to
# programs of ours need it as a terminal gives it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def archive_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    """One OpenPGP key for all the repositories of a session: making one takes a while."""
    with signer(tmp_path_factory.mktemp("gpg") / "home") as made:
        yield made


@pytest.fixture
def apt_repository(tmp_path: Path, archive_key: Signer) -> Repository:
    """An empty repository; its `write` fills it."""
    return Repository(tmp_path / "mirror", archive_key)


@pytest.fixture
def http(apt_repository: Repository) -> Iterator[HttpServer]:
    """A server for `apt_repository`."""
    with HttpServer(apt_repository.root) as server:
        yield server
