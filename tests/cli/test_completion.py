"""What a shell is offered: names of what there is, where an option or an argument takes one."""

from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from ddbench.cli import COMPLETION, root

SETS = Path(__file__).resolve().parents[2] / "leaderboards" / "sets"


def offered(monkeypatch: pytest.MonkeyPatch, args: list[str], incomplete: str) -> list[str]:
    monkeypatch.setenv(COMPLETION, "bash_complete")
    return [item.value for item in BashComplete(root, {}, "ddbench", COMPLETION).get_completions(args, incomplete)]


@pytest.mark.parametrize(
    ("args", "incomplete", "expected"),
    [
        (["run", "--method"], "m", {"mtt"}),
        (["run", "--dataset"], "cifar", {"cifar10", "cifar100"}),
        (["evaluate", "--protocol"], "ds", {"dsa", "dsa@1", "dsa-soft", "dsa-soft@1"}),
        (["run", "--backbone"], "le", {"lenet"}),
        (["run", "--preset"], "", {"paper", "quick"}),
        (["evaluate", "--judge"], "ml", {"mlp"}),
        (["leaderboard", "--method"], "her", {"herding"}),
        (["lea"], "lea", {"leaderboard"}),
        (["show", "method"], "n", {"ncfm"}),
        (["show", "protocol"], "dsa@", {"dsa@1"}),
        (["show", "backbone"], "resnet18-b", {"resnet18-bn", "resnet18-bn-ap"}),
        (["show", "backbone", "mlp", "--dataset"], "cifar", {"cifar10", "cifar100"}),
        (["show", "trainer"], "s", {"sgd"}),
        (["list"], "tr", {"trainers"}),
        (["show", "dataset"], "cifar", {"cifar10", "cifar100"}),
        (["data", "get"], "cifar", {"cifar10", "cifar100"}),
        (["sets", "get", "--sets", str(SETS)], "dance/", {"dance/cifar10/ipc10"}),
        (["compare", "dm"], "ran", {"random"}),
        (["reproduce"], "d", {"dm", "dc"}),
    ],
)
def test_names_are_offered(
    args: list[str], incomplete: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [] if args == [incomplete] else args
    found = offered(monkeypatch, args, incomplete)
    assert expected <= set(found)
    assert all(name.startswith(incomplete) for name in found)


def test_what_is_no_name_may_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMPLETION, "bash_complete")
    complete = BashComplete(root, {}, "ddbench", COMPLETION)
    for args in (["compare"], ["reproduce"], ["show", "method"], ["show", "backbone"]):
        (found,) = complete.get_completions(args, "./runs")
        assert (found.type, found.value) == ("file", "./runs")
    assert complete.get_completions(["sets", "get", "--sets", "/nowhere"], "da") == []
    assert complete.get_completions(["sets", "get", "--sets", "https://example.org/sets"], "da") == []


def test_datasets_of_ones_own_are_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert offered(monkeypatch, ["run", "--data", str(tmp_path), "--dataset"], "min") == []
    monkeypatch.setattr("ddbench.data.manifests.find_all", lambda root: [{"name": "mine"}] if root == tmp_path else [])
    assert offered(monkeypatch, ["run", "--data", str(tmp_path), "--dataset"], "min") == ["mine"]


def test_a_name_that_is_not_offered_is_taken_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMPLETION, "")  # set, and by nobody who completes
    result = CliRunner().invoke(root, ["run", "--method", "nobody", "--dataset", "digits"])
    assert result.exit_code == 2
    assert "there is no method 'nobody'" in result.output
