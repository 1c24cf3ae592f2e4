"""What integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.aptrepo import Signer
from tests.support.minidistro import Site, mini_site


@pytest.fixture
def site(tmp_path: Path, archive_key: Signer) -> Iterator[Site]:
    with mini_site(tmp_path, archive_key) as made:
        yield made
