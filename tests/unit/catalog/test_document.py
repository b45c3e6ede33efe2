"""Reading a file: every bad one is one clear line with its place (row G3 of the fault table)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from passerelle.catalog.document import MAX_FILE_BYTES, read_document
from passerelle.catalog.node import Scalar, Series, Table
from passerelle.catalog.problem import ConfigurationError


def write(folder: Path, content: bytes | str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    """Returns the only line a refused file gives."""
    with pytest.raises(ConfigurationError) as caught:
        read_document(path, {})
    (problem,) = caught.value.problems
    assert "\n" not in str(problem)
    return str(problem)


def test_every_value_knows_its_line_and_column(tmp_path: Path) -> None:
    """Marks count lines and columns from one, for keys and for values."""
    document = read_document(write(tmp_path, "a:\n  - x\n  - b: 'y'\n"), {})
    entry = document.root.entries["a"]
    assert (entry.mark.line, entry.mark.column) == (1, 1)
    assert isinstance(entry.value, Series)
    first, second = entry.value.items
    assert (first.mark.line, first.mark.column) == (2, 5)
    assert isinstance(second, Table)
    value = second.entries["b"].value
    assert isinstance(value, Scalar)
    assert (value.mark.line, value.mark.column, value.quoted) == (3, 8, True)


def test_an_empty_file_is_an_empty_document(tmp_path: Path) -> None:
    """Nothing but comments means nothing configured."""
    assert read_document(write(tmp_path, "# nothing\n"), {}).root.entries == {}
    assert read_document(write(tmp_path, ""), {}).root.entries == {}


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("a: [1, 2", ":2:1:", "from line 1)"),
        ("a: b: c", ":1:5:", "not valid YAML"),
        ("server:\n\tport: 1\n", ":2:1:", "a tab is used for indentation"),
        ("\ufeffa: 1", ":1:1:", "byte order mark"),
        ("a: 1".encode("utf-16"), ":1:1:", "byte order mark"),
        ("a: 1".encode("utf-16-le"), ":1:2:", "character U+0000 is not allowed"),
        ("a: 1".encode("utf-32"), ":1:1:", "byte order mark"),
        (b"a: 1\nb: caf\xe9\n", ":2:7:", "not UTF-8"),
        ("a: !!python/object/apply:os.system ['true']", ":1:4:", "tags"),
        ("a: !!python/name:os.system x", ":1:4:", "tags"),
        ("a: !secret x", ":1:4:", "tags"),
        ("a: 1\n---\nb: 2\n", ":2:1:", "a second document"),
        ("a: *nowhere", ":1:4:", "alias"),
        ("a: &x [*x]", ":1:8:", "alias"),
        ("? [1, 2]\n: x", ":1:3:", "a key must be"),
        ("a: ${X}\n? {b: c}\n: d", ":2:3:", "a key must be"),
        ("- a\n- b", ":1:1:", "the file holds a list"),
        ("just text", ":1:1:", "the file holds a single value"),
        ("a: " + "[" * 100 + "]" * 100, ":1:67:", "nested more than 64"),
        ("a: " + "[" * 100_000, ":1:67:", "nested more than 64"),
        ("<<: 3", ":1:5:", "'<<' merges mappings"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path: Path, content: bytes | str, place: str, message: str) -> None:
    """Whatever is wrong with the text, the answer says where and what."""
    path = write(tmp_path, content)
    with pytest.raises(ConfigurationError) as caught:
        read_document(path, {"X": "x"})
    line = str(caught.value.problems[-1])
    assert line.startswith(f"{path}{place}")
    assert message in line
    assert "\n" not in line


def test_a_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    """The second of two equal keys is a problem that points at the first."""
    document = read_document(write(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\n"), {})
    assert [str(p).partition("c.yaml")[2] for p in document.problems] == [
        ":4:3: a.b: the key 'b' is given twice, first on line 2"
    ]


def test_a_bomb_of_aliases_is_refused_before_it_grows(tmp_path: Path) -> None:
    """Nine lines that would become a thousand million values end at the cap."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 500,000 values" in refusal(write(tmp_path, "\n".join(levels)))


def test_a_bomb_of_merges_is_refused_too(tmp_path: Path) -> None:
    """Merged mappings count like aliases."""
    levels = ["a0: &a0 {x: 1, y: 2}"]
    levels += [f"a{n}: &a{n} {{k{n}: [{', '.join([f'*a{n - 1}'] * 20)}], <<: *a{n - 1}}}" for n in range(1, 9)]
    assert "more than 500,000 values" in refusal(write(tmp_path, "\n".join(levels)))


def test_aliases_and_merges_of_ordinary_size_work(tmp_path: Path) -> None:
    """Anchors are there to be used; a mapping's own keys win over merged ones."""
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\nlist: [*b]\n"
    root = read_document(write(tmp_path, text), {}).root
    one = root.entries["one"].value
    assert isinstance(one, Table)
    assert {key: entry.value.text for key, entry in one.entries.items() if isinstance(entry.value, Scalar)} == {
        "y": "3",
        "x": "1",
    }


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    """A hundred sparse megabytes are refused by their size."""
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert f"larger than {MAX_FILE_BYTES:,} bytes" in refusal(path)


def test_what_is_no_readable_file_is_said_so(tmp_path: Path) -> None:
    """A folder, a pipe nobody writes to, a missing file and a path with a NUL are each one line."""
    assert "not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(tmp_path / "pipe")
    assert "No such file" in refusal(tmp_path / "missing.yaml")
    assert "the path is not one" in refusal(Path("a\0b"))


def test_json_with_tabs_reads_like_yaml(tmp_path: Path) -> None:
    """JSON may be indented with tabs; its lines are known all the same."""
    document = read_document(write(tmp_path, '{\n\t"a": {\n\t\t"b": "x"\n\t}\n}\n', "c.json"), {})
    a = document.root.entries["a"].value
    assert isinstance(a, Table)
    assert a.entries["b"].mark.line == 3


def test_escapes_that_make_control_characters_are_refused(tmp_path: Path) -> None:
    """A NUL or an escape code cannot hide in a quoted value and reach a path or a terminal."""
    document = read_document(write(tmp_path, 'a: "x\\0y"\nb: "\\e[2J"\n'), {})
    assert [problem.mark.line for problem in document.problems] == [1, 2]
    assert all("control character" in problem.message for problem in document.problems)


def test_interpolated_values_are_typed_later_and_marked_as_foreign(tmp_path: Path) -> None:
    """One whole interpolation may become a number even in quotes; a part of a quoted text stays text."""
    text = "whole: '${N}'\npart: 'x${N}'\nplain: http://${N}/\ndollar: $$5\n"
    entries = read_document(write(tmp_path, text), {"N": "7"}).root.entries
    values = {key: entry.value for key, entry in entries.items()}
    assert {key: value.text for key, value in values.items() if isinstance(value, Scalar)} == {
        "whole": "7",
        "part": "x7",
        "plain": "http://7/",
        "dollar": "$5",
    }
    assert [getattr(values[key], "loose", None) for key in ("whole", "part", "plain")] == [True, False, True]
