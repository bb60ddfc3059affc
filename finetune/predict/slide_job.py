"""Prediction of one slide from pixels to files: tiles, cells, seams, outputs; resumes where a process ended."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.datasets.patients import patient_of
from finetune.predict.config import PredictConfig
from finetune.predict.outputs.output_names import GEOJSON, file_of, work_folder
from finetune.predict.outputs.own_files import OwnFiles, read_summary
from finetune.predict.outputs.write_all import Outputs, endings_of, write_outputs
from finetune.predict.prediction_plan import PredictPlan, refuse_other_key
from finetune.predict.search.area import Area, Everywhere, Regions, default_area, inside, touched
from finetune.predict.search.cell_store import CellStore, StoredCells, read_progress
from finetune.predict.search.inference import WindowReader, find_cells
from finetune.predict.search.tiling import Tiling
from shared.annotations.qupath import read_objects, read_regions
from shared.annotations.slide_annotations import annotation_for
from shared.cli import make_folder
from shared.errors import UserError
from shared.files import file_lock, printable
from shared.model.cells import Cells
from shared.signals import StopSignal
from shared.training.run_folder import progress
from shared.wsi.image_source import ImageSource, bounds_corner, open_source, require_fine
from shared.wsi.slide import SlideError


@dataclass(frozen=True)
class SlideJob:
    """Slide to predict."""

    plan: PredictPlan
    path: Path
    name: Path
    """Path of its outputs below --out, without suffix."""
    several: bool = False
    """True if there are other slides."""

    @property
    def stem(self) -> Path:
        """Beginning of the paths of its files."""
        return self.plan.config.out / self.name

    @property
    def work(self) -> Path:
        """Folder of its cells."""
        return work_folder(self.stem)

    @property
    def regions(self) -> Path | None:
        """File of its regions; None if none was given."""
        return annotation_for(self.plan.config.regions, self.name, self.several, "regions")

    @property
    def annotations(self) -> Path | None:
        """File of annotated cells to draw beside the predicted ones."""
        return annotation_for(self.plan.config.annotations, self.name, self.several, "annotations")

    @property
    def patient(self) -> str:
        """Patient of the slide; empty if not stated."""
        return patient_of(self.plan.patients, self.path)

    @property
    def key(self) -> dict[str, Any]:
        """Settings and files that determine its cells."""
        return self.plan.key(self.path, self.regions)

    def check(self) -> None:
        """Refuse to mix cells of different settings, and to replace files of users.

        Raises:
            UserError: there are cells of other settings, one file of regions for several slides, or a file of a
                user's in the place of an output.
        """
        self._refuse_links()
        written = {file_of(self.stem, ending).resolve() for ending in GEOJSON.values()}
        for option, drawn in (("regions", self.regions), ("annotations", self.annotations)):
            if drawn is not None and drawn.resolve() in written:
                raise UserError(f"--{option} {drawn} would be overwritten by the cells found; give another --out")
        if before := read_progress(self.work):
            refuse_other_key(before.key, self.key, self.work)
        if not self.is_done():
            OwnFiles(self.stem).refuse_others(endings_of(self.plan.config))

    def _refuse_links(self) -> None:
        """Refuse to write through a symbolic link that leads out of --out.

        Raises:
            UserError: names the link.
        """
        out = self.plan.config.out.resolve()
        inside = [self.stem.parent, self.work, *(self.work.iterdir() if self.work.is_dir() else ())]
        for path in inside:
            if not path.resolve().is_relative_to(out):
                raise UserError(f"{path} is a link out of --out {self.plan.config.out}; remove it")

    def is_done(self) -> bool:
        """Check that all of its files exist and were made with these settings."""
        summary = read_summary(self.stem)
        if summary.get("made_with") != self.made_with:
            return False
        return all(file_of(self.stem, ending).is_file() for ending in summary["files"])

    @property
    def made_with(self) -> dict[str, Any]:
        """Settings and files that determine its output files."""
        return {"cells": self.key, "outputs": self.plan.output_key(self.annotations, self.patient)}


def predict_slide(job: SlideJob, stop: StopSignal) -> dict[str, Any] | None:
    """Find and write the cells of one slide; returns its summary, or None if it was stopped.

    Raises:
        UserError: the slide cannot be read, or nothing can be written.
    """
    make_folder(job.work, "of cells")
    with _alone(job), closing(_open(job)) as source:
        require_fine(source, job.plan.detector.mpp)
        corner = bounds_corner(source)
        annotated = _annotated(job, corner)
        tiling, area = job.plan.tiling(source), _area(job, source, corner)
        batches = tiling.batches(
            touched(tiling, area, job.plan.detector.mpp / source.mpp), job.plan.config.batch_size
        )
        store = CellStore(job.work, job.key, job.plan.columns)
        try:
            select = partial(inside, area=area, scale=job.plan.detector.mpp / source.mpp)
            if _fill(store, job, _reader(job, tiling, batches), select, stop):
                return None
        finally:
            store.close()
        known = store.progress
        asked = sum(map(len, batches))
        if asked and len(known.failures) == asked:
            raise SlideError(f"{job.path}: none of its {asked} tiles can be read ({known.failures[0]})")
        cells = StoredCells(job.work, job.plan.detector.mpp, job.plan.config.min_distance_um)
        outputs = Outputs(
            job.plan.config,
            job.plan.detector,
            job.plan.ratios,
            job.path,
            job.stem,
            source,
            area,
            cells,
            corner,
            tiling,
            job.patient,
        )
        return write_outputs(outputs, annotated, known, asked, job.made_with)


def _fill(
    store: CellStore,
    job: SlideJob,
    reader: WindowReader,
    select: Callable[[np.ndarray], np.ndarray],
    stop: StopSignal,
) -> bool:
    """Predict the remaining batches and store the selected records; returns True if it was stopped."""
    config, detector, batches = job.plan.config, job.plan.detector, reader.batches
    done = store.progress.batches
    first = sum(map(len, batches[:done]))
    left = range(done, len(batches))
    with progress(sum(map(len, batches)), "tile", first, printable(job.name.name)) as bar:
        workers = min(config.workers, len(left))
        for found in find_cells(detector, reader, left, config.precision, workers, job.plan.selection):
            store.append(select(found.cells), found.failures)
            bar.set_postfix(cells=f"{store.progress.owned:,}", refresh=False)
            bar.update(found.tiles)
            if stop.received and found.number + 1 < len(batches):
                return True
    return False


def _reader(job: SlideJob, tiling: Tiling, batches: list[list[int]]) -> WindowReader:
    config, detector = job.plan.config, job.plan.detector
    reopen = partial(open_source, job.path, config.slide_mpp)
    return WindowReader(reopen, tiling, batches, detector.mpp, detector.network.config.views)


def _open(job: SlideJob) -> ImageSource:
    return open_source(job.path, job.plan.config.slide_mpp)


def _annotated(job: SlideJob, corner: tuple[int, int]) -> Cells | None:
    """Read annotated cells to draw beside the predicted ones, in px of level 0.

    Raises:
        UserError: the file cannot be read, or has a class that the detector does not know.
    """
    if job.annotations is None:
        return None
    objects = read_objects(job.annotations).shifted(*(corner if job.plan.config.bounds else (0, 0)))
    label_of = {name: label for label, name in enumerate(job.plan.detector.classes)}
    if unknown := sorted(set(objects.names) - label_of.keys()):
        raise UserError(
            f"{job.annotations} has cells of class {unknown[0]!r}, but the detector knows {', '.join(label_of)}; "
            "rename them"
        )
    labels_N = np.array([label_of[name] for name in objects.names], np.int64)
    return Cells(objects.points_N2, labels_N, np.ones(len(labels_N)))


def _area(job: SlideJob, source: ImageSource, corner: tuple[int, int]) -> Area:
    """Area to search.

    Raises:
        UserError: there is no tissue, or no region for this slide.
    """
    config = job.plan.config
    if config.regions is not None:
        if job.regions is None:
            raise SlideError(f"{config.regions} has no {job.name}.geojson with the regions of {job.path}; add it")
        return _regions(job.regions, config, source, corner if config.bounds else (0, 0))
    return Everywhere(source) if config.everywhere else default_area(source)


def _regions(path: Path, config: PredictConfig, source: ImageSource, offset: tuple[int, int]) -> Regions:
    """Read the annotated regions of a slide, less areas of ignored classes.

    Raises:
        UserError: there is none, or none of --region-class.
    """
    objects = read_regions(path).shifted(*offset)
    if note := objects.note():
        print(f"  {note}")
    regions, ignored = objects.choose(() if config.region_class is None else (config.region_class,))
    if not regions and not objects.regions:
        raise SlideError(
            f"{path} has no regions; draw and export polygons, or leave --regions out (outlines of detections and "
            "areas of ignored classes are no regions)"
        )
    if not regions:
        names = ", ".join(sorted({each.name or "(no class)" for each in objects.regions}))
        raise SlideError(f"{path} has no region of class {config.region_class!r}, only {names}")
    return Regions([each.polygon for each in regions], source, ignored)


@contextmanager
def _alone(job: SlideJob) -> Iterator[None]:
    """Lock the slide for this process; the system releases the lock when the process ends in any way.

    Raises:
        UserError: another process predicts it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(job.work / ".lock"))
        except BlockingIOError as error:
            raise UserError(f"another process predicts {job.path}, see {job.work}; wait for it") from error
        yield
