"""Recipes: merging, and errors that name file, line and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from vnfsbuild import recipe
from vnfsbuild.errors import NotFound, RecipeError
from vnfsbuild.recipe import Phase

BASE = """\
[distro]
id = "debian"
suite = "bookworm"

[packages]
include = ["systemd-sysv", "apt", "nano"]

[boot]
cmdline = "quiet"
"""

COMPUTE = """\
name = "compute"
extends = ["base.toml"]

[packages]
include = ["openssh-server", "-nano"]
groups = ["ib"]

[groups.ib]
include = ["rdma-core"]

[[hook]]
phase = "post"
script = "touch /x"
env = { B = "2", A = "1" }

[boot]
cmdline = "console=ttyS0"

[budget]
size = "400M"
"""


def write(tmp_path: Path, text: str = COMPUTE, base: str = BASE) -> Path:
    (tmp_path / "base.toml").write_text(base)
    path = tmp_path / "compute.toml"
    path.write_text(text)
    return path


def test_lists_append_a_dash_takes_out_and_scalars_are_replaced(tmp_path: Path) -> None:
    got = recipe.load(write(tmp_path))
    assert got.packages == ("systemd-sysv", "apt", "openssh-server", "rdma-core")
    assert got.boot.cmdline == "console=ttyS0"
    assert (got.distro.id, got.distro.suite, got.distro.arch) == ("debian", "bookworm", "amd64")
    assert got.hooks[0].phase is Phase.POST
    assert got.hooks[0].env == (("A", "1"), ("B", "2"))
    assert got.budget == 400 << 20


def test_a_dash_takes_out_a_directory_that_another_file_copies(tmp_path: Path) -> None:
    for name in ("base/overlay", "site/overlay"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "base/b.toml").write_text(BASE + '[files]\ncopy = ["overlay"]\n')
    path = tmp_path / "site/s.toml"
    path.write_text('extends = ["../base/b.toml"]\n[files]\ncopy = ["-../base/overlay", "overlay"]\n')
    assert recipe.load(path).files == (tmp_path / "site/overlay",)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ('[packages]\ninclude = ["-nanoo"]\n', 3, "packages.include has no nanoo to take out", "did you mean -nano?"),
        ('[packages]\n\ninclude = ["x", "-x"]\n', 4, "packages.include has no x to take out", "nothing that it"),
        ('[groups.ib]\ninclude = ["-x"]\n', 3, "groups.ib.include has no x to take out", "nothing that it"),
    ],
)
def test_a_dash_that_takes_nothing_out_is_an_error(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    path = write(tmp_path, 'extends = ["base.toml"]\n' + text)
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    assert caught.value.message == f"{path}:{line}: {message}"
    assert hint in caught.value.hint


def test_extends_is_looked_for_beside_the_file_then_in_the_search_path(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "base").mkdir(parents=True)
    (elsewhere / "base" / "d.toml").write_text(BASE)
    path = tmp_path / "a.toml"
    path.write_text('extends = ["base/d.toml"]\n')
    assert recipe.load(path, search=[elsewhere]).packages == ("systemd-sysv", "apt", "nano")
    with pytest.raises(RecipeError, match=r"a\.toml:1: extends base/d\.toml"):
        recipe.load(path)


WRONG = [
    # text, line, words of the message, words of the hint
    ('nmae = "x"\n', 1, "unknown key nmae", "name"),
    ('name = "x"\n[packages]\nincldue = []\n', 3, "unknown key packages.incldue", "include"),
    ("[packages]\ninclude = 3\n", 2, "packages.include must be a list of strings", ""),
    ('[packages]\nrecommends = "yes"\n', 2, "packages.recommends must be true or false, not a string", ""),
    ("[packages]\n\ninclude = [1]\n", 3, "packages.include must be a list of strings", ""),
    ('hook = "x"\n', 1, "hook must be an array of tables", ""),
    ('[[hook]]\nphase = "post"\nscrpt = "x"\n', 3, "unknown key hook.scrpt", "script"),
    ('distro = "debian"\n', 1, "distro must be a table", ""),
]


@pytest.mark.parametrize(("text", "line", "message", "hint"), WRONG)
def test_a_wrong_key_or_type_names_file_line_and_nearest_key(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


VALUES = [
    ('[[hook]]\nphase = "later"\nscript = "x"', "hook.phase"),
    ('[[hook]]\nphase = "post"', "needs run"),
    ('[[hook]]\nphase = "post"\nrun = "a"\nscript = "b"', "and not both"),
    ('[packages]\ngroups = ["gpu"]', "is no group"),
    ('[state]\nmode = "hybrid"', "state.mode"),
    ('[budget]\nsize = "big"', "budget.size"),
    ('[files]\ncopy = ["nowhere"]', "not a directory"),
    ('[packages]\nlocal = ["*.deb"]', "no file is there"),
    ('[[repo]]\nuri = "http://x"', "lacks suite"),
]


@pytest.mark.parametrize(("text", "message"), VALUES)
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.load(write(tmp_path, f'extends = ["base.toml"]\n{text}\n'))


LINES = [
    ('[[hook]]\nphase = "post"\nrun = "a"\n[[hook]]\nphase = "later"\nrun = "b"', 6, "hook.phase is 'later'"),
    ('[[hook]]\nphase = "post"\nrun = "a"\n[[hook]]\nphase = 3\nrun = "b"', 6, "hook.phase must be a string"),
    ('[state]\nprofile = "stateless"\nmode = "hybrid"', 4, "state.mode"),
    ('[budget]\nsize = "big"', 3, "budget.size"),
    ('[[repo]]\nuri = "http://x"\nsuite = "s"\ncomponents = ["c"]\nkey = "none.asc"', 6, "no file is there"),
    ("[budget", 2, "not TOML"),
]


@pytest.mark.parametrize(("text", "line", "message"), LINES)
def test_a_value_that_cannot_be_is_named_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path, f'extends = ["base.toml"]\n{text}\n')
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(path)
    assert caught.value.message.startswith(f"{path}:{line}: ")


def test_bad_toml_a_name_that_is_none_a_missing_distro_and_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"compute.toml:1: not TOML"):
        recipe.load(write(tmp_path, "= 1"))
    with pytest.raises(RecipeError, match="capsule name"):
        recipe.load(write(tmp_path, 'name = "Big Name"\nextends = ["base.toml"]'))
    with pytest.raises(RecipeError, match=r"distro\.id is missing"):
        recipe.load(write(tmp_path, 'name = "x"'))
    with pytest.raises(RecipeError, match="extends itself"):
        recipe.load(write(tmp_path, 'extends = ["compute.toml"]'))
    with pytest.raises(NotFound):
        recipe.load(tmp_path / "none.toml")


def test_only_what_influences_resolution_makes_a_lock_stale(tmp_path: Path) -> None:
    one = recipe.load(write(tmp_path))
    other = recipe.load(write(tmp_path, COMPUTE.replace("console=ttyS0", "console=tty0")))
    third = recipe.load(write(tmp_path, COMPUTE.replace("rdma-core", "ibverbs-utils")))
    assert one.inputs == other.inputs != third.inputs
    assert one.digest != other.digest


def test_the_digest_does_not_depend_on_where_the_recipe_lies(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        digests.add(recipe.load(write(tmp_path / name)).digest)
    assert len(digests) == 1


def test_a_lock_stays_good_when_recipe_and_keys_move_together_and_not_when_a_key_changes(tmp_path: Path) -> None:
    text = COMPUTE + '\n[[repo]]\nuri = "http://x.invalid"\nsuite = "s"\ncomponents = ["main"]\nkey = "site.asc"\n'
    inputs = []
    for name, key in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "site.asc").write_text(key)
        inputs.append(recipe.load(write(tmp_path / name, text)).inputs)
    assert inputs[0] == inputs[1] != inputs[2]
