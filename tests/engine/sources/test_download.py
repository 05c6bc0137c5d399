"""However a transfer breaks and whatever an earlier run left: the folder ends with exactly the source's files."""

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_engine.sources.download import Download, Patience
from shoal_engine.sources.progress import Progress
from shoal_engine.sources.remote import BrokenTransfer, FetchError, RemoteFile

NAMES = st.sampled_from(["a.json", "b.safetensors", "c.gguf"])


class MemorySource:
    """Files in memory; each entry of `breaks` ends one transfer after so many bytes."""

    def __init__(self, contents, breaks, hashed=True):
        self.contents, self.breaks, self.hashed = contents, list(breaks), hashed

    def files(self):
        return tuple(
            RemoteFile(
                name, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}" if self.hashed else None, ""
            )
            for name, data in self.contents.items()
        )

    def read(self, file, offset):
        data = self.contents[file.name][offset:]
        if not self.breaks:
            yield data
            return
        yield data[: self.breaks.pop()]
        raise BrokenTransfer("gone")


@settings(max_examples=60, deadline=None)
@given(
    contents=st.dictionaries(NAMES, st.binary(max_size=50), min_size=1),
    left=st.dictionaries(st.one_of(NAMES, st.just("old.bin")), st.binary(max_size=60)),
    breaks=st.lists(st.integers(0, 60), max_size=6),
    hashed=st.booleans(),
)
def test_the_folder_holds_the_files_and_progress_adds_up(contents, left, breaks, hashed):
    with tempfile.TemporaryDirectory() as name:
        folder, progress = Path(name), Progress()
        for file, data in left.items():
            (folder / file).write_bytes(data)
        Download(MemorySource(contents, breaks, hashed), folder, progress, Patience(20, 0.0)).run()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
        state = progress.snapshot()
        assert state["bytes_done"] == state["bytes_total"] == sum(map(len, contents.values()))


def test_a_source_that_sends_more_than_it_told_is_refused(tmp_path):
    source = MemorySource({"a.json": b"12345"}, [])
    told = RemoteFile("a.json", 3, None, "")
    source.files = lambda: (told,)
    with pytest.raises(FetchError, match="more than"):
        Download(source, tmp_path, Progress(), Patience(2, 0.0)).run()
    assert (tmp_path / "a.json").stat().st_size <= 3


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(tmp_path):
    source = MemorySource({}, [])
    source.files = lambda: (RemoteFile("a.gguf", 1 << 60, None, ""),)
    with pytest.raises(FetchError, match="free"):
        Download(source, tmp_path, Progress(), Patience(2, 0.0)).run()


def test_waits_double_up_to_a_limit_and_heed_the_server():
    patience = Patience(tries=9, first_wait_s=1, longest_wait_s=10)
    assert [patience.wait_s(failures, None) for failures in (1, 2, 3, 9)] == [1, 2, 4, 10]
    assert patience.wait_s(1, 7) == 7
    assert patience.wait_s(1, 3600) == 10
