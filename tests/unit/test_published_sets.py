"""Sets to take away: by name, from a folder or an address, and only if they are what the index says."""

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import ddbench
from ddbench import SyntheticSet
from ddbench.cli import root as program
from ddbench.errors import DataError, RunError
from ddbench.files import sha256_of, write_json
from ddbench.foreign import published_sets
from ddbench.foreign.published_sets import SETS, SetEntry, SetIndex, is_name, place_of_sets, read_index, take
from ddbench.synthetic import load, save

NAME = "dm/digits/ipc1"
IMAGES = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ABOUT = {"dataset": "digits", "method": "dm", "ipc": 1, "seed": 0}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(SETS, raising=False)
    monkeypatch.chdir(tmp_path)


def entry_of(path: Path, **changes: Any) -> SetEntry:
    about = {
        "name": NAME, "file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size, "kept": "float16",
        "rounding": 0.001, "set": "ab" * 32, "run": "0123abcd", "record": "records/digits/ipc1/dm.json",
        "title": "Distribution Matching", "seed": 0, "backbone": "convnet-d2", "pixels": "standard", "images": 10,
        "labels": "class", "licence": "CC BY 4.0", "protocol": "dsa@1", "judge": "convnet-d2", "accuracy": (0.5, 0.75),
    }  # fmt: skip
    return SetEntry.model_validate(about | changes)


