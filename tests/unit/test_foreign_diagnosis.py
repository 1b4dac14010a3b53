"""Sets with known faults: how many the diagnosis finds, and how often it cries wolf."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddbench.data.dataset import Dataset
from ddbench.data.pixels import PixelSpace, fit_pixels
from ddbench.data.sources import load
from ddbench.foreign.diagnosis import Reference, diagnose, fitting_datasets, label_kind
from ddbench.foreign.formats import Found
from ddbench.initial import real_images
from ddbench.rng import Rng
from ddbench.testing.contract import problem_for_checks

SEEDS = (*range(0, 24, 2), *range(1001, 1025, 2))

FAULTS = ("zca", "raw", "unit", "shuffled", "classes", "not-finite")
LOOKS = ("real", "mean", "contrast", "noise")


@dataclass(frozen=True, eq=False)
class Case:
    """A set, its fault ("" for none), what is said about its pixels, and the seed it was made from."""

    found: Found
    fault: str
    said: str | None
    look: str
    seed: int


def cases(dataset: Dataset, seeds: Sequence[int], ipcs: Sequence[int], store: Path) -> Iterator[Case]:
    """For each seed one set of each fault and as many without a fault; whitenings are kept in `store`."""
    spaces = {name: fit_pixels(name, dataset.train, dataset.info, store) for name in ("standard", "zca", "kip-zca")}
    for seed in seeds:
        for number, fault in enumerate(FAULTS):
            rng = Rng(seed, ("wrong set", fault))
            generator = rng.numpy()
            look = LOOKS[int(generator.integers(len(LOOKS)))]
            ipc = int(generator.choice(list(ipcs)))
            whitened = ("zca", "kip-zca")[seed // 2 % 2]
            space = spaces[whitened if fault == "zca" else "standard"]
            yield Case(_spoilt(_learned(dataset, space, ipc, look, rng), fault, space, rng), fault, None, look, seed)
            # Without a fault: mostly normalised sets of which nothing is said, and some whitened ones that say so.
            says_zca = number == 0
            space = spaces[whitened if says_zca else "standard"]
            clean = _learned(dataset, space, ipc, look, rng.fold("clean"))
            yield Case(clean, "", space.name if says_zca else None, look, seed)


def _learned(dataset: Dataset, space: PixelSpace, ipc: int, look: str, rng: Rng) -> Found:
    """A set that looks like one method's: real images, class means, raised contrast, or patterns in noise."""
    train, classes = dataset.train, len(dataset.train.classes)
    draws = rng.fold("rows").numpy()

    def real(count: int) -> Tensor:
        rows = [
            start + draws.choice(size, count, replace=size < count)
            for start, size in zip(train.offsets.tolist(), train.counts.tolist(), strict=True)
        ]
        chosen = torch.stack([torch.from_numpy(row) for row in rows])
        return space.forward(train.images[chosen])  # [K, count, C, H, W]

    generator = rng.fold("noise").torch()
    images = real(ipc)
    white = torch.randn(images.shape, generator=generator)
    spread = images.std()
    match look:
        case "mean":
            images = real(ipc * 8).unflatten(1, (ipc, 8)).mean(2) + 0.5 * (images - images.mean())
        case "contrast":
            images = (1.2 + draws.random()) * images + 0.3 * spread * white
        case "noise":
            centre = real(40).mean(1, keepdim=True)
            images = 0.8 * spread * white + 1.5 * centre
    labels = torch.arange(classes).repeat_interleave(ipc)
    return Found(images.flatten(0, 1).float(), labels, None, "made", "0", ())


