"""Fills a folder from a source: goes on where an earlier run stopped, checks sizes and hashes. Not the locking.

There is no record of what is done. The bytes on disk are the record: they are hashed again, which is far quicker than
any network, and which also finds what a power cut or another commit of the same branch left behind. Where a store
tells no hash but a version, the bytes of that version count as they lie; without either a file begins anew.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal_engine.sources.progress import Progress
from shoal_engine.sources.remote import BrokenTransfer, FetchError, RemoteFile, Source
from shoal_engine.sources.versions import RECORD, forget, record, recorded

if TYPE_CHECKING:
    from hashlib import _Hash

PARALLEL_FILES = 4
HASH_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """Tries without a single new byte before giving up, and the wait before each, doubling. Seconds."""

    tries: int = 8
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def wait_s(self, failures: int, asked_s: float | None) -> float:
        """Before the next try, after `failures` >= 1 in a row; `asked_s` is the server's Retry-After."""
        own = self.first_wait_s * 2.0 ** (failures - 1)
        return min(self.longest_wait_s, max(own, asked_s or 0.0))


class Download:
    """One run over all files of a source into `folder`. Use `run` once."""

    def __init__(self, source: Source, folder: Path, progress: Progress, patience: Patience) -> None:
        self._source = source
        self._folder = folder
        self._progress = progress
        self._patience = patience
        self._stopped = threading.Event()

    def run(self) -> None:
        """Return when `folder` holds exactly the source's files, whole and synced. Raises FetchError, OSError."""
        files = self._listed()
        self._clear(files)
        if versions := {file.name: file.version for file in files if file.version}:
            record(self._folder, versions)
        self._progress.expect(sum(file.size for file in files))
        with ThreadPoolExecutor(PARALLEL_FILES) as pool:
            jobs = [pool.submit(self._complete, file) for file in files]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        forget(self._folder)

    def _listed(self) -> tuple[RemoteFile, ...]:
        failures = 0
        while True:
            try:
                return self._source.files()
            except BrokenTransfer as error:
                failures += 1
                self._pause(failures, error)

    def _clear(self, files: tuple[RemoteFile, ...]) -> None:
        """Take away what cannot become a file of the model, then see that the rest fits."""
        named, versions = {file.name: file for file in files}, recorded(self._folder)
        present = 0
        for path in self._folder.iterdir():
            file, size = named.get(path.name), path.stat().st_size
            if file and size <= file.size and _is_known(file, versions.get(path.name)):
                present += size
            elif path.name != RECORD:
                path.unlink()
        missing, free = sum(file.size for file in files) - present, shutil.disk_usage(self._folder).free
        if missing > free:
            raise FetchError(
                f"{missing:,} bytes are missing, but {self._folder.parent} has only {free:,} free"
            )

    def _complete(self, file: RemoteFile) -> None:
        """Bring one file to its full size and right hash; once more from its start if the hash is wrong."""
        for last in (False, True):
            hashed = self._load(file)
            if file.matches(hashed):
                return
            (self._folder / file.name).unlink()
            self._progress.add(-file.size)
            if last:
                raise FetchError(
                    f"{file.name}: the bytes do not match {file.digest}, twice; the store or a proxy is broken"
                )

    def _load(self, file: RemoteFile) -> _Hash:
        """Add what is missing, through broken connections; gives the hash of the whole file."""
        path, hashed = self._folder / file.name, file.new_hash()
        with path.open("ab", buffering=0) as out:
            done = self._rehash(path, hashed)
            failures = 0
            while done < file.size:
                before = done
                try:
                    for chunk in self._rest(file, done):
                        out.write(chunk)
                        hashed.update(chunk)
                        done += len(chunk)
                        self._progress.add(len(chunk))
                    if done < file.size:
                        raise BrokenTransfer(f"{file.name} ended {file.size - done} bytes early")
                except BrokenTransfer as error:
                    failures = 1 if done > before else failures + 1
                    self._pause(failures, error)
            os.fsync(out.fileno())
        return hashed

    def _rehash(self, path: Path, hashed: _Hash) -> int:
        """Take what an earlier run left into the hash; its length in bytes."""
        done = 0
        with path.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                self._refuse_if_stopped()
                hashed.update(chunk)
                done += len(chunk)
                self._progress.add(len(chunk))
        return done

    def _rest(self, file: RemoteFile, offset: int) -> Generator[bytes, None, None]:
        """The bytes from `offset`, never more than the file has."""
        with closing(self._source.read(file, offset)) as chunks:
            for chunk in chunks:
                self._refuse_if_stopped()
                if len(chunk) > file.size - offset:
                    raise FetchError(
                        f"{file.name}: the store sends more than the {file.size:,} bytes it told"
                    )
                offset += len(chunk)
                yield chunk

    def _pause(self, failures: int, error: BrokenTransfer) -> None:
        if failures >= self._patience.tries:
            raise FetchError(f"{error}; gave up after {failures} tries without a new byte") from error
        self._stopped.wait(self._patience.wait_s(failures, error.wait_s))
        self._refuse_if_stopped()

    def _refuse_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise FetchError("another file failed")


def _is_known(file: RemoteFile, version: str | None) -> bool:
    """Whether bytes on disk, loaded as `version`, may be the beginning of `file`."""
    return file.digest is not None or (file.version is not None and file.version == version)
