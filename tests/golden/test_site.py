"""What the site has beyond its pages: the leaderboard, formulas, pictures of sets, curves, links to boards and code."""

import importlib
import re
import shlex
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest

from ddbench.cli import root
from ddbench.leaderboard import boards
from ddbench.leaderboard.sheets import wrong_sheets
from ddbench.plugins import GROUPS, listing
from ddbench.runs.record import read_record
from ddbench.runs.resolving import find_method

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))
METHODS = sorted((DOCS / "pages" / "methods").glob("*.md"))
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"(?<![\\$`])\$(?=\S)([^$\n]+?)(?<=\S)\$")


def blocks(page: Path) -> list[str]:
    """The formulas of a page that stand alone."""
    return [
        textwrap.dedent(code) for _, name, code in FENCE.findall(page.read_text(encoding="utf-8")) if name == "math"
    ]


def sentences(page: Path) -> list[str]:
    """The formulas of a page that stand in a sentence."""
    return FORMULA.findall(re.sub(r"`[^`]*`", "", FENCE.sub("", page.read_text(encoding="utf-8"))))


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The site's hooks, with the modules beside them, as mkdocs loads them."""
    for name in ("mkdocs", "math_core"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[docs]'")
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("hooks")


def test_the_site_has_the_page_of_the_committed_records(hooks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str]] = []
    monkeypatch.setattr("mkdocs.structure.files.File.generated", lambda config, path, content: (path, content))
    monkeypatch.setattr(boards, "committed_page", lambda folder, home: asked.append((folder, home)) or "page")
    assert hooks.on_files([], None) == [("board.html", "page")]
    assert asked == [(ROOT / "leaderboards", "index.html")]
    assert "- Leaderboard: board.html" in (DOCS / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_site_links_to_its_repository_where_its_address_is_said(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDBENCH_REPOSITORY", raising=False)
    assert hooks.on_config(SimpleNamespace(extra={})).extra == {}
    monkeypatch.setenv("DDBENCH_REPOSITORY", "https://example.org/ddbench")
    (link,) = hooks.on_config(SimpleNamespace(extra={})).extra["social"]
    assert link["link"] == "https://example.org/ddbench"


def asked_for(page: Path, what: str) -> list[str]:
    """The methods of a page's marker."""
    found = re.findall(rf"^<!-- {what}: (.+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [name for names in found for name in names.split()]


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_the_page_of_a_method_has_its_formula_and_says_what_stands_in_it(page: Path) -> None:
    assert blocks(page)
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block[2] == "math":
            assert FORMULA.search(text[block.end() :].strip().partition("\n\n")[0]), "its symbols are said below it"


def test_every_method_has_a_picture_a_place_for_its_curves_and_links(hooks: ModuleType) -> None:
    import figures

    ours = [plugin.name for plugin in listing(GROUPS["method"]) if plugin.package == "ddbench"]
    shown = [name for name in ours if find_method(f"ddbench/{name}")[1].info.kind != "ceiling"]
    for name in shown:
        assert figures.pictured(name)
    for what, wanted in (("pictures", shown), ("plots", shown), ("links", ours)):
        found = [name for page in METHODS for name in asked_for(page, what)]
        assert sorted(found) == sorted(wanted), what


def test_every_formula_can_be_set() -> None:
    core = pytest.importorskip("math_core", reason="math_core is not installed: pip install -e '.[docs]'")
    converter = core.LatexToMathML(fancy_error=False)
    for page in PAGES:
        for latex in [*blocks(page), *sentences(page)]:
            assert converter.convert_with_local_state(latex, displaystyle=False).startswith("<math")


def test_formulas_become_mathml_and_one_that_is_none_is_named(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods/dm.md"))
    text = '<p>a <span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\\frac{1}{2}\\]</div>'
    made = hooks.on_page_content(text, page, None, None)
    assert re.findall(r"<math[^>]*>", made) == ["<math>", '<math display="block">']
    assert "<mfrac>" in made
    assert "&lt;" in made
    with pytest.raises(hooks.PluginError, match=r"methods/dm\.md: a formula cannot be set: \\nothing"):
        hooks.on_page_content('<span class="arithmatex">\\(\\nothing\\)</span>', page, None, None)


def test_records_of_the_digits_have_the_pictures_beside_them(hooks: ModuleType) -> None:
    import figures

    assert list(wrong_sheets(figures.DIGITS)) == []
    for path in sorted(figures.DIGITS.glob("*.json")):
        run = read_record(path).run
        assert (run.dataset, run.ipc, run.seed, run.preset) == ("digits", 10, 0, "quick")


def test_a_picture_says_what_it_is_of(hooks: ModuleType) -> None:
    import figures

    file, record = figures.pictured("dm", ROOT / "nowhere")
    text = figures.picture_of("dm", "../figures/dm.webp", file, record)
    (part,) = [e for e in record.evaluations if (e.protocol, e.backbone) == ("quick@1", record.run.backbone)]
    accuracy = f"{100 * sum(part.accuracy) / len(part.accuracy):.1f} ± "
    command = "ddbench run --method dm --dataset digits --ipc 10 --seed 0 --preset quick --device cpu"
    for said in ("Digits (UCI, 8x8), ipc 10, seed 0, preset quick", accuracy, "<code>quick@1</code>", command):
        assert said in text
    run = root.get_command(click.Context(root), "run")
    assert run.make_context("run", shlex.split(command)[2:]).params["methods"] == ("dm",)
    file, record = figures.pictured("cafe")
    assert not record.config.values["dsa"], "of two records that of the defaults, however well the other does"
    assert f"ddbench reproduce {record.run.id}" in figures.picture_of("cafe", "cafe.webp", file, record)
    with pytest.raises(ValueError, match=r"python docs/digits\.py whole"):
        figures.pictured("whole", ROOT / "nowhere")


def test_curves_are_drawn_for_both_palettes_and_the_same_each_time(hooks: ModuleType) -> None:
    import figures

    plots = figures.plots_of("mtt")
    assert plots == figures.plots_of("mtt")
    assert [plot.caption.partition(",")[0] for plot in plots] == ["CIFAR-10"] * 2
    assert "44.6 % at 5000" in plots[0].words
    for plot in plots:
        assert list(plot.files) == ["light", "dark"]
        assert figures.THEMES[0].text in plot.files["light"]
        assert figures.THEMES[1].text in plot.files["dark"]
    assert figures.plots_of("random") == []


def test_links_lead_to_the_rows_of_a_method_and_to_its_code(hooks: ModuleType) -> None:
    import figures

    assert figures.source_of("dm") == Path("methods/ddbench_methods/dm.py")
    text = figures.links_of("dm", "../../board.html", "../../source/dm.py.txt")
    assert "../../board.html#dataset=CIFAR-10&amp;ipc=10&amp;protocol=dsa%401&amp;q=dm" in text
    assert '<a href="../../source/dm.py.txt"><code>dm.py</code></a>' in text
    assert "not yet" in figures.links_of("dm", "board.html", "dm.py.txt", ROOT / "nowhere")
