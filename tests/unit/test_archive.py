""".deb files: read, and rewritten uncompressed, byte for byte what dpkg-deb reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vnfsbuild.errors import TrustError
from vnfsbuild.family.deb import archive


@pytest.fixture(params=["xz", "gzip", "none", "zstd"])
def deb(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: hello\nVersion: 1.0-1\nArchitecture: all\nMaintainer: A <a@b.invalid>\nDescription: x\n y\n"
    )
    (tree / "usr/share/hello").mkdir(parents=True)
    (tree / "usr/share/hello/data").write_bytes(bytes(range(256)) * 20_000 + b"odd")
    path = tmp_path / "hello.deb"
    command = ["dpkg-deb", "--root-owner-group", f"-Z{request.param}", "--build", str(tree), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def files(path: Path) -> bytes:
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], check=True, capture_output=True).stdout


def test_the_rewritten_package_is_the_same_to_dpkg(deb: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.deb"
    archive.uncompress(deb, out)
    assert files(out) == files(deb)
    info = [
        subprocess.run(["dpkg-deb", "-f", str(path)], check=True, capture_output=True).stdout for path in (deb, out)
    ]
    assert info[0] == info[1]
    with archive.data_stream(out) as stream:
        assert stream.read(len(files(deb))) == files(deb)


def test_the_control_stanza_is_read(deb: Path) -> None:
    assert archive.control(deb).startswith("Package: hello\nVersion: 1.0-1\n")


@pytest.mark.parametrize("keep", [0, 7, 30, 200, -2, -100])
def test_a_damaged_package_is_refused(deb: Path, tmp_path: Path, keep: int) -> None:
    broken = tmp_path / "broken.deb"
    broken.write_bytes(deb.read_bytes()[:keep])
    with pytest.raises(TrustError, match=r"broken\.deb"):
        archive.uncompress(broken, tmp_path / "out.deb")
