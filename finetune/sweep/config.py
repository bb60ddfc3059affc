"""Options of a sweep, and its training runs."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from finetune.datasets import READERS, load_data
from finetune.datasets.dataset import AnnotatedData
from finetune.networks import RivalNetwork
from finetune.recipes import RECIPES, Recipe, comparable_settings, with_settings
from finetune.recipes import check as check_recipe
from finetune.results import TEST_SCORES
from finetune.sweep.paper_tables import GIVEN, TABLES, Table, TableRow
from finetune.train import FREE_ON_RESUME, network_for
from shared.cli import as_plain, check_range
from shared.config_file import flat
from shared.errors import UserError
from shared.jobs.slurm import Slurm
from shared.jobs.slurm import check as check_slurm
from shared.jobs.tasks import Task
from shared.training import checkpoint
from shared.weights import weights_file as weights

# Values of `--init` that are no files.
NO_FILE = ("imagenet", "random", GIVEN)


@dataclass(frozen=True, kw_only=True)
class CommonRecipe(Recipe):
    """Recipe of all rows, apart from what rows and seeds decide."""

    name: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = "dpa_p2pnet"
    """Recipe name."""
    run_dir: Path = Path("runs/sweeps")
    """Folder of the runs, TABLE/ROW/seed-N, and of the table; the same folder resumes the sweep."""
    out: Annotated[Path, tyro.conf.Fixed, tyro.conf.Suppress] = Path("detector.pth")
    """Detector in the folder of each run."""
    folds: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 0
    """Sweeps have no folds."""
    fold: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 0
    """Sweeps have no folds."""
    seed: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 0
    """Seed of each run."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train the rows of one of the paper's tables with several seeds each, and print it beside the paper's.

    Stopped, the same command resumes and repeats nothing that is done. Options of a training run (python -m
    finetune) apply to all rows; those that the rows differ in are refused.
    """

    help_groups: ClassVar = {"table": "sweep", "launcher": "slurm"}

    table: tyro.conf.Positional[
        Literal["table6", "table7", "table5", "table4", "table3", "refinement"]  # as in TABLES
    ]
    """table6: MSD and DPP; table7: initial weights; table5: fields of view; table4: wider views;
    table3: rivals, P2PNet, E2E and DPA-P2PNet; refinement: DPP or iterative refinement."""
    seeds: tuple[str, ...] = ("0,1,2",)
    """Seeds; every row is trained once with each."""
    rows: tuple[str, ...] = ()
    """Rows to run; default: all."""
    weights: tuple[str, ...] = ()
    """For table7: ROW=FILE ..., e.g. mae=mae.pth moco_v2=moco_v2_resnet50.pth; one without a file is left out. For
    table3: weights of VGG-16 (mcspatnet), VGG-19 (gl) and HRNet-W48 (fidt); default: from timm's hub."""
    launcher: Literal["local", "slurm"] = "local"
    """local: one run after another on this machine; slurm: all at once as an array of jobs."""
    slurm: Slurm = Slurm()
    """Resources of each job."""
    recipe: Annotated[CommonRecipe, tyro.conf.arg(name="")] = CommonRecipe()
    """Recipe of all rows."""

    @property
    def folder(self) -> Path:
        """Folder of the table and its runs."""
        return self.recipe.run_dir / self.table


@dataclass(frozen=True)
class SweepRun:
    """One row with one seed."""

    row: TableRow
    recipe: Recipe

    @property
    def task(self) -> Task:
        """Training command, as a user would type it."""
        words = (sys.executable, "-m", "finetune", *words_of(self.recipe))
        folder = self.recipe.run_dir  # the log is beside it: a run folder is empty at first
        name = f"{self.row.name}/seed-{self.recipe.seed}"
        return Task(name, words, folder.with_name(f"{folder.name}.log"))

    @property
    def is_finished(self) -> bool:
        """Check that its test scores exist and are not those of a shorter try-out."""
        if not (self.recipe.run_dir / TEST_SCORES).exists():
            return False
        saved = read_kept(self.recipe.run_dir / "config.json")
        return "max_steps" in saved and saved["max_steps"] in (None, self.recipe.max_steps)


