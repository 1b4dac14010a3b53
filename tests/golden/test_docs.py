"""The pages against the code: generated parts, links, commands, names, and the examples that strangers copy."""

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, pstdev
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from ddbench import Rng, SyntheticSet, Variables
from ddbench.backbones import build
from ddbench.cli import root
from ddbench.config import Layer, parse_assignments, read_settings, resolve
from ddbench.data.catalogue import CATALOGUE
from ddbench.data.sources import load
from ddbench.evaluation.plan import plan
from ddbench.evaluation.protocol import PROTOCOLS, protocol
from ddbench.leaderboard.published import read_published
from ddbench.plugins import GROUPS, listing
from ddbench.runs.resolving import find_method, foresee
from ddbench.sweep.grid import expand, read_sweep
from ddbench.testing import contract

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))
READMES = [ROOT / "README.md", ROOT / "methods" / "README.md"]
EXAMPLE = DOCS / "examples" / "idea.py"
PACKAGE = DOCS / "examples" / "package"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(code) for _, name, code in found if name == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every ddbench command of a page's shell blocks."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "ddbench":
                    yield words[1:]


def parsed(arguments: list[str]) -> click.Context:
    """The context of the innermost command; click raises for whatever it does not understand."""
    context = root.make_context("ddbench", list(arguments), terminal_width=100)
    while isinstance(context.command, click.Group) and (rest := [*context._protected_args, *context.args]):
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context


COMMANDS = [(page, arguments) for page in [*PAGES, *READMES] for arguments in commands(page)]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_generated_part_is_what_the_code_gives(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the command says which file is not, and writes nothing."""
    absent = DOCS / "examples" / "absent.py"
    monkeypatch.setattr(generate, "COPIES", generate.COPIES | {absent: EXAMPLE})
    result = CliRunner().invoke(generate.main, ["--check"])
    said = "docs/examples/absent.py is behind the code. Run: python docs/generate.py\n"
    assert (result.exit_code, result.stderr) == (1, said), "Run: python docs/generate.py"
    assert not absent.exists()


def test_fidelity_sets_records_beside_the_same_recipe_or_names_the_other(generate: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "records", tmp_path / "cifar10")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in generate.fidelity("cifar10", tmp_path).splitlines()
    ]
    (whole,) = [row for row in rows if row[0] == "`whole`"]
    assert whole[1:3] == ["all", "`full@1`"]
    accuracy = json.loads((tmp_path / "cifar10" / "whole.json").read_text())["evaluations"][0]["accuracy"]
    gap = 100 * sum(accuracy) / len(accuracy) - 84.8
    assert whole[7:] == ["84.8 ± 0.1", "`full`", f"{gap:+.1f}", f"{abs(gap) / 0.1:.1f}"]
    (random,) = [row for row in rows if row[0] == "`random`" and row[2] == "`dsa@1`"]
    assert random[4] == "JPEG copy"
    assert random[7:9] == ["26.0 ± 1.2", "`dc`"]
    assert random[10] == "–"  # another recipe has no distance in standard deviations
    judged_by_resnet = [row for row in rows if row[3] == "`resnet18`" and row[0].startswith("`dm")]
    assert judged_by_resnet
    assert all(row[7:] == ["–"] * 4 for row in judged_by_resnet)
    assert generate.fidelity("cifar10", tmp_path / "none") == "There are no records yet."


def test_cafe_with_dsa_stands_beside_its_own_numbers(generate: ModuleType, tmp_path: Path) -> None:
    """Papers count the two as two methods; here one is an option of the other."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name, dsa in (("cafe", False), ("cafe-dsa", True)):
        record = json.loads((ROOT / "tests" / "golden" / "records" / "dm-s0.json").read_text())
        record.pop("checksum", None)
        record["run"] |= {"method": "cafe", "title": "Aligning Features", "id": "0000000" + str(int(dsa))}
        record["config"] = {"values": {"dsa": dsa}, "sources": {"dsa": "--set" if dsa else "default"}}
        record["synthetic"]["sha256"] = ("1" if dsa else "0") * 64
        (folder / f"{name}.json").write_text(json.dumps(record))
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.strip("|").split("|")]
        for line in generate.fidelity("cifar10", tmp_path).splitlines()
        if "`dsa@1`" in line and "`convnet-d3`" in line
    }
    # Nobody has published CAFE under dsa@1, nor CAFE+DSA under any other protocol.
    assert rows["`cafe [dsa=false]`"][7:9] == ["46.3 ± 0.6", "`cafe`"]
    assert rows["`cafe [dsa=true]`"][7:9] == ["50.9 ± 0.5", "`dsa`"]
    table = generate.side_by_side("cifar10", "CIFAR-10,_JPEG_copy", "dsa@1", "convnet-d3", tmp_path)
    assert {line.split("|")[1].strip() for line in table.splitlines()[2:]} == {"`cafe`", "`cafe+dsa`"}


