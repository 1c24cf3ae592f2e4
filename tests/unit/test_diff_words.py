"""Words that `vnfs diff` finds for what a kernel writes in numbers."""

from __future__ import annotations

import pytest

from vnfsbuild.deliver.diff import capability_words

# security.capability as the kernel stores it, and what getcap says of it
CAPABILITIES = [
    ("0100000200200000000000000000000000000000", "cap_net_raw=ep"),
    ("0000000200040000000000000000000000000000", "cap_net_bind_service=p"),
    ("0100000200300000000000000000000000000000", "cap_net_admin,cap_net_raw=ep"),
    ("0100000200200000001000000000000000000000", "cap_net_admin=ei cap_net_raw=ep"),
    ("0100000200000000000000008000000000000000", "cap_bpf=ep"),
    ("0100000300200000000000000000000000000000e8030000", "cap_net_raw=ep"),
    ("0102", "0102"),
]


@pytest.mark.parametrize(("value", "words"), CAPABILITIES)
def test_capabilities_are_said_as_getcap_says_them(value: str, words: str) -> None:
    assert capability_words(bytes.fromhex(value)) == words
