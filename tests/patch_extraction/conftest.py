"""A small folder of sample slides: two biomarkers, two resolutions, names that cause trouble."""

from pathlib import Path

import pytest

from shared.sample_slides import write_slide
from shared.sample_tissue import Specimen, section

SIDE_UM = 512.0  # four patches of 128 um in each direction


@pytest.fixture(scope="session")
def specimens() -> list[Specimen]:
    return [section(seed, SIDE_UM, SIDE_UM) for seed in (21, 22)]


@pytest.fixture(scope="session")
def wsi_dir(specimens, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wsi")
    (folder / "Ki-67").mkdir()
    (folder / "PD-L1").mkdir()
    write_slide(folder / "Ki-67" / "S.1 ü.a.svs", specimens[0], 0.25, aperio=True)
    write_slide(folder / "PD-L1" / "S.1 ü.a.svs", specimens[1], 0.32, aperio=True)
    write_slide(folder / "plain.tif", specimens[1], 0.25)
    return folder