def test_methods_that_the_readme_says_have_no_record_have_none(generate: ModuleType) -> None:
    (said,) = re.findall(r"not yet on the board, ([^.]*)\.", (ROOT / "README.md").read_text(encoding="utf-8"))
    ours = {plugin.name for plugin in listing(GROUPS["method"]) if plugin.package == "ddbench"}
    recorded = {json.loads(path.read_text())["run"]["method"] for path in generate.RECORDS.rglob("*.json")}
    assert {name.lower() for name in re.split(r", | and ", said)} == ours - recorded


def test_differences_of_more_than_two_deviations_are_explained(generate: ModuleType) -> None:
    """Each row of the table has an item that names its method, and its budget or its judge."""
    page = (DOCS / "pages" / "reference" / "fidelity.md").read_text(encoding="utf-8")
    items = page.partition("## Where a difference exceeds two standard deviations")[2].split("\n- ")[1:]
    for line in generate.fidelity("cifar10").splitlines()[2:]:
        method, ipc, _, judge, *_, deviations = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if deviations == "–" or float(deviations) <= 2:
            continue
        name = method.split()[0]
        about = re.compile(rf"ipc\s{ipc}\b|`{judge}`" if ipc != "all" else "")
        assert any(about.search(item) for item in items if item.startswith(f"`{name}`")), line


# Accuracies in the prose that no record and no file of docs/measured has: of the digits, and standard errors.
ELSEWHERE = {
    "mtt.md": {"88.7 ± 1.9", "68.5 ± 4.1"},
    "ncfm.md": {"14.8 ± 2.1", "15.3 ± 2.3", "15.4 ± 2.5", "16.1 ± 2.5", "15.7 ± 2.3", "2.3 ± 3.1"},
    "rded.md": {"0.03 ± 0.09"},
    "fidelity.md": {"16.37 ± 0.07", "16.22 ± 0.07", "44.1 ± 0.25"},
}
MEASURED = ("## DM at its published settings, ipc 10", "## CAFE", "## Labels and the methods that lead")


def test_accuracies_in_the_prose_are_those_of_the_records(generate: ModuleType) -> None:
    """They move with every set that is added: a mean ± a deviation that nothing gives is stale."""
    groups = [e["accuracy"] for path in generate.RECORDS.rglob("*.json") for e in evaluations(path) if e["accuracy"]]
    groups += [e["accuracy"] for e in evaluations(DOCS / "measured" / "labels-h200.json")]
    factors = json.loads((DOCS / "measured" / "cafe-factors.json").read_text())
    groups += [accuracy for run in factors["runs"] for accuracy in run["accuracy"].values()]
    given = [(fmean(group), pstdev(group)) for group in groups]
    for folder in generate.RECORDS.iterdir():
        given += [(row["mean"], row["sd"]) for row in generate._measured(folder.name, generate.RECORDS)]
    published = read_published()
    printed = {f"{a} ± {s}" for a, s in zip(published["accuracy"], published["spread"], strict=True)}
    pages = {page.name: generate.BLOCK.sub("", prose(page)) for page in (DOCS / "pages" / "methods").glob("*.md")}
    reference = DOCS / "pages" / "reference"
    pages["fidelity.md"] = generate.BLOCK.sub("", prose(reference / "fidelity.md"))
    sections = re.split(r"^(?=## )", prose(reference / "measured.md"), flags=re.MULTILINE)
    pages["measured.md"] = "".join(section for section in sections if section.startswith(MEASURED))
    assert sum(section.startswith(MEASURED) for section in sections) == len(MEASURED)
    unknown: dict[str, set[str]] = {}
    for name, text in pages.items():
        for said in re.findall(r"\d+\.\d+ ± \d+\.\d+", re.sub(r"\s+", " ", text)):
            mean, deviation = (float(part) / 100 for part in said.split(" ± "))
            close = any(abs(mean - m) < 5.05e-4 and abs(deviation - d) < 5.05e-4 for m, d in given)
            if not close and said not in printed:
                unknown.setdefault(name, set()).add(said)
    assert unknown == ELSEWHERE