def read_kept(path: Path) -> dict[str, Any]:
    """Read a JSON file that a run wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is missing or damaged; remove {path.parent}, and the same command trains it again"
        ) from error


def check(config: SweepConfig) -> AnnotatedData:
    """Validate everything before the first run begins; returns the data.

    Raises:
        UserError: an option, a weights file or the data cannot be used, or the folder has other runs.
    """
    _refuse_what_rows_decide(config)
    runs = planned_runs(config)
    if not runs:
        raise UserError(f"no row of {config.table} is left to run; give --weights ROW=FILE or other --rows")
    for run in runs:
        check_recipe(run.recipe)
    # Weights and views are read to be checked, and seeds share them.
    one_of_each_row = list({run.row.name: run for run in runs}.values())
    for run in one_of_each_row:
        _check_weights(run.recipe)
    if config.launcher == "slurm":
        check_slurm(config.slurm)
    data = load_data(config.recipe.source)
    if not data.splits.get("test"):
        raise UserError(f"{data.folder} has no test tiles to score, only {', '.join(data.splits)}")
    for run in one_of_each_row:
        network_for(run.recipe, data)
    for run in runs:
        checkpoint.refuse_other_settings(run.recipe.run_dir, comparable_settings(run.recipe), FREE_ON_RESUME)
    for run in finished_runs(config):
        settings = comparable_settings(run.recipe)
        checkpoint.refuse_other_settings(run.recipe.run_dir, settings, (*FREE_ON_RESUME, "init"))
    return data


def weights_files(config: SweepConfig) -> list[Path]:
    """Weights files that runs start from."""
    return sorted({Path(run.recipe.init) for run in planned_runs(config) if run.recipe.init not in NO_FILE})


def planned_runs(config: SweepConfig) -> list[SweepRun]:
    """Every row with every seed; every row once before any row twice, for a complete first table.

    Raises:
        UserError: --seeds, --rows or --weights cannot be parsed, or a row lacks the one that trains its weights.
    """
    rows = [row for row in chosen_rows(config) if not is_skipped(row, config)]
    names = {row.name for row in rows}
    for row in rows:
        if row.weights_of and row.weights_of not in names:
            raise UserError(f"{row.name} scores the weights of {row.weights_of}; name both with --rows")
    return [SweepRun(row, _recipe_of(row, seed, config)) for seed in seeds_of(config) for row in rows]


def finished_runs(config: SweepConfig) -> list[SweepRun]:
    """All finished runs in the folder, also of rows and seeds that are not requested now."""
    found = [
        SweepRun(row, _recipe_of(row, int(folder.name.removeprefix("seed-")), config))
        for row in TABLES[config.table].rows
        if row.recipe
        for folder in sorted((config.folder / row.name).glob("seed-*[0-9]"))
    ]
    return sorted((run for run in found if run.is_finished), key=lambda run: run.recipe.seed)


def chosen_rows(config: SweepConfig) -> list[TableRow]:
    """Select the requested rows in the order of the table."""
    table = TABLES[config.table]
    if unknown := set(config.rows) - {row.name for row in table.rows}:
        raise UserError(f"{config.table} has no row {min(unknown)!r}; choose from: {_names(table)}")
    return [row for row in table.rows if not config.rows or row.name in config.rows]


def is_skipped(row: TableRow, config: SweepConfig) -> bool:
    """Check if the row is printed only, or needs a weights file and has none."""
    return not row.recipe or (row.settings.get("init") == GIVEN and row.name not in weights_of(config))


def seeds_of(config: SweepConfig) -> list[int]:
    """Parse `--seeds 0,1,2`, or with spaces.

    Raises:
        UserError: one is no number in range, or is repeated.
    """
    words = [word for group in config.seeds for word in group.split(",")]
    try:
        seeds = [int(word) for word in words]
    except ValueError:
        raise UserError(f"--seeds {' '.join(config.seeds)} is not a list of whole numbers like 0,1,2") from None
    for seed in seeds:
        check_range("seeds", seed, 0, 2**32 - 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(config.seeds)} must be at least one, and no seed twice")
    return seeds


def weights_of(config: SweepConfig) -> dict[str, str]:
    """Parse `--weights` into row -> file; a row may be named by its beginning.

    Raises:
        UserError: no ROW=FILE, or no row or several by that name.
    """
    table = TABLES[config.table]
    rows = [
        row.name for row in table.rows if row.settings.get("init", "random") != "random" or _has_own_trunk(row)
    ]
    if config.weights and not rows:
        raise UserError(f"the rows of {config.table} take no --weights; give those of all rows with --init")
    found: dict[str, str] = {}
    for word in config.weights:
        name, _, file = word.partition("=")
        fitting = [row for row in rows if row == name or row.startswith(f"{name}_")]
        if not file or len(fitting) != 1 or fitting[0] in found:
            raise UserError(f"--weights {word} does not name one row and its file; rows are {', '.join(rows)}")
        found[fitting[0]] = file
    return found


def layout_of(config: SweepConfig) -> str:
    """Name of the data's layout in `finetune.datasets.READERS`."""
    return next(name for name, reader in READERS.items() if reader.matches(config.recipe.source.data))


