"""Pretrained files: found, downloaded, checked and remembered; missing ones are one readable error."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import weights
from models.weights import TABLE, CorruptWeights, MissingWeights, PretrainedWeights, RemoteFile, WeightsStore

CONTENT = b"not really weights" * 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "net.pth").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def declare(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None) -> None:
    row = PretrainedWeights(
        name="net",
        title="A net",
        files=(RemoteFile(name="net.pth", url=url, sha256=sha256),),
        licence="none",
        megabytes=1,
        used_by="tests",
        without="everything",
    )
    monkeypatch.setattr(weights, "TABLE", {"net": row})


def test_offline_and_missing_is_one_error_that_names_file_place_and_way_out(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights) as raised:
        WeightsStore(root=tmp_path, offline=True).resolve("vgg19")
    message = str(raised.value)
    assert "vgg19-dcbb9e9d.pth" in message
    assert str(tmp_path) in message
    assert TABLE["vgg19"].without in message
    assert "\n" not in message


def test_download_is_checked_kept_and_recorded(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    declare(monkeypatch, f"{server}/net.pth", digest[:8])
    store = WeightsStore(root=tmp_path / "cache")
    path = store.resolve("net")
    assert path.read_bytes() == CONTENT
    assert store.tags() == {"weights.net": "pretrained", "weights.net.pretrained": "true", "weights.net.sha256": digest}
    again = WeightsStore(root=tmp_path / "cache", offline=True)
    assert again.resolve("net") == path


def test_wrong_content_is_refused_and_leaves_nothing(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, f"{server}/net.pth", "0" * 64)
    with pytest.raises(CorruptWeights, match="declared is 0000"):
        WeightsStore(root=tmp_path / "cache").resolve("net")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_local_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vgg19-dcbb9e9d.pth").write_bytes(b"half a download")
    with pytest.raises(CorruptWeights):
        WeightsStore(root=tmp_path, offline=True).resolve("vgg19")


def test_failed_download_says_why(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, f"{server}/gone.pth", None)
    with pytest.raises(MissingWeights, match="HTTP Error 404"):
        WeightsStore(root=tmp_path / "cache").resolve("net")


def test_explicit_path_wins_and_must_exist(tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(b"mine")
    store = WeightsStore(root=tmp_path, overrides={"vgg19": own}, offline=True)
    assert store.resolve("vgg19") == own
    assert store.tags()["weights.vgg19.sha256"] == hashlib.sha256(b"mine").hexdigest()
    with pytest.raises(MissingWeights, match="does not exist"):
        WeightsStore(root=tmp_path, overrides={"vgg19": tmp_path / "no.pth"}).resolve("vgg19")
    with pytest.raises(ValueError, match="there are: vgg19"):
        WeightsStore(root=tmp_path, overrides={"vgg91": own})


def test_folder_rows_need_all_their_files(tmp_path: Path) -> None:
    store = WeightsStore(root=tmp_path, offline=True)
    folder = tmp_path / "wav2vec2-base-960h"
    folder.mkdir()
    names = [file.name for file in TABLE["wav2vec2-base-960h"].files]
    for name in names[:-1]:
        (folder / name).write_bytes(b"x")
    assert store.find("wav2vec2-base-960h") is None
    (folder / names[-1]).write_bytes(b"x")
    assert store.resolve("wav2vec2-base-960h") == folder


def test_random_and_off_are_tagged(tmp_path: Path) -> None:
    store = WeightsStore(root=tmp_path)
    store.record("vgg19", "random")
    store.record("vggface", "off")
    assert store.tags()["weights.vgg19"] == "random"
    assert store.tags()["weights.vgg19.pretrained"] == "false"
    assert store.tags()["weights.vggface"] == "off"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/unpickled-by-models-weights",)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CorruptWeights):
        weights.load_state(tmp_path / "evil.pth")
    assert not Path("/tmp/unpickled-by-models-weights").exists()


def test_state_dicts_of_both_formats(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(4.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        assert torch.equal(weights.load_state(tmp_path / name)["a.weight"], state["a.weight"])


def test_every_row_says_what_a_user_needs() -> None:
    table = weights.render_table()
    for row in TABLE.values():
        assert row.licence
        assert row.without
        assert row.used_by
        assert row.megabytes > 0
        assert f"`{row.name}`" in table
        for file in row.files:
            assert file.url.startswith("https://")
            if file.sha256 and len(file.sha256) < 64:
                assert file.sha256 in file.name
