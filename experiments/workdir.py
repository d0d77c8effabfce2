"""The work directory of a run: a local folder, or one that keeps a gs:// folder up to date.

A process locks the folder that it writes to. Where the work directory is a gs:// address, that
is a staging folder of this machine, runs/gs/BUCKET/...: files are appended to and drawn there, and
`publish` copies what has changed. The bucket is what counts: a start begins with what it holds, so
that any machine continues the run. Orbax writes checkpoints to the bucket itself.

No lock reaches other machines, so the bucket names the process that started last as the owner: it
takes over, as after a preemption, and an earlier one that still lives stops at its next save.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import uuid
from pathlib import Path
from typing import IO, Any

from experiments.identity import complete, differences
from lawm_jax import bucket
from lawm_jax.errors import InputError, TrainingError

LOCK, OWNER, CONFIG, RESULTS = ".lock", ".owner", "config.json", "results.json"


class Workdir:
    """A work directory; printed as the user wrote it.

    Attributes:
      path: the local folder that this process writes to.
      address: where the run is kept: the same, or a gs:// address.
    """

    def __init__(self, name: str) -> None:
        """Raises InputError where the name is an address that cannot be used."""
        self._remote = "://" in name
        self._token = f"{socket.gethostname()} process {os.getpid()} ({uuid.uuid4().hex[:8]})"
        if not self._remote:
            self.path = Path(name)
            self.address = str(self.path)
            return
        bucket.connect(name)
        self.address = name.rstrip("/")
        if not re.fullmatch(r"gs://[^/]+(/(?!\.\.?(/|$))[^/]+)+", self.address):
            raise InputError(f"--workdir={name}: name a folder in the bucket, gs://BUCKET/FOLDER")
        self.path = Path("runs", "gs", self.address.removeprefix("gs://"))
        self._published: dict[str, tuple[int, int]] = {}

    def __str__(self) -> str:
        return self.address

    def claim(self, identity: dict[str, Any]) -> IO[str]:
        """Makes the work directory this process's, until the file that it returns is closed.

        identity: what makes two runs the same one; kept in config.json.

        Raises:
          InputError: another process of this machine uses it, or it belongs to another run.
          TrainingError: the bucket cannot be read or written.
        """
        lock = self._lock()
        try:
            new = not self._is_of(identity)
            if self._remote:
                bucket.write(f"{self.address}/{OWNER}", self._token.encode())
                self._fetch()  # afterwards, for the earlier owner writes no more
            if new:
                part = (self.path / CONFIG).with_suffix(".part")
                part.write_text(json.dumps(identity, indent=2) + "\n")
                part.replace(self.path / CONFIG)
                if self._remote:
                    self._publish()
        except BaseException:
            lock.close()
            raise
        return lock

    def claimant(self) -> str:
        """Which start of which process claimed it last, as this host sees it; every host may ask.

        Raises TrainingError where the bucket cannot be read.
        """
        if self._remote:
            return self._owner()
        try:
            return (self.path / LOCK).read_text().partition("\n")[2]
        except OSError:
            return ""

    def finished(self) -> bool:
        """Whether the run has written its results."""
        if self._remote:
            return bucket.exists(f"{self.address}/{RESULTS}")
        return (self.path / RESULTS).exists()

    def results(self) -> dict[str, Any]:
        """The results, for the process that claimed it.

        Raises InputError where they are damaged.
        """
        path = self.path / RESULTS
        try:
            results = json.loads(path.read_text())
            results["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged; remove it, and the same command writes it again"
            ) from error
        return results

    def publish(self) -> None:
        """Copies to the bucket what has changed; every host must call it. Local: does nothing.

        Before a checkpoint is saved, so that the bucket's logs reach at least as far as it.

        Raises:
          TrainingError: another process has taken over, or the bucket cannot be written.
        """
        if not self._remote:
            return
        from lawm_jax import runner

        runner.all_or_none(self._publish if runner.is_main() else lambda: None)

    def publish_last(self) -> None:
        """Copies what it can when the run has failed: other hosts may not come any more."""
        from lawm_jax import runner

        if self._remote and runner.is_main():
            with contextlib.suppress(TrainingError):
                self._publish()

    def unclaim(self) -> None:
        """Frees a work directory in which bad input kept the run from writing anything."""
        if {path.name for path in self.path.iterdir()} != {LOCK, CONFIG}:
            return
        if self._remote:
            if set(bucket.names(self.address)) != {OWNER, CONFIG} or self._owner() != self._token:
                return
            bucket.delete(f"{self.address}/{CONFIG}")
            bucket.delete(f"{self.address}/{OWNER}")
        (self.path / CONFIG).unlink()

    def _lock(self) -> IO[str]:
        """Locks the folder for this process; the kernel frees it however the process ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / LOCK, "a+")  # noqa: SIM115
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(f"work directory {self} cannot be used: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"work directory {self} is in use by process {lock.readline().strip()}; "
                "wait for it, or choose another --workdir"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n{self._token}\n")
        lock.flush()
        os.fsync(lock.fileno())  # a shared disk shows other hosts nothing of an open file before
        return lock

    def _is_of(self, identity: dict[str, Any]) -> bool:
        """Whether it is of this run already; InputError where it is of another one."""
        before = identity_of(self.address)
        if before is None:
            return False
        settings = lambda run: {**run, "config": None} | complete(run["config"])
        other = differences(settings(before), settings(identity))
        if other:
            named = ", ".join(other)
            raise InputError(
                f"work directory {self} belongs to another run ({named}); "
                "choose another --workdir"
            )
        return True

    # ---- the bucket's side

    def _fetch(self) -> None:
        """Makes the staging folder hold what the bucket does, but for checkpoints."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        for name in bucket.names(self.address):
            if name.startswith("checkpoints/") or name == OWNER:
                continue
            with contextlib.suppress(FileNotFoundError):  # just deleted by the earlier owner
                content = bucket.read(f"{self.address}/{name}")
                path = self.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        self._published = self._files()

    def _publish(self) -> None:
        if (owner := self._owner()) != self._token:
            raise TrainingError(
                f"work directory {self} was taken over by {owner}; this process stops and leaves "
                "it as it is"
            )
        files = self._files()
        changed = [name for name, stamp in files.items() if self._published.get(name) != stamp]
        for name in sorted(changed, key=lambda name: name == RESULTS):  # which says: complete
            bucket.write(f"{self.address}/{name}", (self.path / name).read_bytes())
        for name in self._published.keys() - files.keys():
            bucket.delete(f"{self.address}/{name}")
        self._published = files

    def _owner(self) -> str:
        try:
            return bucket.read(f"{self.address}/{OWNER}").decode()
        except FileNotFoundError:
            return "nobody: its files were removed"

    def _files(self) -> dict[str, tuple[int, int]]:
        """What the staging folder holds: name -> time of the last change, size."""
        files = {}
        for path in self.path.rglob("*"):
            if path.is_file() and path.name != LOCK and path.suffix != ".part":
                stat = path.stat()
                files[str(path.relative_to(self.path))] = stat.st_mtime_ns, stat.st_size
        return files


def identity_of(address: str) -> dict[str, Any] | None:
    """The identity of the run that a work directory belongs to, as `claim` wrote it; or None.

    Raises:
      InputError: a file of its name holds something else.
      TrainingError: the bucket cannot be read.
    """
    try:
        if bucket.is_address(address):
            text = bucket.read(f"{address}/{CONFIG}").decode()
        else:
            text = Path(address, CONFIG).read_text()
        identity = json.loads(text)
        if not isinstance(identity["config"], dict):
            raise ValueError("its config is no object")
        return identity
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{address}/{CONFIG} is not the config of a run: {error}") from error