def words_of(recipe: Recipe) -> list[str]:
    """Arguments of `python -m finetune` for a recipe: the options that differ from the named recipe's."""
    default = dict(flat(as_plain(RECIPES[recipe.name])))
    words = [] if recipe.name == next(iter(RECIPES)) else [recipe.name]
    for name, value in flat(as_plain(recipe)):
        if value == default[name]:
            continue
        option = name.removeprefix("source.").removeprefix("network.").replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _recipe_of(row: TableRow, seed: int, config: SweepConfig) -> Recipe:
    """Fill the common recipe with the settings of row and seed, or a rival's with what is typed."""
    folder = config.folder / row.name / f"seed-{seed}"
    if file := weights_of(config).get(row.name):
        row = dataclasses.replace(row, settings={**row.settings, "init": file})
    own: dict[str, Any] = {"seed": seed, "run_dir": folder, "out": folder / "detector.pth"}
    common = {field.name: getattr(config.recipe, field.name) for field in dataclasses.fields(Recipe)}
    named = RECIPES[row.recipe]
    if row.recipe != config.recipe.name:
        default = CommonRecipe()
        common = {name: value for name, value in common.items() if value != getattr(default, name)}
        for name in ("network", "criterion", "arch"):  # of the family of P2PNet
            common.pop(name, None)
        if _has_own_trunk(row) and common.get("init") != "random":
            common.pop("init", None)
    return with_settings(dataclasses.replace(Recipe(**{**vars(named), **common}), **own), row.settings)


def _has_own_trunk(row: TableRow) -> bool:
    """Check if weights of a ResNet-50 or a ViT do not fit the row's trunk, so that --init cannot give them."""
    network = RECIPES[row.recipe].network if row.recipe else None
    return isinstance(network, RivalNetwork) and network.trunk != "resnet50"


def _refuse_what_rows_decide(config: SweepConfig) -> None:
    """Refuse options that the rows set: they would have no effect."""
    given, default = comparable_settings(config.recipe), comparable_settings(CommonRecipe())
    for name in sorted(TABLES[config.table].decided):
        if given.get(name) != default.get(name):
            raise UserError(f"--{name.replace('_', '-')} is set by the rows of {config.table}; leave it out")


def _check_weights(recipe: Recipe) -> None:
    """Refuse a file that cannot be read, or holds another trunk than the row's."""
    if recipe.init in NO_FILE or isinstance(recipe.network, RivalNetwork):  # a rival's trunk has no choice
        return
    arch = weights.read(Path(recipe.init)).arch
    if recipe.arch not in (None, arch):
        raise UserError(f"{recipe.init} holds a {arch}, but {recipe.arch} is wanted; give another file")


def _names(table: Table) -> str:
    return ", ".join(row.name for row in table.rows)
