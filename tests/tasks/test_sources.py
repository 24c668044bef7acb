"""Every way to name sources, every name that a file system allows, and everything that may be in the way."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.shards import MAX_NAME
from tasks.preprocessing.keys import identity_part, utterance_part, video_part
from tasks.preprocessing.sources import SourceError, discover, name_file

PART = re.compile(r"[A-Za-z0-9-]+")


def put(path: Path, content: str = "video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def rows(*locations: object) -> list[dict[str, object]]:
    return sorted(discover([str(location) for location in locations]).table.to_pylist(), key=lambda row: (row["key"], row["name"]))


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_parts_are_plain_and_the_longest_name_fits_a_tar(identity: str, video: str, stem: str) -> None:
    parts = identity_part(identity), video_part(video, f"{identity}/{video}"), utterance_part(stem)
    assert all(PART.fullmatch(part) for part in parts)
    assert len(f"{parts[0]}_{parts[1]}_{parts[2]}-999999.confidence.npy") <= MAX_NAME


@given(st.lists(st.text(min_size=1, max_size=40), min_size=2, max_size=2, unique=True))
def test_different_identities_stay_different(names: list[str]) -> None:
    import unicodedata

    one, other = (unicodedata.normalize("NFC", name) for name in names)
    assert (identity_part(one) == identity_part(other)) == (one == other)


def test_accents_do_not_merge_people() -> None:
    assert len({identity_part(name) for name in ("Jose", "José", "jose", "Jose ", "李雷", "李梅")}) == 6


def test_voxceleb_tree_groups_utterances_by_video_whatever_is_given(tmp_path: Path) -> None:
    for utterance in ("00001", "00002"):
        put(tmp_path / "vox/dev/mp4/id00012/21Uxsk56VDQ" / f"{utterance}.mp4")
    put(tmp_path / "vox/dev/mp4/id00012/2DLq_Kkc1r8/00016.mp4")
    found = rows(tmp_path / "vox")
    assert [(row["identity"], row["name"]) for row in found] == [("id00012", "00001"), ("id00012", "00002"), ("id00012", "00016")]
    assert len({row["key"] for row in found}) == 2
    assert [row["key"] for row in rows(tmp_path / "vox/dev/mp4")] == [row["key"] for row in found]


def test_flat_files_are_their_own_identity(tmp_path: Path) -> None:
    put(tmp_path / "RD_Radio1_000.mp4")
    put(tmp_path / "WDA_Kim.MOV")
    put(tmp_path / "notes.txt")
    put(tmp_path / "cover.jpg")
    put(tmp_path / "._WDA_Kim.mov")
    found = rows(tmp_path)
    assert len(found) == 2
    assert len({row["identity"] for row in found}) == 2
    assert all(row["name"] == "0" and row["size"] == 5 for row in found)


def test_odd_names_give_unique_plain_keys(tmp_path: Path) -> None:
    names = [
        "my video.mp4",
        "my-video.mp4",
        "my.video.v2.mp4",
        'it\'s "quoted".mp4',
        "видео.mp4",
        "ビデオ.mp4",
        "video😀.mp4",
        "a;b|c.mp4",
        "-.mp4",
    ]
    for name in names:
        put(tmp_path / "who is this" / name)
    found = rows(tmp_path)
    assert len(found) == len({row["key"] for row in found}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9-]+_[A-Za-z0-9-]+", str(row["key"])) for row in found)
    assert len({row["identity"] for row in found}) == 1


def test_keys_do_not_depend_on_the_mount_or_on_neighbours(tmp_path: Path) -> None:
    put(tmp_path / "a/person/x y.mp4")
    put(tmp_path / "b/person/x y.mp4")
    put(tmp_path / "b/person/x-y.mp4")
    (key,) = {row["key"] for row in rows(tmp_path / "a")}
    assert key in {row["key"] for row in rows(tmp_path / "b")}


def test_a_loop_of_links_and_an_unreadable_folder_are_said_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "videos/person/a.mp4")
    (tmp_path / "videos/person/up").symlink_to(tmp_path / "videos")
    (tmp_path / "videos/loop.mp4").symlink_to(tmp_path / "videos/loop.mp4")
    (tmp_path / "videos/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    closed = tmp_path / "videos/closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if Path(folder) == closed:  # a mode of 0 stops nobody who is root
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    discovery = discover([str(tmp_path / "videos")])
    found = {Path(row["uri"]).name: row["size"] for row in discovery.table.to_pylist()}
    assert found == {"a.mp4": 5, "loop.mp4": None, "gone.mp4": None}
    assert any("closed: Permission denied" in reason for reason in discovery.skipped)
    assert any("up: a link to a folder that was visited already" in reason for reason in discovery.skipped)


def test_nothing_to_work_on_is_a_readable_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no videos found in .*empty.*Give a folder"):
        rows(tmp_path / "empty")
    with pytest.raises(SourceError, match="does not exist"):
        rows(tmp_path / "nowhere")


def test_one_key_for_two_files_is_refused_and_one_file_twice_is_not(tmp_path: Path) -> None:
    put(tmp_path / "a/x.mp4")
    put(tmp_path / "b/x.mp4")
    with pytest.raises(SourceError, match="common parent folder"):
        rows(tmp_path / "a", tmp_path / "b")
    assert len(rows(tmp_path)) == 2
    assert len(rows(tmp_path / "a", tmp_path / "a/x.mp4")) == 1


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_names_everything(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "media/long, talk.mp4")
    put(tmp_path / "media/b.mp4")
    table = pa.table(
        {
            "path": ["media/long, talk.mp4", "media/long, talk.mp4", "media/b.mp4", "s3://bucket/c.mp4"],
            "identity": ["0012", "0012", "Zoë", "0012"],
            "video": ["talk", "talk", None, "other"],
            "start": [0.0, 12.5, None, None],
            "end": [10.0, 20.0, None, None],
            "license": ["CC-BY-4.0", "CC-BY-4.0", None, None],
            "consent": ["form 7", "form 7", None, None],
            "remark": ["", "", "", ""],
        }
    )
    path = tmp_path / f"manifest.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        pcsv.write_csv(table, path)
    found = rows(path)
    by_uri = {}
    for row in found:
        by_uri.setdefault(Path(str(row["uri"])).name, []).append(row)
    talk = by_uri["long, talk.mp4"]
    assert {(row["start"], row["end"], row["licence"], row["consent"]) for row in talk} == {
        (0.0, 10.0, "CC-BY-4.0", "form 7"),
        (12.5, 20.0, "CC-BY-4.0", "form 7"),
    }
    assert len({row["key"] for row in talk}) == 1
    assert len({row["name"] for row in talk}) == 2
    assert talk[0]["identity"] == "0012"
    assert talk[0]["uri"] == str(tmp_path / "media/long, talk.mp4")
    assert by_uri["c.mp4"][0]["uri"] == "s3://bucket/c.mp4"
    assert by_uri["b.mp4"][0]["identity"].startswith("Zoe-")
    assert by_uri["b.mp4"][0]["size"] == 5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,identity\na.mp4,x\n", "no column `path`; its columns are file, identity"),
        ("path,start,end\na.mp4,5,4\n", "row 1 does not end after its start"),
        ("path,start\na.mp4,0\nb.mp4,-1\n", "row 2 starts before 0"),
        ("path,identity\na.mp4,x\n,y\n", "row 2 has no path"),
        ("path,start\na.mp4,soon\n", "not a readable table"),
        ("path\n", "has no rows"),
    ],
)
def test_a_wrong_manifest_says_where(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint):
        rows(put(tmp_path / "manifest.csv", text))


def test_name_file_reads_depth() -> None:
    assert name_file("x.mp4") == ("x", "x", "x.mp4", "0")
    assert name_file("p/x.mp4") == ("p", "x", "p/x.mp4", "0")
    assert name_file("p/v/x.mp4") == ("p", "v", "p/v", "x")
    assert name_file("2020/p/v/x.mp4") == ("p", "v", "2020/p/v", "x")
    assert name_file("p/v/x.mp4")[3] != name_file("p/v/x.mov")[3]