def evaluations(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
    return found


def test_results_are_those_of_one_copy_protocol_and_judge_best_first(generate: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "records", tmp_path / "cifar10")
    table = generate.results("cifar10", "CIFAR-10,_JPEG_copy", "dsa@1", "convnet-d3", tmp_path)
    assert [line.strip("| ").split(" | ") for line in table.splitlines()] == [
        ["method", "ipc 10"],
        ["---", "---"],
        ["`mtt (tf32)`", "63.1 ± 0.2"],
        ["`dm [iterations=20001]`", "49.1 ± 0.3"],
        ["`dm [iterations=100]`", "40.3 ± 0.2"],
        ["`herding`", "33.3 ± 0.3"],
        ["`random`", "30.6 ± 0.5"],
    ]
    assert generate.results("cifar10", "none", "dsa@1", "convnet-d3", tmp_path).splitlines()[2:] == []


def test_side_by_side_a_method_has_one_row_of_the_fewest_options_set_by_hand(
    generate: ModuleType, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "records", tmp_path / "cifar10")
    table = generate.side_by_side("cifar10", "CIFAR-10,_JPEG_copy", "dsa@1", "convnet-d3", tmp_path)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    # The setting with fewer steps, set by hand, gives way to the preset's, however well it does.
    assert rows == [
        ["`mtt`", "63.1 ± 0.2"],
        ["`dm`", "49.1 ± 0.3"],
        ["`herding`", "33.3 ± 0.3"],
        ["`random`", "30.6 ± 0.5"],
    ]
    for path in (tmp_path / "cifar10").glob("dm-s[01].json"):
        path.unlink()
    alone = generate.side_by_side("cifar10", "CIFAR-10,_JPEG_copy", "dsa@1", "convnet-d3", tmp_path)
    assert "| `dm` | 40.3 ± 0.2 (`iterations=100`) |" in alone


def test_side_by_side_the_whole_dataset_stands_last_and_in_every_column(generate: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "golden" / "records", tmp_path / "cifar10")

    def more(name: str, like: str, change: Callable[[dict[str, Any]], None]) -> None:
        record = json.loads((tmp_path / "cifar10" / f"{like}.json").read_text())
        record.pop("checksum", None)
        change(record)
        (tmp_path / "cifar10" / f"{name}.json").write_text(json.dumps(record))

    common = json.loads((tmp_path / "cifar10" / "random-s0.json").read_text())["evaluations"][0]
    more("ceiling", "whole", lambda r: r["evaluations"][0].update(protocol="dsa@1", digest=common["digest"]))
    mosaics = {"values": {"factor": 2}, "sources": {"factor": "--set"}}
    more("mosaics", "random-s0", lambda r: r.update(config=mosaics, run=r["run"] | {"id": "0" * 8}))
    table = generate.side_by_side("cifar10", "CIFAR-10,_JPEG_copy", "dsa@1", "convnet-d3", tmp_path)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert rows[0] == ["method", "ipc 10"]
    assert [row[0] for row in rows[2:]][-1] == "`whole`"
    assert rows[-1][1] != "–"
    assert {"`random`", "`random mosaics`"} <= {row[0] for row in rows}


def test_a_block_that_was_edited_is_made_anew(generate: ModuleType, tmp_path: Path) -> None:
    page = DOCS / "pages" / "methods" / "dm.md"
    edited = tmp_path / "dm.md"
    edited.write_text(page.read_text().replace("`20001`", "`20000`"))
    assert edited.read_text() != page.read_text()
    assert generate.render(edited) == page.read_text()


@pytest.mark.parametrize(
    "text", ["<!-- generated: options dm -->\n\nnever closed\n", "<!-- generated: rumours -->\n<!-- end -->\n"]
)
def test_a_block_that_cannot_be_made_is_an_error(generate: ModuleType, tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md"):
        generate.render(page)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{target}: there is no {file}"
        if anchor:
            assert anchor in anchors(file), f"{target}: {file.name} has {sorted(anchors(file))}"


def test_the_navigation_has_every_page_once() -> None:
    listed = re.findall(r": (\S+\.md)$", (DOCS / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS / "pages")) for page in PAGES)


def test_the_start_page_has_commands() -> None:
    assert len(list(commands(DOCS / "pages" / "start.md"))) > 10


@pytest.mark.parametrize(("page", "arguments"), COMMANDS, ids=lambda value: getattr(value, "stem", None))
def test_every_command_of_a_page_is_understood(page: Path, arguments: list[str]) -> None:
    try:
        parsed(arguments)
    except click.UsageError as error:
        pytest.fail(f"{page.name}: ddbench {shlex.join(arguments)}: {error.format_message()}")


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    for wrong in (["rum"], ["run", "--methods", "dm"], ["data", "fetch", "cifar10"], ["run", "--ipc", "ten"]):
        with pytest.raises(click.UsageError):
            parsed(wrong)


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    for text in re.findall(r"`ddbench ([a-z][^`]*)`", prose(page)):
        command: click.Command = root
        for word in text.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.list_commands(click.Context(command)), f"ddbench {text}"
            found = command.get_command(click.Context(command), word)
            assert found is not None
            command = found


RUNS = [
    (page, context.params)
    for page, arguments in COMMANDS
    if (context := parsed(arguments)).info_name in ("run", "prepare")
]


@pytest.mark.parametrize(("page", "asked"), RUNS, ids=lambda value: getattr(value, "stem", None))
def test_every_run_of_a_page_names_what_there_is(page: Path, asked: dict[str, Any]) -> None:
    # The reader's own copy of the example, their own images and their own recipe; the package has a test of its own.
    methods = [ref.replace("./idea.py", str(EXAMPLE)) for ref in asked["methods"] if ref != "my-method"]
    own = asked["dataset"] not in CATALOGUE
    requests = expand(
        {"dataset": ["digits" if own else asked["dataset"]], "method": methods, "ipc": asked["ipcs"]},
        parse_assignments(asked["assignments"]),
        protocols=[ref for ref in asked.get("protocols", ()) if not ref.endswith(".toml")],
        judges=[ref for ref in asked.get("judges", ()) if not ref.startswith("./")],
        preset=asked["preset"],
    )
    assert own == (asked["dataset"] == "flowers")
    for request in requests:
        assert foresee(request).method


def test_judges_and_protocols_of_evaluate_commands_exist() -> None:
    found = [context for _, arguments in COMMANDS if (context := parsed(arguments)).info_name == "evaluate"]
    assert found
    for context in found:
        for ref in context.params["refs"]:
            assert protocol(ref).id in PROTOCOLS
        judged = expand({"dataset": ["cifar10"], "method": ["dm"]}, judges=context.params["judges"])
        resolved = foresee(judged[0]).judges  # raises for a name that nothing has
        assert len(resolved) == len(context.params["judges"]) or (resolved and not context.params["judges"])


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_a_page_parses_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddbench"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
    for block in blocks(page, "toml"):
        tomllib.loads(block)


def test_the_protocol_file_of_the_page_is_a_protocol(tmp_path: Path) -> None:
    (text,) = blocks(DOCS / "pages" / "concepts" / "protocol.md", "toml")
    (tmp_path / "long.toml").write_text(text)
    long = protocol(str(tmp_path / "long.toml"))
    assert long.id == "long@1"
    assert long.options.epochs == 3000
    assert long.digest not in {p.digest for p in PROTOCOLS.values()}


def test_the_network_of_the_page_is_a_backbone(tmp_path: Path) -> None:
    (code,) = blocks(DOCS / "pages" / "guides" / "networks-of-your-own.md", "python")
    (tmp_path / "nets.py").write_text(code)
    assert build(f"{tmp_path}/nets.py:small", (1, 8, 8), 10).parameters == 64 * 64 + 64 + 64 * 10 + 10


def names_after(code: str, **names: Any) -> dict[str, Any]:
    """What the code of a page leaves behind, run with these names."""
    exec(compile(code, "page", "exec"), names)
    return names


def test_the_training_step_of_the_page_is_one_of_sgd(tmp_path: Path) -> None:
    code = next(b for b in blocks(DOCS / "pages" / "guides" / "add-a-method.md", "python") if "def trained" in b)
    trained = names_after(code)["trained"]
    problem = contract.problem_for_checks(tmp_path)
    network = problem.backbone.init(problem.rng, "cpu")
    images, labels = problem.real.batch(6, problem.rng)
    one = trained(problem.backbone, network, images, labels, 0.1)
    leaves = {name: value.clone().requires_grad_() for name, value in network.params.items()}
    optimizer = torch.optim.SGD(leaves.values(), 0.1)
    logits, _ = problem.backbone(Variables(leaves, network.buffers), images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    assert all(torch.allclose(one.params[name], value, rtol=0, atol=1e-6) for name, value in leaves.items())
    assert any((one.params[name] - value).abs().max() > 1e-3 for name, value in network.params.items())
    assert not any(value.requires_grad for value in one.params.values())


def test_the_queue_of_the_page_trains_one_network_in_its_place() -> None:
    found = blocks(DOCS / "pages" / "guides" / "add-a-method.md", "python")
    names = names_after("".join(b for b in found if "def trained" in b or "def train_one" in b))
    backbone = build("convnet-d2-w8-bn", (3, 8, 8), 3)
    queue = backbone.init(Rng(0), copies=3)
    before, places = queue.clone(), [tensor.data_ptr() for tensor in queue.params.values()]
    images, labels = torch.randn(6, 3, 8, 8, generator=Rng(1).torch()), torch.arange(6) % 3
    names["train_one"](backbone, queue, torch.tensor(1), images, labels, 0.1)
    expected = names["trained"](backbone, before.copy(1), images, labels, 0.1)
    for part in ("params", "buffers"):
        for name, tensor in getattr(queue, part).items():
            assert torch.equal(tensor[1], getattr(expected, part)[name])
            assert torch.equal(tensor[[0, 2]], getattr(before, part)[name][[0, 2]])
    assert not torch.equal(queue.params["logits.weight"][1], before.params["logits.weight"][1])
    assert [tensor.data_ptr() for tensor in queue.params.values()] == places


def test_the_mosaics_of_the_page_are_seen_as_students_see_them(tmp_path: Path) -> None:
    code = next(b for b in blocks(DOCS / "pages" / "guides" / "add-a-method.md", "python") if "real_mosaics" in b)
    problem = contract.problem_for_checks(tmp_path)
    found = names_after(code, problem=problem)
    assert found["by_class"].shape == (3, 8, 3, 8, 8)
    assert found["labels"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    found["seen"].sum().backward()
    assert found["images"].grad.abs().min() > 0
    exported = SyntheticSet(found["images"].detach(), problem.class_labels(), decode="tiles(factor=2)")
    students = plan(exported, protocol("quick"), problem, problem.rng)
    assert torch.equal(students.images, found["seen"].detach())


def test_the_presets_of_the_page_fit_the_example(tmp_path: Path) -> None:
    text = next(
        block for block in blocks(DOCS / "pages" / "guides" / "add-a-method.md", "toml") if "[[setting]]" in block
    )
    (tmp_path / "my-method.toml").write_text(text)
    settings = read_settings(tmp_path / "my-method.toml")
    _, method = find_method(f"{EXAMPLE}:MyMethod")
    config = resolve("my-method", method.Config, [Layer(s.source, s.options) for s in settings]).config
    assert config.model_dump() == method.Config().model_dump() | {"lr_images": 0.05, "iterations": 50}


@pytest.mark.parametrize("check", contract.checks, ids=lambda check: check.__name__)
def test_the_example_keeps_the_contract(check: contract.Check) -> None:
    check(find_method(f"{EXAMPLE}:MyMethod")[1], {"iterations": 5})


def test_the_example_runs_by_path_and_shares_a_board_with_the_built_in_methods(tmp_path: Path) -> None:
    arguments = ["--method", f"{EXAMPLE}:MyMethod", "--method", "random", "--dataset", "digits", "--ipc", "1"]
    cheap = ["--judge", "mlp", "--students", "1"]
    where = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path), "--device", "cpu", "--quiet"]
    result = CliRunner().invoke(root, ["run", *arguments, *cheap, *where])
    assert result.exit_code == 0, result.output
    titles = [line for line in result.stdout.splitlines() if line.startswith("Digits")]
    assert titles == ["Digits (UCI, 8x8), ipc 1, hard labels, protocol quick@1"]
    ranked = [
        line.split()[1].partition("@")[0].rstrip("§") for line in result.stdout.splitlines() if line[:1].isdigit()
    ]
    assert ranked == ["my-method", "random"], "matching means beats a random image"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stranger's package as an installer would leave it: modules, and a dist-info folder with entry points."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    shutil.copytree(PACKAGE / "mypaper", site / "mypaper", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata)
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in groups]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


