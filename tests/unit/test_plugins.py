"""Real discovery, with packages planted in a folder on the path."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ddbench import plugins
from ddbench.backbones.names import canonical
from ddbench.errors import DdbenchError, PluginError
from ddbench.evaluation.protocol import protocol
from ddbench.plugins import GROUPS, listing, load, load_object

METHODS = GROUPS["method"]
IDEA = """
from ddbench import Method
from ddbench.initial import INITIALS

class Idea(Method):
    name = "bright-idea"
"""

Plant = Callable[..., None]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Installs a package without an installer: a module, and a dist-info folder that registers names of it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    listing.cache_clear()
    known = set(sys.modules)

    def planted(
        package: str, entries: dict[str, str], code: str, *, group: str = METHODS, version: str = "1.2"
    ) -> None:
        (site / f"{package}.py").write_text(code)
        info = site / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        listing.cache_clear()

    yield planted
    listing.cache_clear()
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_planted_package_is_found_with_name_and_version_and_not_imported(plant: Plant) -> None:
    plant("planted_paper", {"mine": "planted_paper:Mine"}, "raise RuntimeError('imported')")
    (found,) = (plugin for plugin in listing(METHODS) if plugin.name == "mine")
    assert (found.package, found.version, found.provided_by) == ("planted_paper", "1.2", "planted_paper 1.2")
    assert "planted_paper" not in sys.modules


def test_loading_imports_it(plant: Plant) -> None:
    plant("planted_paper", {"mine": "planted_paper:Mine"}, "class Mine: pass")
    loaded = load(METHODS, "mine")
    assert loaded.value is sys.modules["planted_paper"].Mine
    assert (loaded.name, loaded.provided_by, loaded.sha256) == ("mine", "planted_paper 1.2", None)
    assert load(METHODS, "planted_paper/mine").value is loaded.value


def test_the_built_in_methods_are_plugins_like_any_other() -> None:
    assert {"dm", "random", "herding", "k-center", "k-means", "whole"} <= {plugin.name for plugin in listing(METHODS)}
    loaded = load(METHODS, "ddbench/dm")
    assert loaded.value.name == "dm"
    assert loaded.provided_by.startswith("ddbench ")


def test_one_name_from_two_packages_has_to_be_told_apart(plant: Plant) -> None:
    plant("planted_paper", {"dm": "planted_paper:Mine"}, "class Mine: pass")
    with pytest.raises(PluginError) as caught:
        load(METHODS, "dm")
    assert str(caught.value) == (
        "'dm' is provided by ddbench and planted_paper. Say which: ddbench/dm or planted_paper/dm"
    )
    assert load(METHODS, "planted_paper/dm").value.__name__ == "Mine"
    assert load(METHODS, "ddbench/dm").value.__name__ == "DM"


def test_a_broken_plugin_hurts_only_itself(plant: Plant) -> None:
    plant("planted_wreck", {"wreck": "planted_wreck:Wreck"}, "import no_such_module_anywhere")
    plant("planted_paper", {"mine": "planted_paper:Mine", "gone": "planted_paper:Gone"}, "class Mine: pass")
    assert {"wreck", "mine", "dm"} <= {plugin.name for plugin in listing(METHODS)}
    with pytest.raises(PluginError, match=r"method 'wreck' of planted_wreck 1.2 does not import: ModuleNotFoundError"):
        load(METHODS, "wreck")
    with pytest.raises(PluginError, match=r"method 'gone' of planted_paper 1.2 does not import: AttributeError"):
        load(METHODS, "gone")
    assert load_object(METHODS, "mine").__name__ == "Mine"


@pytest.mark.parametrize("group", [*GROUPS.values(), plugins.TRAINERS])
def test_every_group_works_alike(plant: Plant, group: str) -> None:
    plant("planted_paper", {"mine": "planted_paper:value"}, "value = 7", group=group)
    assert load_object(group, "mine") == 7
    assert "mine" in [plugin.name for plugin in listing(group)]


def test_a_package_that_is_on_the_path_twice_is_listed_once(
    plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant("planted_paper", {"mine": "planted_paper:value"}, "value = 7")
    again = tmp_path / "again" / "planted_paper-1.1.dist-info"
    again.mkdir(parents=True)
    (again / "METADATA").write_text("Metadata-Version: 2.1\nName: planted_paper\nVersion: 1.1\n")
    (again / "entry_points.txt").write_text(f"[{METHODS}]\nmine = planted_paper:value\n")
    monkeypatch.syspath_prepend(str(again.parent))
    sys.path.append(sys.path.pop(0))
    listing.cache_clear()
    assert [plugin.version for plugin in listing(METHODS) if plugin.name == "mine"] == ["1.2"]


def test_an_unknown_name_suggests_a_neighbour() -> None:
    with pytest.raises(PluginError) as caught:
        load(METHODS, "herdin")
    assert str(caught.value) == (
        "there is no method 'herdin'. Did you mean 'herding'? `ddbench list methods` shows what there is."
    )


def test_without_an_install_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    listing.cache_clear()
    try:
        with pytest.raises(PluginError, match=r"ddbench is not installed, so no method can be found. Run: pip install"):
            load(METHODS, "dm")
    finally:
        listing.cache_clear()


def test_a_method_comes_from_a_file_with_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "idea.py"
    path.write_text(IDEA)
    by_class, alone = load(METHODS, f"{path}:Idea"), load(METHODS, str(path))
    assert by_class.value is alone.value
    assert (by_class.name, by_class.provided_by) == ("bright-idea", "idea.py")
    assert by_class.sha256 == hashlib.sha256(IDEA.encode()).hexdigest()


def test_an_edited_file_is_another_method(tmp_path: Path) -> None:
    path = tmp_path / "idea.py"
    path.write_text(IDEA)
    first = load(METHODS, str(path))
    path.write_text(IDEA.replace("bright", "brighter"))
    second = load(METHODS, str(path))
    assert (first.name, second.name) == ("bright-idea", "brighter-idea")
    assert first.sha256 != second.sha256


def test_two_files_of_one_name_are_two_methods(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "idea.py").write_text(IDEA)
    values = [load(METHODS, str(tmp_path / folder / "idea.py")).value for folder in ("one", "two")]
    assert values[0] is not values[1]


@pytest.mark.parametrize(
    ("code", "ref", "why"),
    [
        (IDEA, "idea.py:Thought", "idea.py has no 'Thought'"),
        (IDEA.replace("(Method)", ""), "idea.py", r"say which of the file's methods is meant \(none\)"),
        (IDEA + "\nclass Other(Method): pass\n", "idea.py", r"is meant \(Idea, Other\), as in .*idea.py:NAME"),
        ("import no_such_module_anywhere", "idea.py", "does not import: ModuleNotFoundError"),
        ("class", "idea.py", "does not import: SyntaxError"),
        (IDEA, "other.py", "there is no file .*other.py"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, code: str, ref: str, why: str) -> None:
    (tmp_path / "idea.py").write_text(code)
    with pytest.raises(PluginError, match=why):
        load(METHODS, str(tmp_path / ref))


@pytest.mark.parametrize(
    ("look_up", "file"),
    [
        (lambda: load(METHODS, "mine"), "mine.py"),
        (lambda: load("ddbench.backbones", "mine"), "mine.py"),
        (lambda: canonical("mine"), "mine.py"),
        (lambda: protocol("mine"), "mine.toml"),
    ],
)
def test_a_name_that_a_file_here_has_is_told_how_to_say_the_file(
    look_up: Callable[[], object], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DdbenchError, match=r"there is no .* 'mine'") as without:
        look_up()
    (tmp_path / file).write_text("")
    with pytest.raises(DdbenchError, match=r"there is no .* 'mine'") as beside:
        look_up()
    hint = f"To name the file {file} here, say ./{file}. "
    assert (hint in str(without.value), hint in str(beside.value)) == (False, True)


def test_a_file_that_is_not_there_is_looked_for_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError, match=f"there is no file other.py in {tmp_path}\\."):
        load(METHODS, "./other.py")


def test_a_file_that_failed_can_be_repaired(tmp_path: Path) -> None:
    path = tmp_path / "idea.py"
    path.write_text(IDEA + "\nraise RuntimeError('not yet')\n")
    with pytest.raises(PluginError, match=r"not yet"):
        load(METHODS, str(path))
    path.write_text(IDEA)
    assert load(METHODS, str(path)).name == "bright-idea"


def test_a_file_may_hold_any_object(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("def tiny(shape, classes):\n    return shape, classes\n")
    assert load_object(GROUPS["backbone"], f"{tmp_path / 'nets.py'}:tiny")((1, 8, 8), 3) == ((1, 8, 8), 3)
