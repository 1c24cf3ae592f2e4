"""The planner: three trees in, steps out. Applying the steps to what a node has gives what it should have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnfsbuild.deliver.livesync.plan import (
    Kind,
    Plan,
    Policy,
    candidates,
    changed_paths,
    differences,
    make_plan,
    operations,
    same,
    without_links,
)
from vnfsbuild.deliver.livesync.skip import ancestors, protection
from vnfsbuild.store.toc import Entry, FileType

Tree = dict[str, Entry]
NOBODY = protection((), ())


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, FileType.DIRECTORY, mode)


def file(path: str, content: str = "a", **more: object) -> Entry:
    return Entry(path, FileType.FILE, 0o644, size=1, sha256=content * 64, **more)  # type: ignore[arg-type]


def tree(*entries: Entry) -> Tree:
    return {entry.path: entry for entry in (directory("/"), *entries)}


def plan(a: Tree, b: Tree, live: Tree, **options: object) -> Plan:
    return make_plan(a, b, live, a.keys() | b.keys() | live.keys(), **({"protected": NOBODY} | options))  # type: ignore[arg-type]


CAP = (("security.capability", b"\x01\0\0\2"),)
DIFFERENCES = (
    ("the same", file("/f"), file("/f"), ()),
    ("only the time", file("/f", mtime=1), file("/f", mtime=2), ()),
    ("only the hard-link group", file("/f", link="/a"), file("/f"), ()),
    ("content", file("/f"), file("/f", "b"), ("content",)),
    ("mode", file("/f"), replace(file("/f"), mode=0o755), ("mode",)),
    ("owner", file("/f"), file("/f", uid=5), ("owner",)),
    ("group", file("/f"), file("/f", gid=5), ("owner",)),
    ("capability gone", file("/f", xattrs=CAP), file("/f"), ("xattrs",)),
    ("a label of the node", file("/f", xattrs=(("security.selinux", b"x"),)), file("/f"), ()),
    ("a user attribute", file("/f", xattrs=(("user.note", b"x"),)), file("/f"), ()),
    ("type", file("/f"), directory("/f"), ("type",)),
    ("link target", Entry("/l", FileType.SYMLINK, target="a"), Entry("/l", FileType.SYMLINK, target="b"), ("target",)),
    ("a link's mode means nothing", Entry("/l", FileType.SYMLINK, 0o777), Entry("/l", FileType.SYMLINK, 0o755), ()),
    ("device", Entry("/d", FileType.CHAR, device=(1, 3)), Entry("/d", FileType.CHAR, device=(1, 5)), ("device",)),
    ("not there", None, file("/f"), ("missing",)),
    ("too much", file("/f"), None, ("added",)),
    ("both not there", None, None, ()),
)


@pytest.mark.parametrize(
    ("live", "target", "expected"), [case[1:] for case in DIFFERENCES], ids=[c[0] for c in DIFFERENCES]
)
def test_differences_name_what_a_node_could_tell(live: Entry, target: Entry, expected: tuple[str, ...]) -> None:
    assert differences(live, target) == expected


def test_what_equals_the_old_version_changes_and_what_does_not_is_drift() -> None:
    a = tree(file("/same"), file("/edited"), file("/gone"), file("/mine"))
    b = tree(file("/same"), file("/edited", "b"), file("/mine", "b"), file("/new"))
    live = a | tree(file("/mine", "c"), file("/local"))
    found = plan(a, b, live)
    assert [(change.path, change.kind) for change in found.changes] == [
        ("/edited", Kind.CHANGE),
        ("/gone", Kind.DELETE),
        ("/new", Kind.ADD),
    ]
    assert [(drift.path, drift.differs) for drift in found.drift] == [("/local", ("added",)), ("/mine", ("content",))]


def test_overwriting_drift_copies_it_away_first() -> None:
    a, live = tree(file("/f")), tree(file("/f", "c"), file("/local"))
    found = plan(a, tree(file("/f", "b")), live, policy=Policy.OVERWRITE)
    assert list(operations(found)) == [("b", "/f"), ("b", "/local"), ("f", "/f"), ("u", "/local")]


def test_a_directory_with_something_of_the_node_stays() -> None:
    a = tree(directory("/d"), directory("/d/e"), file("/d/e/f"), file("/d/e/kept"))
    found = plan(a, tree(), a, protected=protection(["/d/e/kept"], ()), guests=["/d/e/kept"])
    assert [change.path for change in found.changes] == ["/d/e/f"]
    assert not found.drift


def test_a_directory_that_holds_a_mount_does_not_become_a_file() -> None:
    a, b = tree(directory("/d"), directory("/d/m")), tree(file("/d"))
    found = plan(a, b, a, protected=protection((), ["/d/m"]), guests=["/d/m"])
    assert not found.changes
    assert [(drift.path, bool(drift.because)) for drift in found.drift] == [("/d", True)]


def test_nothing_is_put_below_a_directory_that_became_a_link_on_the_node() -> None:
    a, b = tree(directory("/d"), file("/d/f")), tree(directory("/d"), file("/d/f", "b"), file("/d/g"))
    live = tree(Entry("/d", FileType.SYMLINK, target="/elsewhere"))
    found = plan(a, b, live)
    assert not found.changes
    assert [drift.path for drift in found.drift] == ["/d", "/d/f", "/d/g"]


def test_a_new_name_of_a_file_brings_its_other_names() -> None:
    a = tree(file("/x"), file("/y"))
    b = tree(*(file(path, link="/w") for path in ("/w", "/x", "/y")))
    assert [change.path for change in plan(a, b, a).changes] == ["/w", "/x", "/y"]


def test_what_a_cut_off_livesync_left_is_no_drift() -> None:
    a, halfway = tree(file("/f"), file("/g")), tree(file("/f", "b"), directory("/d"), directory("/g"))
    live = tree(file("/f", "b"), directory("/d", 0o700))  # /g was a file and is about to be a directory
    pending = frozenset({"/f", "/d", "/g"})
    for target in (halfway, tree(file("/f", "c"), file("/g", "c"))):
        found = plan(a, target, live, halfway=halfway, pending=pending)
        assert not found.drift
        assert found.changes


def test_a_directory_made_anew_does_not_hide_what_is_missing_in_it() -> None:
    a = tree(directory("/d"), file("/d/f"), directory("/d/e"), file("/d/e/g"))
    assert candidates((), [a], {"/d": True}, {"/d": frozenset({"new"})}) == {"/d", "/d/f", "/d/e", "/d/e/g"}


# ---- properties

NAMES = ("a", "b", "c\n")


@st.composite
def trees(draw: st.DrawFn, under: str = "", depth: int = 3) -> Tree:
    found: Tree = {} if under else {"/": directory("/", draw(st.sampled_from((0o755, 0o700))))}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        path = f"{under}/{name}"
        kind = draw(st.sampled_from(("dir", "file", "file", "link", "fifo")))
        if kind == "dir" and depth > 1:
            found[path] = directory(path, draw(st.sampled_from((0o755, 0o700))))
            found |= draw(trees(under=path, depth=depth - 1))
        elif kind == "link":
            found[path] = Entry(path, FileType.SYMLINK, 0o777, target=draw(st.sampled_from(("a", "/b"))))
        elif kind == "fifo":
            found[path] = Entry(path, FileType.FIFO, 0o644)
        else:
            found[path] = file(path, draw(st.sampled_from("ab")), xattrs=draw(st.sampled_from(((), CAP))))
    return found


def apply(steps: list[tuple[str, str]], live: Tree, target: Tree) -> Tree:
    """What the node-side program does, on a tree; every step must be possible when its turn comes."""
    state = dict(live)
    for letter, path in steps:
        parent = path.rpartition("/")[0] or "/"
        is_dir = path in state and state[path].type is FileType.DIRECTORY
        assert path == "/" or state[parent].type is FileType.DIRECTORY, f"{letter} {path!r}: no parent"
        children = any(other != "/" and (other.rpartition("/")[0] or "/") == path for other in state)
        if letter in "xu":
            assert not is_dir
            del state[path]
        elif letter in "yr":
            assert is_dir
            assert not children, f"{path!r} is not empty"
            del state[path]
        elif letter == "d":
            assert path not in state or is_dir
            state[path] = without_links(target[path])
        elif letter == "f":
            assert not is_dir
            state[path] = without_links(target[path])
    return state


SKIP = st.sets(st.sampled_from(("/a", "/b/a", "/b/b", "/c?/a", "/a/b")), max_size=2)


@settings(max_examples=400, deadline=None)
@given(trees(), trees(), trees(), SKIP, st.sampled_from((Policy.KEEP, Policy.OVERWRITE)))
def test_applying_a_plan_gives_the_target_except_where_it_says_so(
    a: Tree, b: Tree, strange: Tree, skip: set[str], policy: Policy
) -> None:
    """The node has the old version with some top-level entry replaced by another one's."""
    live = {path: entry for path, entry in a.items() if not path.startswith("/a")}
    live |= {path: entry for path, entry in strange.items() if path.startswith("/a")}
    protected = protection(sorted(skip), ())
    among = changed_paths(a, b) | changed_paths(a, live)
    guests = [path for path in live if protected(path)]
    first = make_plan(a, b, live, among, protected=protected, guests=guests, policy=policy)
    after = apply(list(operations(first)), live, b)

    excepted = {drift.path for drift in first.drift}
    for path in live.keys() | b.keys():
        if protected(path):
            assert after.get(path) == live.get(path), "what is the node's was touched"
        elif path in excepted:
            assert same(after.get(path), live.get(path)), "drift was touched"
        elif not same(after.get(path), b.get(path)):
            holds = {above for other in [*guests, *excepted] if other in after for above in ancestors(other)}
            assert path in holds
            assert path not in b
    assert all(path == "/" or after[path.rpartition("/")[0] or "/"].type is FileType.DIRECTORY for path in after)

    again = make_plan(
        b, b, after, among, protected=protected, guests=[path for path in after if protected(path)], policy=policy
    )
    assert not again.changes
    if policy is Policy.KEEP:
        assert {drift.path for drift in again.drift} == excepted


@settings(max_examples=200, deadline=None)
@given(trees(), trees(), st.data())
def test_a_plan_cut_off_anywhere_is_finished_by_the_next(a: Tree, b: Tree, data: st.DataObject) -> None:
    first = plan(a, b, a)
    steps = list(operations(first))
    done = steps[: data.draw(st.integers(0, len(steps)))]
    state = apply(done, a, b)
    pending = frozenset(path for _, path in steps)
    second = plan(a, b, state, halfway=b, pending=pending)
    assert not second.drift
    after = apply(list(operations(second)), state, b)
    assert all(same(after.get(path), b.get(path)) for path in after.keys() | b.keys())
