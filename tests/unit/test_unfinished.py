"""The unfinished download of a blob: one owner at a time, and waiting for it can be given up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vnfsbuild.model import Blob
from vnfsbuild.store.cas import LocalBlobs

DATA = b"some bytes"
BLOB = Blob(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA))


class GaveUp(Exception):
    pass


def give_up(_seconds: float) -> None:
    raise GaveUp


def test_waiting_for_the_owner_ends_when_the_caller_says_so(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    with blobs.unfinished(BLOB, give_up), pytest.raises(GaveUp), blobs.unfinished(BLOB, give_up):
        pass
    with blobs.unfinished(BLOB, give_up) as part:
        assert part is not None


def test_what_the_owner_completed_meanwhile_is_not_begun_again(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.partial(BLOB).write_bytes(b"left over")
    blobs.put_bytes(DATA)
    with blobs.unfinished(BLOB, give_up) as part:
        assert part is None
    assert not blobs.partial(BLOB).exists()


def test_a_part_longer_than_the_blob_is_begun_anew(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.partial(BLOB).write_bytes(DATA + b"!")
    with blobs.unfinished(BLOB, give_up) as part:
        assert part is not None
        assert part.read() == b""
