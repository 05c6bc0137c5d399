"""s3:// against moto's S3: which objects, with what credentials, through which faults, and whose bytes are kept."""

import json
import os
import random

import pytest

from shoal_engine.sources.download import Download, Patience
from shoal_engine.sources.fetch import source_of
from shoal_engine.sources.progress import Progress
from shoal_engine.sources.remote import BrokenTransfer, FetchError
from shoal_engine.sources.s3 import Bucket
from shoal_engine.sources.versions import RECORD
from tests.engine.sources.object_store import BUCKET, running

WEIGHTS = random.Random(3).randbytes(300_000)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS}
URI = f"s3://{BUCKET}/llama"


@pytest.fixture(scope="module")
def server():
    with running() as store:
        yield store


@pytest.fixture
def store(server, monkeypatch):
    """An empty bucket, and an environment as a pod has it that got its keys from a Secret."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server.client.delete_bucket_policy(Bucket=BUCKET)
    for each in server.client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        server.client.delete_object(Bucket=BUCKET, Key=each["Key"])
    for used in (server.requests, server.statuses, server.break_after, server.deaf_to):
        used.clear()
    return server


def load(folder, uri=URI, tries=3):
    progress = Progress()
    Download(Bucket(uri), folder, progress, Patience(tries=tries, first_wait_s=0.001)).run()
    return progress.snapshot()


def on_disk(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_an_engine_reads_of_a_folder_is_loaded_and_nothing_else(store, tmp_path):
    others = {"README.md": b"x", "model.bin": b"x", "old/model.safetensors": b"x", "": b""}
    store.put({**FILES, **others})
    store.put(FILES, "llama-2")
    state = load(tmp_path)
    assert on_disk(tmp_path) == FILES
    assert state["bytes_done"] == state["bytes_total"] == sum(map(len, FILES.values()))
    assert all(signed for *_, signed in store.requests)


def test_shards_over_several_pages_of_a_listing(store, tmp_path, monkeypatch):
    shards = {f"model-{number:05}-of-00025.safetensors": bytes([number]) * number for number in range(1, 26)}
    store.put(shards)
    source = Bucket(URI)
    listing = source._client.list_objects_v2
    monkeypatch.setattr(source._client, "list_objects_v2", lambda **asked: listing(MaxKeys=7, **asked))
    Download(source, tmp_path, Progress(), Patience(2, 0.001)).run()
    assert on_disk(tmp_path) == shards


@pytest.mark.parametrize("uri", [f"{URI}/Q4 K.gguf", f"s3://{BUCKET}/top.gguf"])
def test_one_object(store, tmp_path, uri):
    store.put({"Q4 K.gguf": b"here", "other.gguf": b"there"})
    store.put({"top.gguf": b"here"}, "")
    load(tmp_path, uri)
    assert list(on_disk(tmp_path).values()) == [b"here"]


@pytest.mark.parametrize("uri", [f"s3://{BUCKET}", f"s3://{BUCKET}/"])
def test_a_whole_bucket(store, tmp_path, uri):
    store.put(FILES, "")
    load(tmp_path, uri)
    assert on_disk(tmp_path) == FILES


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(store, tmp_path):
    store.put({"model.safetensors": WEIGHTS})
    store.break_after[:] = [100_000, 50_000]
    state = load(tmp_path)
    assert on_disk(tmp_path) == {"model.safetensors": WEIGHTS}
    assert store.spans() == [
        ("model.safetensors", None),
        ("model.safetensors", "bytes=100000-"),
        ("model.safetensors", "bytes=150000-"),
    ]
    assert state["bytes_done"] == len(WEIGHTS)


def test_a_store_that_is_busy_is_asked_again(store, tmp_path):
    store.put(FILES)
    store.statuses[:] = [503, 429]
    load(tmp_path, tries=5)
    assert on_disk(tmp_path) == FILES
    store.requests.clear()
    store.statuses[:] = [503] * 3
    with pytest.raises(FetchError, match=r"503.*gave up after 3"):
        load(tmp_path, f"{URI}/model.safetensors")


def interrupted(store, folder):
    """What a run leaves that ended in the middle of the weights, after the texts."""
    store.break_after[:] = [len(FILES["config.json"]), 100_000, 0, 0, 0]
    source = Bucket(URI)
    source_files = source.files

    def texts_first():
        return tuple(sorted(source_files(), key=lambda file: file.size))

    source.files = texts_first
    run = Download(source, folder, Progress(), Patience(3, 0.001)).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal_engine.sources.download.PARALLEL_FILES", 1)
        with pytest.raises(FetchError, match="gave up"):
            run()
    store.break_after.clear()
    store.requests.clear()
    assert on_disk(folder)["model.safetensors"] == WEIGHTS[:100_000]


def test_the_next_run_loads_only_what_is_missing(store, tmp_path):
    store.put(FILES)
    interrupted(store, tmp_path)
    load(tmp_path)
    assert on_disk(tmp_path) == FILES
    assert store.spans() == [("model.safetensors", "bytes=100000-")]


def test_bytes_of_an_object_that_was_written_over_are_not_kept(store, tmp_path):
    store.put(FILES)
    interrupted(store, tmp_path)
    changed = bytes(reversed(WEIGHTS))
    store.put({"model.safetensors": changed})
    load(tmp_path)
    assert on_disk(tmp_path) == {**FILES, "model.safetensors": changed}
    assert store.spans() == [("model.safetensors", None)]


@pytest.mark.parametrize("record", [None, b"", b"[1]", b"no json", b'{"other": "1"}'])
def test_bytes_without_a_record_are_not_kept(store, tmp_path, record):
    store.put(FILES)
    (tmp_path / "model.safetensors").write_bytes(bytes(100_000))
    if record is not None:
        (tmp_path / RECORD).write_bytes(record)
    load(tmp_path)
    assert on_disk(tmp_path) == FILES


def test_the_record_is_there_before_the_first_byte(store, tmp_path):
    store.put(FILES)
    source, seen = Bucket(URI), []
    read = source.read

    def noted(file, offset):
        seen.append(json.loads((tmp_path / RECORD).read_text())[file.name] == file.version)
        return read(file, offset)

    source.read = noted
    Download(source, tmp_path, Progress(), Patience(2, 0.001)).run()
    assert seen == [True, True]


def test_a_store_that_ignores_ranges_spoils_nothing(store, tmp_path):
    store.put(FILES)
    interrupted(store, tmp_path)
    store.deaf_to.add("Range")
    with pytest.raises(FetchError, match="cannot send the rest"):
        load(tmp_path)
    assert on_disk(tmp_path)["model.safetensors"] == WEIGHTS[:100_000]


@pytest.mark.parametrize("deaf_to", [(), ("If-Match",)])
def test_an_object_that_changes_while_it_is_loaded_is_refused(store, tmp_path, deaf_to):
    store.deaf_to.update(deaf_to)
    store.put({"model.safetensors": WEIGHTS})
    source = Bucket(URI)
    files = source.files()
    store.put({"model.safetensors": bytes(len(WEIGHTS))})
    source.files = lambda: files
    with pytest.raises(FetchError, match="changed while it was loaded"):
        Download(source, tmp_path, Progress(), Patience(2, 0.001)).run()
    assert on_disk(tmp_path)["model.safetensors"] == b""


@pytest.mark.parametrize("path", ["llama", "llama/model.safetensors"])
def test_who_may_not_read_is_told_so_at_once(store, tmp_path, path):
    store.put(FILES)
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    store.client.put_bucket_policy(
        Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    )
    with pytest.raises(FetchError, match=r"HTTP 403.*these AWS credentials may not"):
        load(tmp_path, f"s3://{BUCKET}/{path}")


def test_without_credentials_requests_are_unsigned_and_the_hint_says_what_to_set(
    store, tmp_path, monkeypatch
):
    store.put(FILES)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FetchError, match=r"HTTP 403.*set AWS credentials"):
        load(tmp_path, f"{URI}/model.safetensors")
    store.client.put_object(Bucket=BUCKET, Key="llama/model.safetensors", Body=WEIGHTS, ACL="public-read")
    load(tmp_path, f"{URI}/model.safetensors")
    assert on_disk(tmp_path) == {"model.safetensors": WEIGHTS}
    assert not any(signed for *_, signed in store.requests)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://absent/llama", "does not exist"),
        (f"{URI}/absent.gguf", "does not exist"),
        (f"s3://{BUCKET}/absent", "neither"),
        (f"s3://{BUCKET}/lla", "neither"),
        ("s3://", "names no bucket"),
        ("s3://Not_A_Bucket!/x", "Invalid bucket name"),
    ],
)
def test_what_is_not_there_is_final(store, tmp_path, uri, words):
    store.put(FILES)
    with pytest.raises(FetchError, match=words):
        load(tmp_path, uri)
    assert len(store.requests) <= 1


def test_a_store_of_the_users_own_gets_the_bucket_in_the_path(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.invalid:9000")
    source, asked = source_of(URI, None, {}), []
    source._client.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.url))
    with pytest.raises(BrokenTransfer):
        source.files()
    assert asked[0].startswith(f"http://minio.invalid:9000/{BUCKET}?")


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_of_the_environment_is_asked(store, monkeypatch, name):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, "eu-north-1")
    assert Bucket(URI)._client.meta.endpoint_url == "https://s3.eu-north-1.amazonaws.com"


def test_no_store_at_all(store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(FetchError, match="gave up after 3"):
        load(tmp_path)


def test_a_wrong_environment_is_named(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(FetchError, match="environment's AWS settings"):
        Bucket(URI)