STRANGERS = """
import contextlib, io, json, sys
from ddbench.cli import root
said = {}
for name, arguments in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        root(arguments, prog_name="ddbench", standalone_mode=False)
    said[name] = stdout.getvalue()
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(planted: Path) -> dict[str, str]:
    """What commands print where the package is installed. One process for all of them: most of it is importing."""
    for name in ("nearest", "smooth"):
        shutil.copy(DOCS / "examples" / f"{name}.toml", planted)
    common = ["--dataset", "digits", "--ipc", "1", "--device", "cpu", "--quiet", "--json"]
    cheap = ["--set", "iterations=5", "--judge", "mlp", "--students", "1"]
    commands = {
        "list": ["list", "methods"],
        "trainers": [
            *("run", "--method", "random", *common),
            *("--protocol", str(planted / "nearest.toml"), "--protocol", str(planted / "smooth.toml")),
        ],
        "by name": ["run", "--method", "my-method", *common, *cheap],
    }
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(planted), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    done = subprocess.run(
        [sys.executable, "-c", STRANGERS],
        input=json.dumps(commands),
        env=environment,
        cwd=planted,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, str] = json.loads(done.stdout)
    return printed


def test_a_strangers_package_is_listed(said: dict[str, str]) -> None:
    listed = [line.split(maxsplit=1) for line in said["list"].splitlines()]
    assert ["my-method", "mypaper 0.1.0"] in listed


def test_a_strangers_trainers_judge_by_their_protocols(said: dict[str, str]) -> None:
    (record,) = json.loads(said["trainers"])
    found = {part["protocol"]: part for part in record["evaluations"]}
    nearest, smooth = found["nearest@1"], found["smooth@1"]
    assert (nearest["alike"], len(nearest["accuracy"])) == (True, 1)
    assert (smooth["alike"], len(smooth["accuracy"])) == (False, 2)
    # One random image a class tells digits apart much better than a guess, which is right once in ten times.
    assert min(*nearest["accuracy"], *smooth["accuracy"]) > 0.3


def test_a_strangers_package_runs_by_name(said: dict[str, str]) -> None:
    (record,) = json.loads(said["by name"])
    assert (record["status"], record["run"]["provided_by"]) == ("complete", "mypaper 0.1.0")
    assert len(record["evaluations"][0]["accuracy"]) == 1


def test_the_sweep_of_the_page_is_22_runs_that_can_be_resolved() -> None:
    requests = read_sweep(DOCS / "examples" / "sweep.toml")
    specs = [foresee(asked) for asked in requests]
    assert len({spec.id for spec in specs}) == len(requests) == 18 + 1 + 3


def test_the_dataset_of_the_page_loads(tmp_path: Path) -> None:
    data = load(f"{DOCS / 'examples' / 'shapes.py'}:shapes", tmp_path)
    assert (len(data.train), len(data.test.load()), data.train.shape) == (600, 150, (1, 16, 16))
    assert data.train.fingerprint != data.test.load().fingerprint
    assert not data.info.statistics


def test_curves_end_at_the_results_of_their_records(generate: ModuleType) -> None:
    from ddbench.runs.record import read_record

    drawn = [(r, curve) for r in map(read_record, sorted(generate.RECORDS.rglob("*.json"))) for curve in r.curves]
    assert len(drawn) >= 15
    for record, curve in drawn:
        (result,) = (
            e.accuracy
            for e in record.evaluations
            if (e.protocol, e.digest, e.backbone) == (curve.protocol, curve.digest, curve.backbone)
        )
        assert curve.points[-1].accuracy == result
        assert [point.step for point in curve.points] == sorted({point.step for point in curve.points})
