"""Ownership of output files: one that predictions did not write, or that was edited since, is never replaced."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from finetune.predict.outputs.output_names import ENDINGS, SUMMARY, file_of, work_folder
from shared.errors import UserError
from shared.files import record_digest, recorded, sha256


class OwnFiles:
    """The files of one slide, known by their SHA-256.

    Digests are appended to a record in the slide's work folder before a file takes its place, so that a process
    that dies between two files leaves none behind that the next one would refuse. The summary holds those of the
    last files, too.
    """

    def __init__(self, stem: Path) -> None:
        """`stem`: what the names of the slide's files begin with."""
        self.stem = stem
        self.stage = work_folder(stem) / "new"
        self._record = work_folder(stem) / "written.sha256"

    def refuse_others(self, endings: Collection[str]) -> None:
        """Refuse to replace files of users.

        Raises:
            UserError: names the file.
        """
        own = self._digests()
        for ending in endings:
            path = file_of(self.stem, ending)
            if self._is_there(path) and not self._is_own(path, own):
                raise UserError(
                    f"{path} was edited since or is not of this prediction; move it, or give another --out"
                )

    def publish(self, endings: Collection[str]) -> None:
        """Move staged files to their places, and remove those of an earlier prediction that were not made again.

        Raises:
            UserError: a file of a user's would be replaced.
        """
        self.refuse_others(endings)
        own = self._digests()
        file_of(self.stem, SUMMARY).unlink(missing_ok=True)  # while files are being replaced, none is complete
        for ending in set(ENDINGS) - set(endings):
            path = file_of(self.stem, ending)
            if self._is_there(path) and self._is_own(path, own):
                path.unlink()
        for ending in endings:
            staged = file_of(self.stage / self.stem.name, ending)
            record_digest(staged, self._record)
            staged.replace(file_of(self.stem, ending))
        shutil.rmtree(self.stage)

    def _digests(self) -> set[str]:
        files = read_summary(self.stem).get("files")
        return recorded(self._record) | (set(files.values()) if isinstance(files, dict) else set())

    def _is_there(self, path: Path) -> bool:
        return path.exists() or path.is_symlink()

    def _is_own(self, path: Path, own: Collection[str]) -> bool:
        if path.name.endswith(SUMMARY) and "made_with" in read_summary(self.stem):
            return True  # written before digests were recorded
        return path.is_file() and not path.is_symlink() and sha256(path) in own


def read_summary(stem: Path) -> dict[str, Any]:
    """Read the summary of a finished slide; empty if there is none, or a file of another program in its place."""
    try:
        summary = json.loads(file_of(stem, SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
