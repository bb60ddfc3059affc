"""Counters that users bring: a function of theirs, or a detector."""

import numpy as np
import pytest
import torch
from PIL import Image

from patch_extraction.config import HarvestConfig, common_settings
from patch_extraction.count_check import annotated_squares, measure
from patch_extraction.counters.base import HaematoxylinCounter, choose_counter, require_working
from shared.errors import UserError
from shared.model.detector_file import load_detector, save_detector
from shared.model.dpa_p2pnet import DetectorConfig, DPAP2PNet
from shared.samples.specimen import section
from shared.training.precision import autocast
from shared.weights.shipped import NUCLEI_FILE
from shared.wsi.resampling import resample

FUNCTIONS = """
import numpy as np
def corner(image, mpp):
    assert image.dtype == np.uint8 and image.shape[2] == 3
    return [[1.0, 2.0]] * round(image.shape[1] * mpp)
def none(image, mpp): return []
def scribbler(image, mpp):
    image[...] = 0
    return [[1.0, 2.0]]
def number(image, mpp): return 7
def triples(image, mpp): return np.zeros((5, 3))
def broken(image, mpp): return 1 / 0
@np.errstate(all="ignore")
def decorated(image, mpp): return []
class Counting:
    def __call__(self, image, mpp): return []
instance = Counting()
constant = 5
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    name = f"of_{tmp_path.name}"  # modules are imported once a process: another name for every test
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_shipped_detector_is_the_default_and_the_classical_counter_has_two_spellings():
    names = {choose_counter(word).name for word in (HarvestConfig().counter, "nuclei", "detector")}
    assert len(names) == 1 and names.pop().startswith("nuclei ")
    assert isinstance(choose_counter("hematoxylin"), HaematoxylinCounter)
    assert choose_counter("haematoxylin", leave_out_ink=True).name != choose_counter("haematoxylin").name


def test_a_function_counts(mine):
    counter = choose_counter(f"{mine}:corner")
    assert counter.find(np.zeros((8, 40, 3), np.uint8), 0.5).tolist() == [[1.0, 2.0]] * 20
    assert choose_counter(f"{mine}:none").find(np.zeros((8, 8, 3), np.uint8), 1.0).shape == (0, 2)


@pytest.mark.parametrize("writeable", [True, False])
def test_what_a_function_draws_stays_off_the_patch(mine, writeable):
    patch_HW3 = np.full((8, 8, 3), 200, np.uint8)
    patch_HW3.flags.writeable = writeable
    assert len(choose_counter(f"{mine}:scribbler").find(patch_HW3, 0.25)) == 1
    assert (patch_HW3 == 200).all()


def test_settings_tell_counters_and_their_versions_apart(mine, tmp_path):
    names = [choose_counter(f"{mine}:{name}").name for name in ("corner", "none", "corner")]
    assert names[0] == names[2] != names[1]
    (tmp_path / f"{mine}.py").write_text(FUNCTIONS + "# changed\n")
    names.append(choose_counter(f"{mine}:corner").name)
    assert names[3] != names[0]
    other = [choose_counter(f"{mine}:{name}").name for name in ("decorated", "instance")]
    assert {name.partition(" (")[2] for name in other} == {names[3].partition(" (")[2]}  # all of this file
    settings = common_settings(HarvestConfig(wsi_dir="x"), names[0])
    assert settings["counter"] == names[0]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("number", "number returned a number instead of N x 2, the x and y of the cells in px"),
        ("triples", "triples returned 5 x 3 instead of N x 2"),
        ("broken", r"cannot count the cells of an empty patch \(ZeroDivisionError: division by zero\)"),
        ("absent", "the module of_.* has no absent"),
        ("constant", "--counter of_.*:constant is not a function; give MODULE:FUNCTION"),
    ],
)
def test_wrong_functions(mine, name, sentence):
    with pytest.raises(UserError, match=sentence):
        require_working(choose_counter(f"{mine}:{name}"), 0.25, 64)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("no_such_module:f", "--counter no_such_module:f cannot be imported .*; is its folder in PYTHONPATH"),
        ("nucleus", "--counter nucleus is unknown; give nuclei, haematoxylin, detector:FILE or MODULE:FUNCTION"),
        (":f", "--counter :f is unknown"),
        ("math:sqrt", r"math:sqrt \(built in\) cannot count the cells of an empty patch \(TypeError"),
    ],
)
def test_unknown_counters(word, sentence):
    with pytest.raises(UserError, match=sentence):
        require_working(choose_counter(word), 0.25, 64)


@pytest.mark.parametrize("text", ["def f(:\n", "1 / 0\n"])
def test_modules_that_cannot_be_imported(tmp_path, monkeypatch, text):
    name = f"bad_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sentence = r"cannot be imported \((SyntaxError|ZeroDivisionError): .*\)"
    with pytest.raises(UserError, match=sentence):
        choose_counter(f"{name}:f")


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    """Return an untrained detector that takes about every second place for a cell."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("detector") / "detector.pth"
    save_detector(path, DPAP2PNet(DetectorConfig(arch="vit_tiny_patch16_224")), {"mpp": 0.5, "classes": ["cell"]})
    return path


