"""The Hub's API: which files, with what credentials, through which faults; against a Hub on loopback."""

import random

import pytest

from shoal_engine.sources.download import Download, Patience
from shoal_engine.sources.hf import HubModel
from shoal_engine.sources.progress import Progress
from shoal_engine.sources.remote import FetchError
from tests.engine.sources.hub import COMMIT, Hub, running

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
IMPATIENT = Patience(tries=3, first_wait_s=0.001)


def load(hub, folder, uri="hf://org/model", revision=None, **environ):
    progress = Progress()
    source = HubModel(uri, revision, {"HF_ENDPOINT": hub.url, **environ})
    Download(source, folder, progress, IMPATIENT).run()
    return progress.snapshot()


def on_disk(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_an_engine_reads_is_loaded_and_nothing_else(tmp_path):
    other = {"model.bin": b"x", "README.md": b"x", ".gitattributes": b"x", "onnx/config.json": b"x"}
    twice = {"consolidated.safetensors": b"x", "model.gguf": b"x"}
    with running(Hub({**FILES, **other, **twice})) as hub:
        state = load(hub, tmp_path)
    assert on_disk(tmp_path) == FILES
    assert state["bytes_done"] == state["bytes_total"] == sum(map(len, FILES.values()))


def test_a_folder_or_a_file_inside_a_repository(tmp_path):
    with running(Hub({"Q4/a.gguf": b"four", "Q8/a.gguf": b"eight", "top.gguf": b"top"})) as hub:
        for place, content in (("Q4", b"four"), ("Q8/a.gguf", b"eight")):
            folder = tmp_path / content.decode()
            folder.mkdir()
            load(hub, folder, f"hf://org/model/{place}")
            assert on_disk(folder) == {"a.gguf": content}
        with pytest.raises(FetchError, match="neither"):
            load(hub, tmp_path / "four", "hf://org/model/Q5")


def test_all_bytes_come_from_one_commit_of_the_revision(tmp_path):
    with running(Hub(FILES)) as hub:
        load(hub, tmp_path, revision="refs/pr/1")
    paths = [path for server, path, *_ in hub.requests if server == "hub"]
    assert paths[0].endswith("/revision/refs/pr/1")
    assert all(COMMIT in path for path in paths[1:])


def test_the_token_goes_to_the_hub_and_to_nobody_else(tmp_path):
    with running(Hub(FILES, token="secret")) as hub:
        load(hub, tmp_path, HF_TOKEN="secret")
    assert {(server, key) for server, *_, key in hub.requests} == {
        ("hub", "Bearer secret"),
        ("content", None),
    }
    assert on_disk(tmp_path) == FILES


@pytest.mark.parametrize(
    ("uri", "environ", "words"),
    [
        ("hf://org/model", {}, "set HF_TOKEN"),
        ("hf://org/model", {"HF_TOKEN": "wrong"}, "may not read"),
        ("hf://org/absent", {"HF_TOKEN": "secret"}, "does not exist"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(tmp_path, uri, environ, words):
    with running(Hub(FILES, token="secret")) as hub, pytest.raises(FetchError, match=words):
        load(hub, tmp_path, uri, **environ)
    assert len(hub.requests) == 1


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(tmp_path):
    with running(Hub({"model.safetensors": WEIGHTS}, break_after=[100_000, 50_000])) as hub:
        state = load(hub, tmp_path)
    assert on_disk(tmp_path) == {"model.safetensors": WEIGHTS}
    assert [span for _, span in hub.contents()] == [None, "bytes=100000-", "bytes=150000-"]
    assert state["bytes_done"] == len(WEIGHTS)


def test_a_server_without_range(tmp_path):
    with running(Hub({"model.safetensors": WEIGHTS}, break_after=[100_000], knows_range=False)) as hub:
        load(hub, tmp_path)
    assert on_disk(tmp_path) == {"model.safetensors": WEIGHTS}


def test_progress_renews_patience_and_standstill_ends_it(tmp_path):
    one = {"model.safetensors": WEIGHTS}
    with running(Hub(one, break_after=[1000] * 10, statuses=[503, 429])) as hub:
        load(hub, tmp_path)
    assert on_disk(tmp_path) == one
    (tmp_path / "model.safetensors").unlink()
    with (
        running(Hub(one, statuses=[503] * 3)) as hub,
        pytest.raises(FetchError, match=r"503.*gave up after 3"),
    ):
        load(hub, tmp_path)


def test_a_wrong_byte_is_loaded_again_and_then_refused(tmp_path):
    with running(Hub({"model.safetensors": WEIGHTS}, corrupt=1)) as hub:
        state = load(hub, tmp_path)
    assert on_disk(tmp_path) == {"model.safetensors": WEIGHTS}
    assert state["bytes_done"] == len(WEIGHTS)
    (tmp_path / "model.safetensors").unlink()
    with (
        running(Hub({"model.safetensors": WEIGHTS}, corrupt=2)) as hub,
        pytest.raises(FetchError, match="match"),
    ):
        load(hub, tmp_path)
    assert on_disk(tmp_path) == {}


def test_a_wrong_text_is_found_by_its_git_hash(tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"w"}
    (tmp_path / "config.json").write_bytes(b"[]")
    with running(Hub(files)) as hub:
        load(hub, tmp_path)
    assert on_disk(tmp_path) == files


def test_no_hub_at_all(tmp_path):
    with running(Hub(FILES)) as hub:
        pass
    with pytest.raises(FetchError, match="gave up after 3"):
        load(hub, tmp_path)
