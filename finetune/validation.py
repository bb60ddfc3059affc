"""Validation of a run: scores between steps, the best weights, and what is published at the end."""

from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from finetune import results
from finetune.datasets.dataset import AnnotatedData
from finetune.predict.in_memory import predict_tiles
from finetune.recipes import Recipe
from finetune.scoring.operating_point import FLOOR, as_metadata
from finetune.scoring.tile_scores import score_tiles, tile_curves
from finetune.training.lora import merged
from finetune.training.state import TrainingState
from shared.model.cells import CellDetector
from shared.model.detector_file import LoadedDetector, save_detector
from shared.model.dpa_p2pnet import DPAP2PNet
from shared.training.distributed import World
from shared.training.run_folder import Run, provenance


@dataclass(frozen=True)
class Validation:
    """Scores and weights of one run; only its first rank validates."""

    recipe: Recipe
    data: AnnotatedData
    run: Run
    world: World

    def validate(self, state: TrainingState) -> None:
        """Score the validation tiles, keep the best weights, draw the proposals."""
        results.draw_progress(self.run, self._as_loaded(state), self.data, state.step)
        operating_point: dict[str, Any] = {}
        if self.data.validates:
            tiles = self.data.splits["val"]
            found = predict_tiles(self._as_loaded(state), tiles, self.data.mpp)
            scores = score_tiles(tiles, [each.cells() for each in found], self.data)
            curves = tile_curves(tiles, [each.cells(FLOOR) for each in found], self.data)
            operating_point = as_metadata(curves[:-1])
            self.run.log(state.step, **{f"val/{name}": value for name, value in scores.as_dict().items()})
            tqdm.write(f"step {state.step}: validation {scores.summary()}")
            if scores.macro_f1 < state.best_f1:
                return
            # The untrained net is scored for the curve; any trained one takes its place.
            state.best_f1 = scores.macro_f1 if state.step else -1.0
        state.best_step = state.step
        self._save_weights(state, "best", operating_point)

    def publish(self, state: TrainingState) -> None:
        """Write last and best weights, score them, and copy the best to the recipe's destination."""
        self._save_weights(state, "last", {})
        if not state.best_step:  # tried out for less than the steps between two scores
            self._save_weights(state, "best", {})
        results.finish(self.run, self.recipe.out, self.data, self.world.device)

    def _as_loaded(self, state: TrainingState) -> LoadedDetector:
        """Wrap the detector in training as its file will be loaded."""
        tile, classes = state.eval_model.config.tile(self.recipe.augment.crop), self.data.classes
        return LoadedDetector(self.run.folder, state.eval_model, classes, self.data.mpp, self.world.device, tile)

    def _published(self, state: TrainingState) -> CellDetector:
        """Return the detector as its file holds it, with the changes of LoRA in its weights."""
        network = state.eval_model
        return merged(network) if isinstance(network, DPAP2PNet) else network

    def _save_weights(self, state: TrainingState, name: str, operating_point: dict[str, Any]) -> None:
        """Write `NAME.pth`, weights with their metadata, into the run folder."""
        metadata = {
            "classes": list(self.data.classes),
            "mpp": self.data.mpp,
            "tile": state.eval_model.config.tile(self.recipe.augment.crop),
            "recipe": self.recipe.name,
            "init": self.recipe.init,
            "step": state.step,
            "best_validation_f1": state.validated_f1,
            "best_step": state.best_step,
            "seed": self.recipe.seed,
            "run_id": self.run.id,
            **operating_point,
            **provenance(),
        }
        save_detector(self.run.folder / f"{name}.pth", self._published(state), metadata)
