"""The real command line, run by the interpreter that runs the tests."""

from __future__ import annotations

import sys

VNFS = (sys.executable, "-c", "from vnfsbuild.cli.__main__ import program; program()")
