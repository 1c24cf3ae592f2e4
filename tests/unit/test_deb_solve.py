"""The solver: complete, free of conflicts, in apt's order, and able to say why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.aptrepo import Deb, packages_text
from vnfsbuild.errors import ResolveError
from vnfsbuild.family.deb.index import Index
from vnfsbuild.family.deb.solve import closure, solve
from vnfsbuild.family.deb.universe import Universe, pinned


def universe(
    where: Path, *repos: Sequence[Deb], pins: Mapping[str, str] | None = None, recommends: bool = False
) -> Universe:
    indexes = []
    for number, debs in enumerate(repos):
        path = where / f"Packages-{number}"
        path.write_text(packages_text(debs))
        indexes.append(Index(path, f"http://repo{number}"))
    return Universe(indexes, "amd64", recommends=recommends, pins=pins or {})


def names(chosen: Sequence[object]) -> list[str]:
    return [item.name for item in chosen]  # type: ignore[attr-defined]


D = Deb
CASES: list[tuple[str, list[Deb], list[str], list[str]]] = [
    ("a dependency comes along", [D("a", depends="b"), D("b"), D("c")], ["a"], ["a", "b"]),
    ("a circle is no problem", [D("a", depends="b"), D("b", depends="a")], ["a"], ["a", "b"]),
    ("the first alternative is taken", [D("a", depends="b | c"), D("b"), D("c")], ["a"], ["a", "b"]),
    ("an alternative that is asked for is kept", [D("a", depends="b | c"), D("b"), D("c")], ["a", "c"], ["a", "c"]),
    ("a missing alternative is passed over", [D("a", depends="x | c"), D("c")], ["a"], ["a", "c"]),
    (
        "an alternative that conflicts is passed over",
        [D("a", depends="b | c"), D("b", conflicts="z"), D("c"), D("z")],
        ["z", "a"],
        ["a", "c", "z"],
    ),
    (
        "a conflict deeper down leads back to the other alternative",
        [D("a", depends="b | c"), D("b", depends="d"), D("d", breaks="z"), D("c"), D("z")],
        ["a", "z"],
        ["a", "c", "z"],
    ),
    (
        "a choice that is given up leaves nothing behind",
        [D("a", depends="b | c"), D("b", depends="d, e"), D("d"), D("e", conflicts="z"), D("c"), D("z")],
        ["a", "z"],
        ["a", "c", "z"],
    ),
    (
        "essential and required packages are always there",
        [D("e", essential=True), D("r", priority="required"), D("a")],
        ["a"],
        ["a", "e", "r"],
    ),
    ("Pre-Depends count", [D("a", pre_depends="b"), D("b")], ["a"], ["a", "b"]),
    ("a provider serves", [D("a", depends="mta"), D("m", provides="mta")], ["a"], ["a", "m"]),
    ("the real package goes before a provider", [D("a", depends="m"), D("x", provides="m"), D("m")], ["a"], ["a", "m"]),
    (
        "a provider of a higher priority is preferred",
        [D("a", depends="v"), D("p", provides="v"), D("q", provides="v", priority="important")],
        ["a"],
        ["a", "q"],
    ),
    ("a versioned provision serves", [D("a", depends="v (>= 2)"), D("p", provides="v (= 2)")], ["a"], ["a", "p"]),
    ("a virtual package with one provider may be asked for", [D("p", provides="v")], ["v"], ["p"]),
    (
        "conflicting with what one provides is no conflict with oneself",
        [D("p", provides="v", conflicts="v")],
        ["p"],
        ["p"],
    ),
    (
        "an unversioned provision has no versioned conflict",
        [D("p", provides="v"), D("a", conflicts="v (<< 2)")],
        ["a", "p"],
        ["a", "p"],
    ),
    (
        "name:any is that package",
        [D("a", depends="b:any"), D("b", extra={"Multi-Arch": "allowed"}, arch="amd64")],
        ["a"],
        ["a", "b"],
    ),
    ("another architecture is not for us", [D("a", arch="i386", version="9"), D("a", version="1")], ["a"], ["a"]),
]


@pytest.mark.parametrize(("debs", "wanted", "result"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_choice(tmp_path: Path, debs: list[Deb], wanted: list[str], result: list[str]) -> None:
    assert names(solve(universe(tmp_path, debs), wanted)) == result


FAILURES: list[tuple[str, list[Deb], list[str], list[str]]] = [
    (
        "too old",
        [D("slurmd", depends="munge (>= 9)"), D("munge", "0.5.15")],
        ["slurmd"],
        ["slurmd 1.0 needs munge (>= 9)", "only munge 0.5.15 exists", "slurmd is wanted by the recipe"],
    ),
    (
        "missing at the end of a chain",
        [D("a", depends="b"), D("b", depends="c"), D("c", depends="nowhere")],
        ["a"],
        ["c 1.0 needs nowhere, and there is no nowhere", "b 1.0 needs c", "a 1.0 needs b", "a is wanted by the recipe"],
    ),
    (
        "conflict",
        [D("a", conflicts="b"), D("b")],
        ["a", "b"],
        ["a 1.0 conflicts with b", "a is wanted by the recipe", "b is wanted by the recipe"],
    ),
    (
        "every alternative fails",
        [D("a", depends="b | c"), D("b", depends="x"), D("c", conflicts="a")],
        ["a"],
        ["b 1.0 needs x, and there is no x", "c 1.0 conflicts with a", "a 1.0 needs b or c"],
    ),
    (
        "conflict with the base",
        [D("e", essential=True), D("a", conflicts="e")],
        ["a"],
        ["a 1.0 conflicts with e", "e is wanted by the base system"],
    ),
    ("unversioned provision", [D("a", depends="v (>= 2)"), D("p", provides="v")], ["a"], ["only by p 1.0"]),
]


@pytest.mark.parametrize(
    ("debs", "wanted", "says"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES]
)
def test_why_not_is_said_in_words(tmp_path: Path, debs: list[Deb], wanted: list[str], says: list[str]) -> None:
    with pytest.raises(ResolveError) as caught:
        solve(universe(tmp_path, debs), wanted)
    for words in says:
        assert words in caught.value.message


def test_an_unknown_package_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ResolveError, match="there is no package openssh-sever") as caught:
        solve(universe(tmp_path, [Deb("openssh-server"), Deb("opensm")]), ["openssh-sever"])
    assert "openssh-server" in caught.value.hint


def test_a_virtual_package_with_several_providers_has_to_be_chosen(tmp_path: Path) -> None:
    debs = [Deb("exim", provides="mta"), Deb("postfix", provides="mta")]
    with pytest.raises(ResolveError, match="virtual package, provided by exim, postfix"):
        solve(universe(tmp_path, debs), ["mta"])


def test_the_highest_version_of_all_repositories_wins_and_equal_ones_come_from_the_first(tmp_path: Path) -> None:
    main = [Deb("a", "1.0"), Deb("b", "1.0")]
    security = [Deb("a", "1.0+deb12u1"), Deb("b", "1.0")]
    a, b = solve(universe(tmp_path, main, security), ["a", "b"])
    assert (a.version, b.url) == ("1.0+deb12u1", "http://repo0/pool/b_1.0_all.deb")
    assert a.url.startswith("http://repo1/")


def test_a_pin_takes_that_version(tmp_path: Path) -> None:
    wanted, pins = pinned(["a=1.0"])
    main, security = [Deb("a", "1.0")], [Deb("a", "2.0")]
    assert solve(universe(tmp_path, main, security, pins=pins), wanted)[0].version == "1.0"
    wanted, pins = pinned(["a=3"])
    with pytest.raises(ResolveError, match=r"a=3, and only 2\.0, 1\.0 exist"):
        solve(universe(tmp_path, main, security, pins=pins), wanted)


def test_recommends_come_when_asked_for_and_are_left_out_when_they_cannot(tmp_path: Path) -> None:
    debs = [Deb("a", recommends="b, gone, c"), Deb("b"), Deb("c", depends="gone")]
    assert names(solve(universe(tmp_path, debs), ["a"])) == ["a"]
    assert names(solve(universe(tmp_path, debs, recommends=True), ["a"])) == ["a", "b"]


def test_the_closure_of_essential_packages_is_what_they_need_and_no_more(tmp_path: Path) -> None:
    debs = [Deb("e", essential=True, depends="f | g"), Deb("f", depends="h"), Deb("g"), Deb("h"), Deb("a")]
    world = universe(tmp_path, debs)
    assert closure(world, ["e"], solve(world, ["a"])) == {"e", "f", "h"}


NAMES = [f"p{number}" for number in range(10)]


@st.composite
def repositories(draw: st.DrawFn) -> list[Deb]:
    words = st.lists(st.sampled_from([*NAMES, "v1", "v2"]), min_size=1, max_size=2, unique=True)
    groups = st.lists(words.map(" | ".join), max_size=3).map(", ".join)
    conflict = st.lists(st.sampled_from(NAMES), max_size=1).map(", ".join)
    return [
        Deb(
            name,
            depends=draw(groups),
            conflicts=draw(conflict),
            provides=", ".join(draw(st.lists(st.sampled_from(["v1", "v2"]), max_size=1))),
        )
        for name in NAMES
    ]


def is_solution(debs: Mapping[str, Deb], chosen: frozenset[str]) -> bool:
    """An independent judge, by the letter of the policy; unversioned relations only."""
    provided = {word for name in chosen for word in (name, debs[name].provides) if word}
    for name in chosen:
        for group in filter(None, debs[name].depends.split(", ")):
            if not provided & set(group.split(" | ")):
                return False
        for other in chosen - {name}:
            if debs[name].conflicts in {other, debs[other].provides} - {""}:
                return False
    return True


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(repositories(), st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
def test_an_answer_is_closed_and_free_of_conflicts_and_no_answer_means_there_is_none(
    tmp_path: Path, debs: list[Deb], wanted: list[str]
) -> None:
    known = {deb.name: deb for deb in debs}
    try:
        chosen = frozenset(names(solve(universe(tmp_path, debs), wanted)))
    except ResolveError:
        every = (frozenset(n for i, n in enumerate(NAMES) if bits >> i & 1) for bits in range(1 << len(NAMES)))
        assert not any(set(wanted) <= some and is_solution(known, some) for some in every)
    else:
        assert set(wanted) <= chosen
        assert is_solution(known, chosen)
