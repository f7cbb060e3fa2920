"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.training.whole_file import whole_file


def written(path: Path, text: str) -> None:
    with whole_file(path) as new:
        Path(new).write_text(text)


def test_two_writers_at_once_leave_the_whole_of_one(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    tables = [pa.table({"n": range(size)}) for size in (10, 20_000)]
    with whole_file(path) as one, whole_file(path) as other:
        assert one != other
        for new, table in zip((one, other), tables, strict=True):
            pq.write_table(table, new)
        assert not path.exists()
    assert pq.read_table(path).equals(tables[0])  # whoever ends last
    assert os.listdir(tmp_path) == ["set.parquet"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"

    def half() -> None:
        with whole_file(path) as new:
            Path(new).write_text("half")
            raise ZeroDivisionError

    for was in (None, "mine"):
        if was is not None:
            path.write_text(was)
        with pytest.raises(ZeroDivisionError):
            half()
        assert os.listdir(tmp_path) == ([] if was is None else ["set.parquet"])
    assert path.read_text() == "mine"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link, path = tmp_path / "latest.parquet", tmp_path / "data" / "1.parquet"
    link.symlink_to(path)
    written(link, "one")
    written(link, "two")
    assert link.is_symlink()
    assert path.read_text() == "two"
    assert os.listdir(tmp_path / "data") == ["1.parquet"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    queue, folder = tmp_path / "queue", tmp_path / "folder"
    os.mkfifo(queue)
    folder.mkdir()
    table = fs.TrainingSet(pa.table({"x": [1]}), {})
    for path, words in ((queue, "no regular file"), (folder, "is a folder")):
        with pytest.raises(fs.SourceError, match=words):
            table.to_parquet(path)
    with pytest.raises(fs.SourceError, match="nowhere/x cannot be written: No such file"):
        table.to_parquet(tmp_path / "nowhere" / "x")
    assert stat.S_ISFIFO(queue.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "queue"]
    assert os.listdir(folder) == []


def test_others_may_read_it_as_any_new_file_or_as_the_one_before(tmp_path: Path) -> None:
    path, other = tmp_path / "new", tmp_path / "other"
    other.touch()
    written(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    for mode in (0o640, 0o444):
        path.chmod(mode)
        written(path, "newer")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_path_that_ends_as_a_folder_does_is_no_file(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/new/", ""):
        with pytest.raises(fs.SourceError, match="names no file"), whole_file(path):
            pass
    assert os.listdir(tmp_path) == []
