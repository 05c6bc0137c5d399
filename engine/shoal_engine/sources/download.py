"""Fills a folder from a source: goes on where an earlier run stopped, checks sizes and hashes. Not the locking.

There is no record of what is done. The bytes on disk are the record: they are hashed again, which is far quicker than
any network, and which also finds what a power cut or another commit of the same branch left behind.
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

    def _listed(self) -> tuple[RemoteFile, ...]:
        failures = 0
        while True:
            try:
                return self._source.files()
            except BrokenTransfer as error:
                failures += 1
                self._pause(failures, error)

    def _clear(self, files: tuple[RemoteFile, ...]) -> None:
        """Take away what is no file of the model, then see that the rest fits."""
        sizes = {file.name: file.size for file in files}
        present = 0
        for path in self._folder.iterdir():
            if path.name not in sizes:
                path.unlink()
            else:
                present += min(path.stat().st_size, sizes[path.name])
        missing, free = sum(sizes.values()) - present, shutil.disk_usage(self._folder).free
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
        if path.exists() and (file.digest is None or path.stat().st_size > file.size):
            path.unlink()  # without a digest nothing tells whose bytes these are
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
