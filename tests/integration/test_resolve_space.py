"""A full file system is said to be full, and leaves nothing half-made under a real name."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from vnfsbuild.errors import NoSpace
from vnfsbuild.fetch import Downloader
from vnfsbuild.host.run import run
from vnfsbuild.model import Blob


@pytest.mark.root
def test_no_space_left_is_named(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(1 << 20)
    source = tmp_path / "file"
    source.write_bytes(data)
    small = tmp_path / "small"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small])
    try:
        downloader = Downloader(small / "cache")
        blob = Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        with pytest.raises(NoSpace, match="no space left where"):
            downloader.file(source.as_uri(), blob=blob)
        with pytest.raises(NoSpace):
            downloader.many([(source.as_uri(), blob)], done=lambda *_: None, advance=lambda _: None)
        with pytest.raises(NoSpace):
            downloader.file(source.as_uri())
        assert not downloader.blobs.has(blob)
    finally:
        run(["umount", small])
