"""Sources and dataset on S3, against a server that speaks its protocol; the bytes are those of a local run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks.preprocessing.preprocess
from tasks.data.dataset import Dataset, DatasetError
from tasks.data.storage import Storage, filesystem, open_local
from tasks.preprocessing.sources import SourceError, discover
from tests.tasks.fake_videos import content_of, inline, make_videos, run_fake


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """URL of an empty bucket on a loopback S3 server."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    filesystem("s3://videos")[0].mkdir("videos")
    yield "s3://videos"
    patch.undo()
    server.stop()


def upload(folder: Path, url: str) -> None:
    fs, path = filesystem(url)
    for file in sorted(folder.rglob("*.mp4")):
        fs.put_file(str(file), f"{path}/{file.relative_to(folder)}")


def download(url: str, folder: Path) -> Path:
    fs, root = filesystem(url)
    for path in fs.find(root):
        target = folder / path[len(root) + 1 :]
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(path, str(target))
    return folder


def test_a_dataset_on_s3_holds_the_bytes_of_a_local_one(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.preprocessing.preprocess, "make_executor", inline)
    videos = make_videos(tmp_path / "videos", identities=2, videos=2)
    (videos / "id001/v1/00000.mp4").write_text("no face")
    run_fake(videos, tmp_path / "local")
    result = run_fake(videos, f"{bucket}/data")
    assert content_of(download(f"{bucket}/data", tmp_path / "copy")) == content_of(tmp_path / "local")
    assert run_fake(videos, f"{bucket}/data").made_shards == 0
    dataset = Dataset.open(f"{bucket}/data")
    assert dataset.fingerprint == result.fingerprint
    key = dataset.clips()["key"][0].as_py()
    assert dataset.read_sample("clips", key) == Dataset.open(tmp_path / "local").read_sample("clips", key)
    assert list(dataset.damaged()) == []


def test_sources_on_s3_have_the_keys_of_local_ones(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.preprocessing.preprocess, "make_executor", inline)
    videos = make_videos(tmp_path / "videos", identities=2, videos=1)
    upload(videos, f"{bucket}/sources")
    columns = ["key", "name", "size"]
    remote, local = discover([f"{bucket}/sources"]).table, discover([str(videos)]).table
    assert remote.select(columns).sort_by("key") == local.select(columns).sort_by("key")
    assert run_fake([f"{bucket}/sources"], tmp_path / "data").clips == 8
    assert Dataset.open(tmp_path / "data").clips()["uri"][0].as_py() == f"{bucket}/sources/id000/v0/00000.mp4"


def test_a_manifest_on_s3_is_relative_to_itself(bucket: str) -> None:
    Storage.at(bucket).write("lists/all.csv", b"path,identity\nmedia/a.mp4,anna\n")
    (row,) = discover([f"{bucket}/lists/all.csv"]).table.to_pylist()
    assert (row["uri"], row["identity"]) == (f"{bucket}/lists/media/a.mp4", "anna")


def test_what_is_not_there_is_said(bucket: str) -> None:
    with pytest.raises(SourceError, match=r"no videos found in|does not exist"):
        discover([f"{bucket}/nothing"])
    with pytest.raises(DatasetError, match="there is no dataset at s3://"):
        Dataset.open(f"{bucket}/nothing")
    with pytest.raises(FileNotFoundError), open_local(f"{bucket}/nothing.mp4"):
        pass


def test_storage_behaves_alike_on_both(bucket: str, tmp_path: Path) -> None:
    for storage in (Storage.at(tmp_path), Storage.at(f"{bucket}/plain")):
        for name in ("a/2.bin", "a/1.bin", "a/b/3.bin"):
            storage.write(name, name.encode())
        assert storage.sizes("a") == {"a/1.bin": 7, "a/2.bin": 7}
        assert storage.sizes("nothing") == {}
        assert storage.read_ranges("a/1.bin", [(2, 3), (0, 1)]) == [b"1.b", b"a"]
        assert storage.read_many(["a/1.bin"]) == {"a/1.bin": b"a/1.bin"}
        assert storage.read_many(["a/2.bin", "a/1.bin"]) == {"a/2.bin": b"a/2.bin", "a/1.bin": b"a/1.bin"}
        storage.remove("a/1.bin")
        storage.remove("a/1.bin")
        assert not storage.exists("a/1.bin")
        with pytest.raises(FileNotFoundError):
            storage.read("a/1.bin")