def test_a_detector_counts_at_the_resolution_it_was_trained_at(detector_file):
    image_HW3 = section(5, 64.0, 48.0).render(0.25)
    counter = choose_counter(f"detector:{detector_file}")
    found_N2 = counter.find(image_HW3, 0.25)
    half = resample(image_HW3, (128, 96), (0, 0, 256, 192))  # compared with Pillow in its own tests
    detector, _ = load_detector(detector_file)
    with torch.inference_mode(), autocast(torch.device("cpu"), training=True):
        image_BCHW = torch.tensor(half).permute(2, 0, 1)[None] / 255
        expected = detector.detect(image_BCHW)[0].inside(96, 128).points_N2
    # An untrained network is undecided at some places, and bfloat16 is not exact.
    distance_NM = np.hypot(*(found_N2[:, None] - 2 * expected[None]).transpose(2, 0, 1))
    assert len(expected) > 20 and (distance_NM.min(axis=0) < 0.1).mean() > 0.9
    assert (distance_NM.min(axis=1) < 0.1).mean() > 0.9
    each = counter.find_each([image_HW3, image_HW3[::-1].copy()], 0.25)
    np.testing.assert_allclose(each[0], found_N2, atol=1e-3)
    np.testing.assert_allclose(each[1], counter.find(image_HW3[::-1].copy(), 0.25), atol=1e-3)
    assert counter.find_each([], 0.25) == []
    assert counter.name.startswith("detector ")


def test_the_detector_that_comes_with_the_package(real_data):
    """CoNSeP's fields are of another laboratory than those it was trained on."""
    assert NUCLEI_FILE.stat().st_size <= 12e6
    counter = choose_counter("nuclei")
    squares = list(annotated_squares(real_data / "CoNSeP" / "test", 0.5, 128.0, 0.5))
    theirs, classical = (measure("", squares, 0.5, each, 30) for each in (counter, HaematoxylinCounter()))
    assert theirs.f1 > 0.67 > 0.65 > classical.f1
    assert theirs.precision == 1.0 and theirs.recall > 0.9


def test_the_shipped_detector_on_fields_that_misled_its_predecessors(real_data):
    counter = choose_counter("nuclei")
    for path in real_data.glob("hard_fields/*.png"):
        cells = len(counter.find(np.asarray(Image.open(path).convert("RGB")), 0.25))
        assert cells < 30 if path.name.startswith("blur") else cells >= 40, path
    squares = list(annotated_squares(real_data / "HGSC", 0.47, 128.0))  # collagen that looks like nuclei
    theirs, classical = (measure("", squares, 0.47, each, 30) for each in (counter, HaematoxylinCounter()))
    assert theirs.f1 > 0.6 > 0.4 > classical.f1


def test_a_detector_is_named_in_the_counter_or_beside_it(detector_file):
    named = choose_counter(f"detector:{detector_file}")
    assert named.name == choose_counter("nuclei", detector_file).name
    with pytest.raises(UserError, match="exclude each other"):
        choose_counter("haematoxylin", detector_file)
    with pytest.raises(UserError, match="--leave-out-ink"):
        choose_counter("nuclei", leave_out_ink=True)


def test_exhausted_memory_is_a_sentence(detector_file, monkeypatch):
    monkeypatch.setattr(DPAP2PNet, "detect", lambda *_: torch.empty(2**50, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"memory .*--workers"):
        require_working(choose_counter("nuclei", detector_file), 0.5, 128)


def test_wrong_detectors(detector_file, tmp_path):
    with pytest.raises(UserError, match=r"was trained at 0\.5 um/px and cannot count at 1; give --patch-mpp 0\.5"):
        require_working(choose_counter("nuclei", detector_file), 1.0, 128)
    with pytest.raises(UserError, match=r"no weights file .*nowhere\.pth"):
        choose_counter("nuclei", tmp_path / "nowhere.pth")
    save_detector(tmp_path / "silent.pth", DPAP2PNet(DetectorConfig(arch="vit_tiny_patch16_224")), {})
    with pytest.raises(UserError, match=r"silent\.pth lack classes and mpp"):
        require_working(choose_counter("nuclei", tmp_path / "silent.pth"), 0.25, 128)
