"""Records of strangers: numbers and names that no run writes are refused, and texts stay texts wherever they appear."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ddbench.errors import RunError
from ddbench.leaderboard import boards
from ddbench.leaderboard.observations import collect
from ddbench.leaderboard.published import read_published
from ddbench.leaderboard.statistics import summarise
from ddbench.leaderboard.tables import board, escaped
from ddbench.runs.record import read_record

RECORD = Path(__file__).parents[1] / "golden" / "records" / "dm-s0.json"
WHOLE: dict[str, Any] = json.loads(RECORD.read_text())
NAN, INFINITE = float("nan"), float("inf")

NO_COUNT = [True, -1, 1.5, "5", None, NAN, INFINITE, 10**400, [1]]
NO_SECONDS = [True, -1.0, "5", NAN, INFINITE, 10**400, [1.0]]
NO_SHARE = [*NO_SECONDS, 1.0001, 2.5, -0.1]
NO_LINE = ["a\nb", "\x1b[2Jx", "\ud800", "‮gnp", 5, None, "x" * 1001]
NO_NAME = [*NO_LINE, "", "..", "a/b", "/etc", ".x", "a b", "x\n"]
WRONG: list[tuple[tuple[str | int, ...], list[Any]]] = [
    (("run", "ipc"), NO_COUNT),
    (("run", "seed"), NO_COUNT),
    (("run", "id"), [*NO_NAME, "x/../victim", "3F2A91C4", "3f2a91c", "3f2a91c4\n"]),
    (("run", "method"), NO_NAME),
    (("run", "dataset"), NO_NAME),
    (("run", "title"), NO_LINE),
    (("run", "backbone"), [*NO_LINE, "../x", "/a", "~x", "a\\b", "a/b/c", ""]),
    (("data", "title"), NO_LINE),
    (("data", "train"), NO_COUNT),
    (("synthetic", "bytes"), NO_COUNT),
    (("synthetic", "sha256"), ["", "x" * 64, "d0" * 31]),
    (("evaluations", 0, "accuracy", 0), NO_SHARE),
    (("evaluations", 0, "seconds"), NO_SECONDS),
    (("evaluations", 0, "protocol"), [*NO_LINE, "dsa", "../dsa@1"]),
    (("evaluations", 0, "failed"), ["\x07", "\ud800", "x" * 20_001]),
    (("cost", "condense", "seconds"), NO_SECONDS),
    (("artifacts",), [[{"seconds": bad}] for bad in [*NO_SECONDS, "x"]]),
    (("config", "values"), [{"a": NAN}, {"a": [10**400]}, {"a\nb": 1}, {"a": "\x00"}]),
    (("attempts", 0, "steps"), [[-1, 2], [0, 2.5], [True, 2]]),
]


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    record = copy.deepcopy(WHOLE)
    inner: Any = record
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return record


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG for value in values], ids=str)
def test_what_no_run_writes_is_refused(tmp_path: Path, path: tuple[str | int, ...], value: Any) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(changed(path, value)))
    with pytest.raises(RunError, match=r"odd\.json"):
        boards.add([odd], tmp_path / "boards")
    assert not (tmp_path / "boards").exists()


def test_a_record_that_lies_too_deep_is_refused(tmp_path: Path) -> None:
    for text in ("[" * 100_000 + "]" * 100_000, json.dumps(changed(("config", "values"), {"a": [[[]]]}))):
        deep = text.replace("[[[]]]", "[" * 90 + "]" * 90)
        (tmp_path / "deep.json").write_text(deep)
        with pytest.raises(RunError, match=r"too deep|more than 32 deep"):
            read_record(tmp_path / "deep.json")


PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PIECES = [*"[]()!<>`*_~|\\&#:-=+.\"' \n1ahtps/", "](", "![", "http://", "&lt;", "<b>", "]: /x", "    "]
SIGNS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@settings(deadline=None)
@given(text=SIGNS | st.text(max_size=40))
def test_a_text_in_a_table_a_heading_or_a_list_stays_a_text(text: str) -> None:
    cell, item = escaped(text), escaped(text, block=True)
    page = f"# {cell}\n\n| a | b |\n|---|---|\n| {cell} | x |\n\n- {item}\n\n- [{escaped(text, link=True)}](place.md)\n"
    kinds = [token.type for block in PARSER.parse(page) for token in [block, *(block.children or [])]]
    assert not {"html_inline", "html_block", "image", "code_inline", "fence", "code_block", "hr"} & set(kinds)
    assert not {"em_open", "strong_open", "s_open"} & set(kinds)
    assert kinds.count("heading_open") == 1
    assert kinds.count("link_open") == 1
    assert kinds.count("td_open") == 2
    assert kinds.count("bullet_list_open") == 1
    assert not {"ordered_list_open", "blockquote_open"} & set(kinds)


def test_a_record_brings_no_link_into_a_board_or_its_readme(tmp_path: Path) -> None:
    text = "[win](http://evil.example) ![x](//evil.example/p.png) <img src=x> `a` www.evil.example"
    record = changed(("data", "title"), f"CIFAR-10, {text}")
    record["evaluations"][0] |= {"accuracy": [], "failed": text}
    record["run"]["title"] = text
    (tmp_path / "odd.json").write_text(json.dumps(record))
    boards.add([tmp_path / "odd.json"], tmp_path / "boards")
    files = boards.build(tmp_path / "boards")
    for path, written in files.items():
        if path.suffix == ".md":
            tokens = [token for block in PARSER.parse(written) for token in [block, *(block.children or [])]]
            hrefs = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
            assert all(href.startswith("tables/") for href in hrefs), hrefs
            assert not any(token.type in ("image", "html_inline", "html_block") for token in tokens)


def test_a_reason_of_several_lines_brings_no_command_into_latex(tmp_path: Path) -> None:
    record = changed(("run", "title"), r"\input{x} $a$ 5 % & more_")
    record["evaluations"] = [record["evaluations"][0] | {"accuracy": [], "failed": "a\n\\input{/etc/passwd} % $x$ &"}]
    (tmp_path / "odd.json").write_text(json.dumps(record))
    summary = summarise(collect([tmp_path / "odd.json"]))
    text = board(summary, read_published(), "cifar10", 10).to_latex()
    for line in text.splitlines():
        assert line.startswith("%") or "\\input" not in line
