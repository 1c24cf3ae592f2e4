"""Downloads: many files at once, resumed, and verified before they are visible.

`Downloader` is the face; `job` gets one file, retrying and resuming, over `wire`, which only reads. What is cached is
named by its digest; an unfinished download waits as `.part` and goes on where it stopped, in this run or the next.
Refuses to hand out a byte that was not checked, and to try again after a wrong digest.
"""

from __future__ import annotations

from vnfsbuild.fetch.downloader import Downloader

__all__ = ["Downloader"]
