"""Livesync: running nodes go from one version to another without a reboot, and say what drifted.

What is imported here is the face. Inside, `nodes`, `skip` and `plan` only compute; `ssh` is the way to a node, `facts`
and `survey` what it and the store say of it, `aftermath` what remains to be done, and `update` the order of it all.
"""

from __future__ import annotations

from vnfsbuild.deliver.livesync.nodes import Node, parse
from vnfsbuild.deliver.livesync.plan import Drift, Kind, Plan, Policy
from vnfsbuild.deliver.livesync.ssh import Ssh
from vnfsbuild.deliver.livesync.update import Options, Report, Status, livesync, status

__all__ = [
    "Drift",
    "Kind",
    "Node",
    "Options",
    "Plan",
    "Policy",
    "Report",
    "Ssh",
    "Status",
    "livesync",
    "parse",
    "status",
]
