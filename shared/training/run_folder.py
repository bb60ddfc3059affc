"""Folder of a training run: settings, provenance, metrics and pictures."""

import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from shared.cli import as_plain, make_folder, settings_text
from shared.config_file import flat
from shared.errors import UserError
from shared.files import atomic_path, file_lock, without_nan, write_json

CONFIG, PROVENANCE, LOCK = "config.json", "provenance.json", ".lock"
PACKAGES = ("torch", "torchvision", "timm", "lightly", "webdataset", "openslide-python", "numpy", "scipy")


@functools.cache
def git_commit() -> str:
    """Commit of the running code, with `-dirty` if files have changed; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        here = Path(__file__).parent
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that influence results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """Collect the provenance of an output: command, commit, versions, machine, UTC time, backends."""
    precision = sys.modules.get("shared.training.precision")  # a harvest may do without torch
    return {
        "command": sys.orig_argv,
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": f"{platform.node()} {platform.machine()}",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **({"backends": precision.backends()} if precision else {}),
    }


def progress(total: int, unit: str, initial: int = 0, description: str = "", hidden: bool = False) -> "tqdm[Any]":
    """Make a progress bar with ETA; where no terminal watches, one line every half minute for the log."""
    watched = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        desc=description,
        disable=hidden,
        dynamic_ncols=watched,
        mininterval=0.2 if watched else 30.0,
        maxinterval=10.0 if watched else 60.0,
        file=sys.stderr,
    )


class Run:
    """Folder of one training run; only the first rank writes and prints.

    Files: `config.json` (the resolved config), `provenance.json`, `metrics.jsonl` (one JSON object a step),
    `tensorboard/`, `pictures/`. Opened again by a resumed run it is continued: lines of steps that the
    checkpoint does not know are cut off.
    """

    def __init__(self, folder: Path, config: object, writes: bool = True) -> None:
        """Open the folder, making it if need be.

        Raises:
            UserError: it cannot be written, holds something else, or another process trains in it.
        """
        self.folder = folder
        self.writes = writes
        self._board: Any = None
        self._begins: int | None = None
        self.changes: list[dict[str, Any]] = []
        if writes:
            _refuse_other_contents(folder)
            make_folder(folder, "--run-dir")
            self._lock = _only_process(folder)
            run_id = self.id if (folder / PROVENANCE).exists() else uuid.uuid4().hex[:12]
            print(f"settings (in {folder}/{CONFIG}):\n{settings_text(config)}")
            self.changes = [*self._provenance().get("changes", []), *self._changed(config)]
            write_json(folder / PROVENANCE, {"run_id": run_id, **provenance(), "changes": self.changes})
            write_json(folder / CONFIG, as_plain(config))

    @property
    def id(self) -> str:
        """Identifier of the run in exported weights, kept on resume."""
        try:
            return str(self._provenance()["run_id"])
        except KeyError as error:
            raise UserError(f"{self.folder} is no run folder, but a harvest's; give another --run-dir") from error

    def _provenance(self) -> dict[str, Any]:
        """Provenance of the attempt before; {} in the first."""
        path = self.folder / PROVENANCE
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged; give another run folder with --run-dir") from error

    def _changed(self, config: object) -> list[dict[str, Any]]:
        """List the settings that differ from those of the attempt before, with the step of its last checkpoint."""
        from shared.training.checkpoint import newest_step  # imports torch, which a harvest does without

        path, step = self.folder / CONFIG, newest_step(self.folder)
        if step is None or not path.exists():
            return []
        # Through JSON and back, as the saved ones went: tuples become lists.
        before = dict(flat(json.loads(path.read_text(encoding="utf-8"))))
        now = dict(flat(json.loads(json.dumps(as_plain(config)))))
        names = [name for name in now if name in before and before[name] != now[name]]
        return [{"after_step": step, "setting": name, "before": before[name], "now": now[name]} for name in names]

    def rewind(self, step: int) -> None:
        """Remove metrics of steps after `step` (0: all), which the run logs again."""
        step = step or -1  # a run that begins also logs step 0, before its first step
        self._begins = step + 1
        path = self.folder / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def log(self, step: int, **values: Any) -> None:
        """Append one line to `metrics.jsonl` and the scalars among the values to TensorBoard."""
        if not self.writes:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan({"step": step, **values})) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._tensorboard().add_scalar(name, value, step)

    def picture(self, name: str, image: Image.Image) -> Path:
        """Write `pictures/NAME.png`, atomically; returns its path."""
        path = self.folder / "pictures" / f"{name}.png"
        if self.writes:
            with atomic_path(path) as temporary:
                image.save(temporary, format="PNG")
        return path

    def close(self) -> None:
        """Flush TensorBoard and release the lock of the folder."""
        if self._board is not None:
            self._board.close()
        if self.writes:
            self._lock.close()

    def _tensorboard(self) -> Any:
        if self._board is None:  # imported here: it takes 1-2 s, and a harvest never logs
            from torch.utils.tensorboard import SummaryWriter

            # Hides what an earlier attempt wrote for later steps than the one it resumes from.
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._begins)
        return self._board


def _refuse_other_contents(folder: Path) -> None:
    """Refuse a folder that holds anything but a run."""
    names = sorted(path.name for path in folder.glob("[!.]*"))
    if names and PROVENANCE not in names:
        raise UserError(f"{folder} is no run folder (it holds {', '.join(names[:3])}); give another --run-dir")


def _only_process(folder: Path) -> ExitStack:
    """Hold a lock on the folder until it is closed.

    Raises:
        UserError: another process trains in it, or it cannot be written.
    """
    held = ExitStack()
    try:
        held.enter_context(file_lock(folder / LOCK))
    except BlockingIOError as error:
        raise UserError(f"another process trains in {folder}; wait for it, or give another --run-dir") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; give another --run-dir") from error
    return held


def _step_of(line: str) -> float:
    """Step of a line of metrics; infinite for one that a killed process left incomplete."""
    try:
        step: float = json.loads(line)["step"]
        return step
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
