"""Protocols are named, versioned, frozen values."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ddbench.errors import ConfigError, PluginError
from ddbench.evaluation.protocol import PROTOCOLS, FiniteWidthOptions, Protocol, names, protocol
from ddbench.training.options import SGDOptions, TrainerOptions


def test_a_name_means_the_newest_version() -> None:
    assert protocol("dsa") is protocol("dsa@1") is PROTOCOLS["dsa@1"]
    assert protocol("dsa").id == "dsa@1"


def test_the_newest_version_is_the_greatest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (10, 9):
        monkeypatch.setitem(PROTOCOLS, f"dsa@{version}", Protocol(name="dsa", version=version))
    assert protocol("dsa").version == 10
    assert protocol("dsa@1").version == 1


@pytest.mark.parametrize(("wrong", "near"), [("dsaa", "dsa"), ("mtt@2", "mtt@1"), ("quik", "quick")])
def test_an_unknown_name_suggests_a_neighbour(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"no protocol '{wrong}'\. Did you mean '{near}'\?"):
        protocol(wrong)


def test_epochs_take_the_place_of_the_usual_steps_of_finite_networks() -> None:
    assert FiniteWidthOptions().steps == 5000
    assert FiniteWidthOptions(epochs=50).steps is None
    with pytest.raises(ValidationError, match="give epochs or steps, not both"):
        FiniteWidthOptions(epochs=50, steps=10)


def test_names_are_as_printed() -> None:
    assert {"dsa@1", "dsa-soft@1", "dc@1", "mtt@1", "full@1", "quick@1"} <= set(names())


def test_students_and_source_are_not_part_of_the_recipe() -> None:
    dsa = PROTOCOLS["dsa@1"]
    assert dsa.model_copy(update={"students": 20, "source": "another"}).digest == dsa.digest


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"version": 2},
        {"augment": "none"},
        {"labels": "soft"},
        {"backbones": ("convnet", "mlp")},
        {"options": SGDOptions(epochs=999)},
        {"options": SGDOptions(momentum=0.5)},
        {"options": SGDOptions(align_corners=True)},
        {"options": SGDOptions(nesterov=True)},
        {"options": SGDOptions(lr=None)},
    ],
)
def test_everything_else_is(change: dict[str, object]) -> None:
    assert PROTOCOLS["dsa@1"].model_copy(update=change).digest != PROTOCOLS["dsa@1"].digest


def test_a_protocol_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        PROTOCOLS["dsa@1"].__setattr__("students", 7)
    with pytest.raises(ValidationError):
        PROTOCOLS["dsa@1"].options.__setattr__("epochs", 7)


OWN = """
name = "mine"
augment = "none"
students = 3

[options]
epochs = 20
optimizer = "adam"
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_file_describes_a_protocol(tmp_path: Path) -> None:
    own = protocol(write(tmp_path, OWN))
    assert (own.id, own.augment, own.students) == ("mine@1", "none", 3)
    assert own.options == SGDOptions(epochs=20, optimizer="adam")


def test_a_file_cannot_take_the_name_of_another_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"calls itself 'dsa@1', and that name is taken by another recipe"):
        protocol(write(tmp_path, OWN.replace("mine", "dsa")))


def test_a_file_may_say_again_what_is_built_in(tmp_path: Path) -> None:
    assert protocol(write(tmp_path, 'name = "dsa"\nstudents = 20\n')).digest == PROTOCOLS["dsa@1"].digest


def test_a_version_that_is_not_built_in_belongs_to_us_as_well(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"calls itself 'dsa@7'"):
        protocol(write(tmp_path, 'name = "dsa"\nversion = 7\naugment = "none"\n'))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("augment = 'none'", r"name: field required"),
        ("name = 'Mine'", r"name: string should match pattern"),
        (
            "name = 'mine'\nepochs = 3",
            r"no 'epochs' in a protocol. It is an option of the trainer sgd: write it below \[options\]",
        ),
        ("name = 'mine'\nbackbone = ['mlp']", r"no 'backbone' in a protocol. Did you mean 'backbones'\?"),
        ("name = 'mine'\nzzz = 1", r"no 'zzz' in a protocol. It has: name, version, trainer"),
        ("name = 'mine'\nbackbones = 'mlp'", r"backbones: input should be a valid list"),
        ("name = 'mine'\nstudents = 0", r"students: input should be greater than or equal to 1"),
        ("name = 'mine'\nbackbones = []", r"backbones: list should have at least 1 item"),
        (
            "name = 'mine'\n[options]\nepoch = 3",
            r"no 'epoch' among the options of the trainer sgd. Did you mean 'epochs'\?",
        ),
        ("name = 'mine'\n[options]\naugment = 'none'", r"no 'augment' among .* field of the protocol: write it above"),
        ("name = 'mine'\ntrainer = 'replay'\n[options]\nlr = 1", r"no 'lr' among the options .* replay. It has none"),
        (
            "name = 'mine'\n[options]\nepochs = none  # the set's",
            r'line 3.*\. Write "none" for none: words have quotes',
        ),
        ("name = 'mine'\n[options]\nnesterov = True", r"Write true for True"),
        ("name = 'mine'\n[options]\nlr = -1.0", r"lr: input should be greater than 0"),
        ("name = ", r"is not valid TOML"),
    ],
)
def test_a_file_that_describes_none_says_why(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        protocol(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml cannot be read"):
        protocol(str(tmp_path / "gone.toml"))


def test_a_trainer_that_nobody_provides_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"there is no trainer 'replai'"):
        protocol(write(tmp_path, "name = 'mine'\ntrainer = 'replai'\n[options]\nsteps = 3"))


def test_a_protocol_without_options_takes_those_of_its_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ridge(TrainerOptions):
        ridge: float = 1e-6

    monkeypatch.setattr("ddbench.evaluation.protocol.trainer_options", lambda name: Ridge)
    assert Protocol(name="krr", trainer="krr").options == Ridge()
    with pytest.raises(ValueError, match="are a Ridge or a table"):
        Protocol(name="krr", trainer="krr", options=[1])


def test_a_trainer_from_a_file_is_refused_because_a_digest_would_not_see_its_edits() -> None:
    with pytest.raises(ValueError, match="not from a file"):
        Protocol(name="own", trainer="./mine.py:Mine")


def test_a_protocols_file_can_ask_for_the_learned_step_size() -> None:
    assert SGDOptions(lr="none").lr is None  # type: ignore[arg-type]
    assert SGDOptions(lr="learned").lr is None  # type: ignore[arg-type]


def test_a_file_says_learned_as_the_tables_do(tmp_path: Path) -> None:
    text = 'name = "mine"\nlabels = "soft"\n[options]\nlr = "{}"\nbatch = 128\nalign_corners = true\n'
    learned, none = (protocol(write(tmp_path, text.format(word))) for word in ("learned", "none"))
    assert learned.options.lr is None
    assert learned.digest == none.digest
    # Nothing but its name tells it from the built-in one.
    assert learned.options == PROTOCOLS["datm@1"].options
    with pytest.raises(ConfigError, match=r"lr: input should be a valid number.* \(got 'fast'\)"):
        protocol(write(tmp_path, text.format("fast")))


def test_finite_networks_learn_no_step_size(tmp_path: Path) -> None:
    text = 'name = "mine"\nlabels = "soft"\ntrainer = "finite-width"\n[options]\nlr = "learned"\n'
    with pytest.raises(ConfigError, match="no step size is learned for it"):
        protocol(write(tmp_path, text))
