"""Tars: the same bytes every time, members where the index says, keys that WebDataset cannot misread."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data.records import FileRecord, ShardRecord, code_version
from tasks.data.shards import MAX_NAME, TarShard
from tasks.data.storage import Storage

SAMPLES = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_-]{1,30}", fullmatch=True),
    st.dictionaries(st.sampled_from(["mp4", "json", "landmarks.npy", "0000.jpg"]), st.binary(max_size=2000), min_size=1),
    max_size=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SAMPLES)
def test_members_lie_where_the_index_says(tmp_path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    storage = Storage.at(tmp_path)
    placed = {}
    with storage.create("a.tar") as file, TarShard(file) as tar:
        for key, members in samples.items():
            placed[key] = tar.add(key, members)
    content = (tmp_path / "a.tar").read_bytes()
    assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    for key, members in samples.items():
        assert [member["name"] for member in placed[key]] == sorted(members)
        parts = storage.read_ranges("a.tar", [(member["offset"], member["size"]) for member in placed[key]])
        assert {member["name"]: part for member, part in zip(placed[key], parts, strict=True)} == members
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        infos = archive.getmembers()
    assert len(infos) == sum(map(len, samples.values()))
    assert all((info.mtime, info.mode, info.pax_headers) == (0, 0o444, {}) for info in infos)


def write_twice(storage: Storage, key: str) -> None:
    with storage.create("a.tar") as file, TarShard(file) as tar:
        tar.add(key, {"json": b"{}"})
        tar.add(key, {"json": b"{}"})


def test_a_body_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    storage.write("a.tar", b"old")
    with pytest.raises(ValueError, match="two samples"):
        write_twice(storage, "k")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert storage.read("a.tar") == b"old"


@pytest.mark.parametrize("key", ["", "a.b", "a b", "a/b", "é", "x" * MAX_NAME])
def test_keys_that_webdataset_would_misread_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=r"key|longer"), Storage.at(tmp_path).create("a.tar") as file, TarShard(file) as tar:
        tar.add(key, {"json": b"{}"})


def test_a_key_comes_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two samples with the key 'a'"):
        write_twice(Storage.at(tmp_path), "a")
    assert not list(tmp_path.iterdir())


def test_records_round_trip_and_their_content_ignores_timings() -> None:
    files = {"clips/000007.tar": FileRecord(bytes=3, sha256="ab")}
    record = ShardRecord(shard=7, fingerprint="f", inputs={"code": "c"}, files=files, counts={"clips": 1}, seconds={"total": 1.5})
    assert ShardRecord.from_json(record.to_json()) == record
    slower = ShardRecord(shard=7, fingerprint="f", inputs={"code": "c"}, files=files, counts={"clips": 1}, seconds={"total": 9.0})
    assert slower.content == record.content
    with pytest.raises(ValueError, match="not a shard record"):
        ShardRecord.from_json(b"{}")


def test_the_code_version_sees_code_and_not_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.data.records

    module = tmp_path / "tasks" / "one.py"
    module.parent.mkdir()
    monkeypatch.setattr(tasks.data.records, "__file__", str(tmp_path / "tasks" / "data" / "records.py"))
    (tmp_path / "tasks/two.py").write_text("SIZE = 1\n")
    versions = []
    for text in (
        "from tasks.two import SIZE\n\ndef f():\n    return SIZE\n",
        '"""Words."""\nfrom tasks.two import SIZE\n\n\ndef f():\n    """Words."""\n    return SIZE  # why\n',
        "from tasks.two import SIZE\n\ndef f():\n    return SIZE + 1\n",
    ):
        module.write_text(text)
        code_version.cache_clear()
        versions.append(code_version("tasks.one"))
    (tmp_path / "tasks/two.py").write_text("SIZE = 2\n")
    code_version.cache_clear()
    versions.append(code_version("tasks.one"))
    code_version.cache_clear()
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
