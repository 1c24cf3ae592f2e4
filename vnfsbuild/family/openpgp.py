"""OpenPGP signatures, checked by gpgv against the keys that may sign, and no others.

Refuses everything that is not one clear-signed message, and hands out what was signed, never the file it came in.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vnfsbuild.errors import HostError, TrustError
from vnfsbuild.host.run import run

_BEGIN = b"-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = b"-----BEGIN PGP SIGNATURE-----"
_KEY = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)


# SHA-256, 384, 512 and 224, as RFC 4880 numbers them: collisions of the older ones can be made.
_DIGESTS = frozenset({"8", "9", "10", "11"})


@dataclass(frozen=True, slots=True)
class Signed:
    """`content` is what was signed; `signer` the fingerprint of the primary key that signed it."""

    content: bytes
    signer: str


def verify(path: Path, *, what: str, keyrings: Sequence[Path], signers: Sequence[str] = ()) -> Signed:
    """Check the clear-signed file `path` and return what it says. `what` names it in errors.

    `keyrings` may be binary or armored. With `signers` (fingerprints of primary keys), one of those must have signed;
    else any key of the keyrings will do. Raises TrustError when none did, or HostError for a keyring that is not there.
    """
    _check_form(path.read_bytes(), what)
    with tempfile.TemporaryDirectory(prefix="vnfs-gpgv-") as directory:
        work = Path(directory)
        words: list[str | Path] = ["gpgv", "--homedir", work, "--status-fd", "1", "--output", work / "content"]
        for number, keyring in enumerate(keyrings):
            words += ["--keyring", _binary(keyring, work / f"keyring-{number}.gpg")]
        result = run([*words, path], check=False)
        signer = _accepted(result.text, signers)
        if not signer:
            said = result.errors.decode(errors="replace").strip()
            raise TrustError(
                f"{what} is not signed by a key that may sign it" + _indent(said),
                f"keys were taken from {', '.join(str(item) for item in keyrings)}",
            )
        return Signed((work / "content").read_bytes(), signer)


def _check_form(data: bytes, what: str) -> None:
    lines = data.split(b"\n")
    begins = sum(line.rstrip() == _BEGIN for line in lines)
    if not data.startswith(_BEGIN) or begins != 1 or sum(line.rstrip() == _SIGNATURE for line in lines) != 1:
        raise TrustError(f"{what} is not one signed message", "the mirror is damaged, or a login page answers for it")


def _binary(keyring: Path, place: Path) -> Path:
    """`keyring`, or a copy at `place` if it is armored: gpgv reads binary ones only."""
    try:
        data = keyring.read_bytes()
    except OSError as error:
        raise HostError(f"the keyring {keyring} cannot be read: {error.strerror}") from error
    blocks = _KEY.findall(data)
    if not blocks:
        return keyring.absolute()
    try:
        place.write_bytes(b"".join(_unarmor(block) for block in blocks))
    except binascii.Error as error:
        raise TrustError(f"the keyring {keyring} is damaged: {error}") from error
    return place


def _unarmor(block: bytes) -> bytes:
    lines = [line.strip() for line in block.splitlines()]
    start = lines.index(b"") + 1 if b"" in lines else 0
    # "=abcd" is a checksum that newer programs leave out; only the data itself may end in "=".
    return base64.b64decode(b"".join(line for line in lines[start:] if not line.startswith(b"=")), validate=True)


def _accepted(status: str, signers: Sequence[str]) -> str:
    """The fingerprint of the first good signature that counts, from gpgv's status lines; empty if there is none.

    Each signature is a block after NEWSIG; VALIDSIG alone is not enough, for an expired key gives it too.
    """
    for block in status.split("[GNUPG:] NEWSIG")[1:]:
        lines = [line.split()[1:] for line in block.splitlines() if line.startswith("[GNUPG:] ")]
        if any(words[0] in {"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG"} for words in lines if words):
            continue
        if not any(words[:1] == ["GOODSIG"] for words in lines):
            continue
        for words in lines:
            # VALIDSIG fingerprint date timestamp expiry version reserved key-algorithm digest class primary-key
            if words[:1] != ["VALIDSIG"] or len(words) <= 10 or words[8] not in _DIGESTS:
                continue
            if not signers or words[10] in signers:
                return words[10]
    return ""


def _indent(text: str) -> str:
    return "".join(f"\n  | {line}" for line in text.splitlines()[-10:]) if text else ""
