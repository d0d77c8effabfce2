"""Checkpoints: save and restore one train state, checked to the last bit.

A thin module over Orbax that adds what Orbax leaves out: a SHA-256 over every leaf, verified at
restore (Orbax restores flipped bits without a word), one clear line where a checkpoint does not fit
the state, and an error where a save did not happen.
"""

import errno
import hashlib
import json
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lawm_jax import bucket, runner
from lawm_jax.errors import InputError, TrainingError, first_line

KEEP = 2  # the newest, and the one before it should the newest be damaged


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns."""

    state: Any  # a pytree like the template
    extra: dict[str, Any]  # as it was saved
    step: int


def state_digest(state: Any) -> str:
    """SHA-256 (hex) over every leaf of a pytree: its path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, _), value in zip(leaves, jax.device_get([leaf for _, leaf in leaves]), strict=True):
        array = np.ascontiguousarray(value)
        digest.update(f"{_spec(path, value)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run, in one directory: a folder a step, the newest two are kept."""

    def __init__(self, directory: epath.PathLike, read_only: bool = False) -> None:
        """Opens the directory; read_only: of another run, which may be saving meanwhile.

        Raises InputError where a file has its name.
        """
        bucket.connect(directory)
        self._advice = "" if read_only else "; choose another --workdir"
        path = epath.Path(directory)
        # epath's `absolute` would put the current directory before a gs:// address
        self.directory = path if bucket.is_address(path) else path.absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise InputError(
                f"{self.directory} is a file, where checkpoints should be: move it away"
            )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEEP,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=not read_only,  # what a killed save left behind
                read_only=read_only,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Writes state (a pytree of arrays) and extra (JSON-able); returns when they are there.

        A kill at any instant leaves the previous step whole. A step saved before is left as it is.
        Raises TrainingError where the checkpoint could not be written.
        """
        if step == self._manager.latest_step():
            return
        text = json.dumps({"digest": state_digest(state), "leaves": _specs(state), "extra": extra})
        meta = {"text": text, "sha256": _sha256(text)}
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        except Exception as error:
            if disk_full(error):
                raise TrainingError(
                    f"step {step}: no space left for a checkpoint {self._space(state)}"
                ) from error
            if bucket.is_address(self.directory):  # the libraries have retried
                raise TrainingError(
                    f"step {step}: no checkpoint in {self.directory}: {first_line(error)}"
                ) from error
            raise
        if not saved:
            raise TrainingError(
                f"step {step}: the checkpoint in {self.directory} was refused; the newest there is "
                f"step {self._manager.latest_step()}"
            )

    def restore(self, template: Any) -> Restored | None:
        """Reads the newest checkpoint, or returns None where there is none.

        template: a pytree of arrays, or of jax.ShapeDtypeStruct with shardings, of the structure,
          shapes and dtypes that were saved; the result is placed on devices as the template is.
        Raises InputError where the checkpoint is damaged or of another structure, or where the
        hosts of a run do not see the same one.
        """
        steps = sorted(self._manager.all_steps())
        # Orbax's barriers would wait for a host that finds none, and restore two states as one.
        runner.require_equal(str(steps[-1:]), f"checkpoints in {self.directory}")
        if not steps:
            return None
        step = steps[-1]
        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
            text, sha256 = meta["text"], meta["sha256"]
        except Exception as error:
            raise self._damaged(steps, "its description cannot be read") from error
        if _sha256(text) != sha256:
            raise self._damaged(steps, "its description has changed")
        meta = json.loads(text)
        self._check_structure(step, meta["leaves"], _specs(template))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            state = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )["state"]
        except Exception as error:
            raise self._damaged(steps, "its arrays cannot be read") from error
        if state_digest(state) != meta["digest"]:
            raise self._damaged(steps, "its digest differs")
        return Restored(state, meta["extra"], step)

    def close(self) -> None:
        """Releases Orbax's resources."""
        self._manager.close()

    def _check_structure(self, step: int, saved: list[str], wanted: list[str]) -> None:
        if saved == wanted:
            return
        where = f"checkpoint step {step} in {self.directory} is of another train state"
        for a, b in zip(saved, wanted, strict=False):
            if a != b:
                raise InputError(f"{where}: it has {a}, this run has {b}{self._advice}")
        counts = f"it has {len(saved)} arrays, this run has {len(wanted)}"
        raise InputError(f"{where}: {counts}{self._advice}")

    def _damaged(self, steps: list[int], what: str) -> InputError:
        then = f"continue from step {steps[-2]}" if len(steps) > 1 else "start from the beginning"
        return InputError(
            f"checkpoint step {steps[-1]} in {self.directory} is damaged ({what}); "
            f"delete the folder {self.directory / str(steps[-1])} to {then}"
        )

    def _space(self, state: Any) -> str:
        needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)) / 1e6
        free = shutil.disk_usage(self.directory).free / 1e6
        return (
            f"in {self.directory} ({needed:.1f} MB needed, {free:.1f} MB free); earlier "
            "ones are whole: free some space and start the same command again"
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spec(path: Any, leaf: Any) -> str:
    """Names a leaf, like "params/kernel float32[128, 64]"."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{name} {np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _specs(state: Any) -> list[str]:
    return [_spec(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a disk without space."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
