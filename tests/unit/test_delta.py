"""What a layer must hold, computed from tables of contents: whatever it is made of, laid over the old it is the new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnfsbuild.deliver.edit.delta import OPAQUE, Indexed, Upper, is_whiteout, members, merged, whiteout
from vnfsbuild.store.toc import Entry, FileType, Toc


def directory(path: str, mtime: int = 1) -> Entry:
    return Entry(path, FileType.DIRECTORY, 0o755, mtime=mtime)


def file(path: str, content: str = "x", link: str = "", mode: int = 0o644) -> Entry:
    return Entry(path, FileType.FILE, mode, size=len(content), sha256=content * 64, link=link)


def toc(*entries: Entry) -> Toc:
    return Toc.of([directory("/"), *entries])


BASE = toc(
    directory("/d"), file("/d/a"), file("/d/b"), directory("/e"), file("/e/l1", link="l"), file("/e/l2", link="l")
)
OPEN = Entry("/d", FileType.DIRECTORY, 0o755, mtime=1, xattrs=(OPAQUE,))

CASES = {
    "nothing": (BASE, ()),
    "a file is added": (
        toc(*BASE.entries[1:], file("/n")),
        (directory("/"), file("/n")),
    ),
    "a mode changes": (
        toc(directory("/d"), file("/d/a", mode=0o600), *BASE.entries[3:]),
        (directory("/"), directory("/d"), file("/d/a", mode=0o600)),
    ),
    "one of two files goes": (
        toc(directory("/d"), file("/d/b"), *BASE.entries[4:]),
        (directory("/"), directory("/d"), whiteout("/d/a")),
    ),
    "all files of a directory go": (toc(directory("/d"), *BASE.entries[4:]), (directory("/"), OPEN)),
    "a directory goes": (toc(*BASE.entries[4:]), (directory("/"), whiteout("/d"))),
    "a directory becomes a file": (toc(file("/d"), *BASE.entries[4:]), (directory("/"), file("/d"))),
    "a hard link is changed under one name and takes the others along": (
        toc(*BASE.entries[1:4], directory("/e"), file("/e/l1", "y", "l"), file("/e/l2", "y", "l")),
        (directory("/"), directory("/e"), file("/e/l1", "y", "/e/l1"), file("/e/l2", "y", "/e/l1")),
    ),
    "a third name joins": (
        toc(*BASE.entries[1:], file("/z", link="/e/l1")),
        (
            directory("/"),
            directory("/e"),
            file("/e/l1", link="/e/l1"),
            file("/e/l2", link="/e/l1"),
            file("/z", link="/e/l1"),
        ),
    ),
    "two names stop being one file": (
        toc(*BASE.entries[1:4], directory("/e"), file("/e/l1"), file("/e/l2")),
        (directory("/"), directory("/e"), file("/e/l2")),
    ),
    "one name of two goes and the other needs nothing": (
        toc(*BASE.entries[1:4], directory("/e"), file("/e/l1")),
        (directory("/"), directory("/e"), whiteout("/e/l2")),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_holds(case: str) -> None:
    new, wanted = CASES[case]
    assert members(BASE, new) == wanted


def test_an_untouched_name_follows_the_file_that_was_changed_under_another() -> None:
    touched = file("/e/l1", "y", "upper 7")
    upper = Upper((directory("/"), directory("/e"), touched), indexed=(Indexed(42, file("/index", "y", "upper 7")),))
    found = merged(BASE, upper, {42: ["/e/l1", "/e/l2"]}).by_path()
    assert found["/e/l1"] == file("/e/l1", "y", "/e/l1")
    assert found["/e/l2"] == file("/e/l2", "y", "/e/l1")


def test_a_directory_beside_one_with_a_longer_name_is_hidden_alone() -> None:
    base = toc(directory("/d"), file("/d/a"), file("/d-x"), file("/d0"))
    upper = Upper((directory("/"), whiteout("/d")))
    assert set(merged(base, upper, {}).by_path()) == {"/", "/d-x", "/d0"}


PATHS = ("/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f", "/a-b", "/e\udcff")


@st.composite
def trees(draw: st.DrawFn) -> Toc:
    found: dict[str, Entry] = {"/": directory("/")}
    for path in sorted(PATHS):
        above = found.get(path.rpartition("/")[0] or "/")
        kind = draw(st.sampled_from("-df"))
        if above is None or above.type is not FileType.DIRECTORY or kind == "-":
            continue
        if kind == "d":
            found[path] = directory(path, draw(st.integers(1, 2)))
        else:
            group = draw(st.sampled_from(["", "p", "q"]))
            found[path] = file(path, group or draw(st.sampled_from("xy")), group)
    return Toc.of(found.values())


@given(old=trees(), new=trees())
def test_a_layer_laid_over_the_old_tree_shows_the_new_one(old: Toc, new: Toc) -> None:
    layer = members(old, new)
    opaque = frozenset(entry.path for entry in layer if OPAQUE in entry.xattrs)
    plain = [Entry(e.path, e.type, e.mode, mtime=e.mtime) if e.type is FileType.DIRECTORY else e for e in layer]
    linked = [e if not e.link else file(e.path, e.sha256[0], f"upper {e.link}") for e in plain]
    seen = merged(old, Upper(tuple(linked), opaque), {})
    assert seen == new
    assert not any(is_whiteout(entry) for entry in seen.entries)


@given(old=trees(), new=trees())
def test_equal_trees_need_no_layer_and_different_ones_do(old: Toc, new: Toc) -> None:
    assert bool(members(old, new)) == (old != new)
