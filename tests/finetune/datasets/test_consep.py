"""CoNSeP's cells against the paper's Table 2."""

from pathlib import Path

import numpy as np

from finetune.datasets import Source, load_data


def test_table_2(real_data: Path) -> None:
    data = load_data(Source(data=real_data / "CoNSeP"))
    cells = {name: sum(len(tile.labels_N) for tile in tiles) for name, tiles in data.splits.items()}
    assert {name: len(tiles) for name, tiles in data.splits.items()} == {"train": 22, "val": 5, "test": 14}
    # The paper prints 8,777 test cells: one fell together with another when the points were rasterised.
    assert cells == {"train": 13_040, "val": 2_515, "test": 8_776}
    assert (data.mpp, data.classes) == (0.5, ("inflammatory", "epithelial", "stromal"))


def test_points_are_centres_of_pixels(real_data: Path) -> None:
    tile = load_data(Source(data=real_data / "CoNSeP")).splits["test"][0]
    np.testing.assert_array_equal(tile.points_N2 % 1, 0.5)