def _spoilt(found: Found, fault: str, space: PixelSpace, rng: Rng) -> Found:
    draws = rng.fold("fault").numpy()
    images, labels = found.images, found.labels
    assert labels is not None
    classes = int(labels.max()) + 1
    match fault:
        case "unit" | "raw":
            back = space.back(images)
            assert back is not None
            # Half of the published sets are clipped to what a screen can show.
            shown = back.clamp(0, 1) if draws.random() < 0.5 else back
            return replace(found, images=shown if fault == "unit" else (255 * shown).round())
        case "shuffled":
            if draws.random() < 0.5:
                return replace(found, labels=labels[torch.from_numpy(draws.permutation(len(labels)))])
            order = torch.arange(classes).roll(int(draws.integers(1, classes)))
            return replace(found, labels=order[labels])
        case "classes":
            match int(draws.integers(3)):
                case 0:
                    kept = labels != int(draws.integers(classes - 1))
                    return replace(found, images=images[kept], labels=labels[kept])
                case 1:
                    return replace(found, labels=labels + 1)
                case _:
                    return replace(found, labels=torch.where(labels == classes - 1, classes + 2, labels))
        case "not-finite":
            broken = images.clone()
            rows = torch.from_numpy(draws.choice(len(images), 1 + len(images) // 10, replace=False))
            broken[rows, 0, 0, 0] = (torch.nan, torch.inf)[int(draws.integers(2))]
            return replace(found, images=broken)
        case _:
            return found


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", Path("unused"))


@pytest.fixture(scope="module")
def reference(digits: Dataset) -> Reference:
    return Reference.of(digits.train, digits.info)


@pytest.fixture(scope="module")
def verdicts(
    digits: Dataset, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Counter[tuple[str, bool, bool]]:
    """How many cases there are of each fault, held out or not, found right or not."""
    found: Counter[tuple[str, bool, bool]] = Counter()
    for case in cases(digits, SEEDS, (1, 10, 50), tmp_path_factory.mktemp("whitenings")):
        diagnosis = diagnose(case.found, reference, digits.info, case.said)
        right = case.fault in diagnosis.codes if case.fault else not diagnosis.codes
        # Thresholds were tuned on even seeds; odd ones are held out.
        found[case.fault, case.seed % 2 == 1, right] += 1
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_nine_of_ten_faults_are_found_on_held_out_seeds(verdicts: Counter[tuple[str, bool, bool]], fault: str) -> None:
    right, wrong = verdicts[fault, True, True], verdicts[fault, True, False]
    assert right + wrong >= 10
    assert right >= 0.9 * (right + wrong)


def test_at_most_one_in_twenty_good_sets_is_called_wrong(verdicts: Counter[tuple[str, bool, bool]]) -> None:
    right, wrong = verdicts["", True, True], verdicts["", True, False]
    assert right + wrong >= 50
    assert wrong <= 0.05 * (right + wrong)


def test_at_least_19_of_20_cases_are_diagnosed_rightly(verdicts: Counter[tuple[str, bool, bool]]) -> None:
    held_out = {
        right: sum(n for (_, held, ok), n in verdicts.items() if held and ok == right) for right in (True, False)
    }
    assert sum(held_out.values()) >= 100
    assert held_out[True] >= 0.95 * sum(held_out.values())


def good(digits: Dataset, ipc: int = 10) -> Found:
    rows = torch.cat([start + torch.arange(ipc) for start in digits.train.offsets.tolist()])
    x = digits.train.images[rows].float() / 255
    mean, std = (torch.tensor(part)[:, None, None] for part in digits.info.statistics["standard"])
    return Found((x - mean) / std, digits.train.labels[rows], None, "made", "0", ())


def test_findings_name_the_flag_that_is_missing(digits: Dataset, reference: Reference) -> None:
    real = good(digits)
    mean, std = reference.mean, reference.std
    unit = replace(real, images=real.images * std + mean)
    flags = {finding.flag for finding in diagnose(unit, reference, digits.info).findings}
    assert flags == {"--pixels unit"}
    (finding,) = diagnose(replace(real, labels=real.labels + 1), reference, digits.info).findings  # type: ignore[operator]
    assert (finding.flag, finding.fatal) == ("--labels from-1", True)
    (finding,) = diagnose(replace(real, labels=None), reference, digits.info).findings
    assert finding.flag == "--labels sorted"


def test_what_is_said_of_pixels_is_held_against_the_numbers(digits: Dataset, reference: Reference) -> None:
    assert not diagnose(good(digits), reference, digits.info, "standard").findings
    (finding,) = diagnose(good(digits), reference, digits.info, "raw").findings
    assert finding.code == "pixels"


def test_a_set_of_another_dataset_is_told_by_its_shape(digits: Dataset, reference: Reference) -> None:
    colour = replace(good(digits), images=torch.randn(100, 3, 32, 32))
    diagnosis = diagnose(colour, reference, digits.info)
    assert "cifar10" in diagnosis.fitting
    (finding,) = [finding for finding in diagnosis.findings if finding.code == "shape"]
    assert "cifar10" in finding.text
    assert finding.fatal


def test_bytes_are_pixels_as_stored_and_no_fault(digits: Dataset, reference: Reference) -> None:
    rows = digits.train.offsets
    raw = Found(digits.train.images[rows], digits.train.labels[rows], None, "made", "0", ())
    assert not diagnose(raw, reference, digits.info).findings


def test_without_the_dataset_scales_and_whitening_are_still_told(tmp_path: Path) -> None:
    natural = Reference.natural((3, 32, 32))
    y = torch.arange(10).repeat_interleave(5)
    for name, expected in {"standard": "standard", "unit": "unit", "raw": "raw", "zca": "zca"}.items():
        x = natural.spaces[name][:50]  # type: ignore[index]
        assert diagnose(Found(x, y, None, "made", "0", ())).pixels == expected


def test_labels_are_told_by_their_numbers() -> None:
    logits = 4 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    one_hot = torch.eye(5).repeat(4, 1)
    assert label_kind(None) == "none"
    assert label_kind(torch.arange(5)) == "class"
    assert label_kind(one_hot) == "class"
    assert label_kind(logits.softmax(1)) == "probability"
    assert label_kind(logits) == "logit"
    assert label_kind(one_hot - 0.2) == "regression"


def test_datasets_that_fit_are_named() -> None:
    assert fitting_datasets((3, 32, 32), 100) == ("cifar100",)
    assert {"cifar10", "svhn"} <= set(fitting_datasets((3, 32, 32), 10))
    assert fitting_datasets((3, 17, 17), 10) == ()


def test_the_reference_reads_no_test_image(tmp_path: Path) -> None:
    problem = problem_for_checks(tmp_path)
    reference = Reference.of(problem.train, problem.info)
    assert len(reference.images) == len(problem.train)
    assert real_images(problem, problem.rng).shape[1:] == reference.images.shape[1:]