def write_index(folder: Path, *entries: SetEntry) -> None:
    write_json(folder / "index.json", SetIndex(sets=entries).to_json(), sealed=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "published"
    save(SyntheticSet(IMAGES, torch.arange(10), pixels="standard"), place / "dm.safetensors", ABOUT, kept="float16")
    write_index(place, entry_of(place / "dm.safetensors"))
    return place


class Site:
    """A folder behind an address on this machine; `answers` take the place of files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.answers, self.asked = folder, dict[str, tuple[int, bytes]](), list[str]()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self))
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *arguments: Any) -> None:
        self.site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.site.asked.append(name)
        path = self.site.folder / name
        status, content = self.site.answers.get(name) or ((200, path.read_bytes()) if path.is_file() else (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    found = Site(folder)
    yield found
    found.close()


@pytest.fixture(params=["folder", "file", "http"])
def place(request: pytest.FixtureRequest, folder: Path, site: Site) -> str:
    return {"folder": str(folder), "file": folder.as_uri(), "http": site.address}[request.param]


def test_a_set_is_taken_by_its_name(place: str, folder: Path, tmp_path: Path) -> None:
    path = take(NAME, place, tmp_path / "data")
    assert path.read_bytes() == (folder / "dm.safetensors").read_bytes()
    assert path.is_relative_to(folder if place == str(folder) else tmp_path / "data")
    assert torch.equal(load(path).images, IMAGES.half().float())


def test_a_name_that_is_not_there_is_refused_with_one_that_is(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no set 'dm/digits/ipc2'.*Did you mean 'dm/digits/ipc1'\? There are: ") as no:
        take("dm/digits/ipc2", place, tmp_path)
    assert no.value.exit_code == 2


def test_a_file_that_is_another_is_not_used(place: str, folder: Path, tmp_path: Path) -> None:
    size = (folder / "dm.safetensors").stat().st_size
    (folder / "dm.safetensors").write_bytes(b"x" * size)
    with pytest.raises(DataError, match=r"is not the set dm/digits/ipc1: it has sha256 .*, so it is not used"):
        take(NAME, place, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_a_file_that_is_missing_is_named(place: str, folder: Path, tmp_path: Path) -> None:
    (folder / "dm.safetensors").unlink()
    with pytest.raises(DataError, match=r"dm\.safetensors"):
        take(NAME, place, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"<html>log in</html>", b"[]", b'{"schema": "ddbench.sets/2"}', b'{"schema": "ddbench.sets/1", "sets": 3}'],
)
def test_what_is_no_index_is_said(place: str, folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json"):
        read_index(place, tmp_path / "data")


def test_where_there_is_no_index_it_is_said(place: str, folder: Path, tmp_path: Path) -> None:
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"there is no .*index\.json.* Say where with --sets, or in DDBENCH_SETS"):
        read_index(place, tmp_path / "data")


def test_an_index_whose_content_was_changed_is_damaged(place: str, folder: Path, tmp_path: Path) -> None:
    value = json.loads((folder / "index.json").read_text())
    value["sets"][0]["sha256"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        take(NAME, place, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../dm.safetensors"},
        {"file": "/etc/passwd"},
        {"file": "a/b.safetensors"},
        {"name": "../../x"},
        {"name": "dm/digits"},
        {"bytes": -1},
        {"accuracy": [1.5]},
        {"licence": "a\x1b[2J"},
    ],
)
def test_values_that_no_index_has_are_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    value = json.loads((folder / "index.json").read_text())
    del value["checksum"]
    value["sets"][0] |= change
    (folder / "index.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=next(iter(change))):
        read_index(str(folder), tmp_path)


def test_a_name_stands_for_one_set(folder: Path, tmp_path: Path) -> None:
    value = json.loads((folder / "index.json").read_text())
    del value["checksum"]
    value["sets"].append(value["sets"][0])
    (folder / "index.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="two entries with the name dm/digits/ipc1"):
        read_index(str(folder), tmp_path)


def test_fields_of_a_later_version_are_no_obstacle(folder: Path, tmp_path: Path) -> None:
    value = json.loads((folder / "index.json").read_text())
    del value["checksum"]
    value["sets"][0]["later"] = value["later"] = 1
    (folder / "index.json").write_text(json.dumps(value))
    assert read_index(str(folder), tmp_path).sets == (entry_of(folder / "dm.safetensors"),)


def test_a_copy_is_fetched_once_and_again_where_it_was_damaged(site: Site, tmp_path: Path) -> None:
    path = take(NAME, site.address, tmp_path)
    assert take(NAME, f"{site.address}/", tmp_path) == path
    assert site.asked == ["index.json", "dm.safetensors", "index.json"]
    good = path.read_bytes()
    path.write_bytes(b"damaged")
    assert take(NAME, site.address, tmp_path).read_bytes() == good


@pytest.mark.parametrize("status", [None, 503])
def test_where_nobody_answers_what_was_taken_is_still_there(
    site: Site, folder: Path, tmp_path: Path, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = take(NAME, site.address, tmp_path)
    if status is None:
        site.close()
    else:
        site.answers["index.json"] = (status, b"")
    assert take(NAME, site.address, tmp_path) == path
    assert "could not be read" in caplog.text
    assert "index that was read last is used" in caplog.text
    with pytest.raises(DataError, match=r"index\.json could not be read"):
        take(NAME, site.address, tmp_path / "elsewhere")


def test_what_a_network_answers_instead_does_not_replace_the_index(site: Site, tmp_path: Path) -> None:
    path = take(NAME, site.address, tmp_path)
    site.answers["index.json"] = (200, b"<html>log in</html>")
    with pytest.raises(DataError, match=rf"{site.address}/index\.json is damaged"):
        take(NAME, site.address, tmp_path)
    site.answers["index.json"] = (503, b"")
    assert take(NAME, site.address, tmp_path) == path


def test_more_bytes_than_the_index_says_are_not_read(site: Site, tmp_path: Path) -> None:
    site.answers["dm.safetensors"] = (200, b"x" * 100_000)
    with pytest.raises(DataError, match=r"is larger than the \d+ bytes that were expected"):
        take(NAME, site.address, tmp_path)


@pytest.mark.parametrize(
    "place",
    ["ftp://example.org/sets", "http://[", "http://:x/", "http://127.0.0.1:99999/", "file://elsewhere/x", "nix"],
)
def test_places_that_cannot_be_read_end_in_a_sentence(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"could not be read|are not read from|there is no"):
        take(NAME, place, tmp_path)


def test_an_address_has_little_time_to_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(address: str, *, timeout: float) -> None:
        assert timeout == published_sets.TIMEOUT_SECONDS
        raise TimeoutError("timed out")

    monkeypatch.setattr(published_sets.urllib.request, "urlopen", never)
    with pytest.raises(DataError, match="could not be read: timed out"):
        read_index("https://example.org/sets", tmp_path)


@pytest.mark.parametrize(
    ("text", "so"),
    [
        ("dance/cifar10/ipc10", True), ("k-means/cifar10/whole", True), ("runs/cifar10/ipc10/mtt", False),
        ("mtt/cifar10/ipc0", False), ("../x/ipc1", False), ("set.safetensors", False), ("dance/cifar10/ipc10/", False),
    ],
)  # fmt: skip
def test_names_have_three_parts(text: str, so: bool) -> None:
    assert is_name(text) is so


def test_the_place_is_said_or_of_the_folder_or_of_the_checkout(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "ddbench" / "__init__.py"
    monkeypatch.setattr(published_sets.ddbench, "__file__", str(package))
    with pytest.raises(DataError, match=r"nobody says where published sets are.*DDBENCH_SETS"):
        place_of_sets()
    checkout = tmp_path / "site-packages" / "leaderboards" / "sets"
    checkout.mkdir(parents=True)
    write_index(checkout)
    assert place_of_sets() == str(checkout)
    (tmp_path / "leaderboards").mkdir()
    folder.rename(tmp_path / "leaderboards" / "sets")
    assert place_of_sets() == str(Path("leaderboards") / "sets")
    monkeypatch.setenv(SETS, "https://example.org/sets")
    assert place_of_sets() == "https://example.org/sets"
    assert place_of_sets("here") == "here"


def test_python_takes_a_name_for_a_path(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETS, place)
    found = ddbench.load(NAME, data=tmp_path / "data")
    assert (found.about["method"], found.pixels, len(found)) == ("dm", "standard", 10)
    assert torch.equal(found.images, IMAGES.half().float())
    with pytest.raises(DataError, match="there is no set 'dm/digits/ipc7'"):
        ddbench.load("dm/digits/ipc7", data=tmp_path / "data")


def test_a_file_of_that_path_comes_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETS, str(folder))
    path = tmp_path / NAME
    save(SyntheticSet(IMAGES[:2], torch.arange(2), pixels="standard"), path.with_suffix(".safetensors"), ABOUT)
    path.with_suffix(".safetensors").rename(path)
    with pytest.raises(DataError, match="is no set that ddbench reads"):
        ddbench.load(NAME)


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(program, ["sets", *map(str, arguments)])


def test_the_command_lists_what_there_is(place: str, tmp_path: Path) -> None:
    data = ["--data", tmp_path / "data", "--sets", place]
    shown = ask("list", *data)
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:4] for line in shown.stdout.splitlines()[2:]] == [[NAME, "62.5", "dsa@1", "convnet-d2"]]
    assert "the one with the lowest seed" in shown.stderr
    assert json.loads(ask("list", *data, "--json").stdout)["sets"][0]["name"] == NAME


def test_the_command_says_why_a_set_departs_from_the_rule(folder: Path) -> None:
    changes = {"why": "seed 0 was lost", "accuracy_of_file": (0.5, 0.5)}
    write_index(folder, entry_of(folder / "dm.safetensors", **changes))
    shown = ask("list", "--sets", folder)
    assert "dm/digits/ipc1: seed 0 was lost" in shown.stderr
    assert shown.stdout.splitlines()[2].split()[:4] == [NAME, "62.5", "50.0", "dsa@1"]
    write_index(folder)
    assert "No set has been published" in ask("list", "--sets", folder).stdout


def test_the_command_gets_a_set(place: str, folder: Path, tmp_path: Path) -> None:
    data = ["--data", tmp_path / "data", "--sets", place]
    got = ask("get", NAME, *data, "--out", tmp_path / "new" / "mine.safetensors")
    assert got.stdout == f"{tmp_path / 'new' / 'mine.safetensors'}\n", got.output
    digest = hashlib.sha256((tmp_path / "new" / "mine.safetensors").read_bytes()).hexdigest()
    assert digest == sha256_of(folder / "dm.safetensors")
    assert Path(json.loads(ask("get", NAME, *data, "--json").stdout)["path"]).is_file()
    refused = ask("get", NAME, *data, "--out", tmp_path)
    assert (refused.exit_code, "is a folder" in refused.stderr) == (2, True)
    (tmp_path / "notes.txt").write_text("a week's work")
    refused = ask("get", NAME, *data, "--out", tmp_path / "notes.txt")
    assert (refused.exit_code, "is another file, so it is left as it is" in refused.stderr) == (2, True)
    assert (tmp_path / "notes.txt").read_text() == "a week's work"
    assert ask("get", NAME, *data, "--out", tmp_path / "new" / "mine.safetensors").exit_code == 0  # the same again
    elsewhere = ask("get", NAME, "--data", tmp_path, "--sets", "ftp://example.org/sets")
    assert (elsewhere.exit_code, "are not read from ftp" in elsewhere.stderr) == (2, True)


def test_what_goes_wrong_is_one_sentence(tmp_path: Path) -> None:
    got = ask("get", NAME, "--sets", tmp_path / "nix")
    assert got.exit_code == 1
    assert got.stderr.startswith("Error: there is no ")
    assert "Traceback" not in got.output


def test_an_index_that_cannot_be_kept_is_used_all_the_same(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".sets").write_text("no folder")
    assert [entry.name for entry in read_index(site.address, tmp_path).sets] == [NAME]
    assert "could not be written" in caplog.text
    with pytest.raises(RunError, match=r"could not be written: .*A file has the name of one of its folders"):
        take(NAME, site.address, tmp_path)


def test_processes_that_ask_at_once_do_not_disturb_each_other(site: Site, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_index(site.address, tmp_path), range(40)))
    assert {entry.name for index in found for entry in index.sets} == {NAME}
    assert [path.name for path in (tmp_path / ".sets").iterdir() if path.suffix != ".json"] == []


def test_a_size_that_no_memory_has_is_not_taken_at_its_word(site: Site, folder: Path, tmp_path: Path) -> None:
    value = json.loads((folder / "index.json").read_text())
    del value["checksum"]
    value["sets"][0]["bytes"] = 10**15
    (folder / "index.json").write_text(json.dumps(value))
    assert take(NAME, site.address, tmp_path).is_file()
