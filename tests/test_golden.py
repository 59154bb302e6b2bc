"""Results of earlier versions, and their style files, hold for this one."""

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.golden import calls, cases
from tests.golden.cases import LOOP_CASES, STYLE_CASES, STYLE_FILES, UNALIGNED_CASES
from tests.oracle import relative_error

GOLDEN = load_file(cases.FILE)
TOLERANCE = 1e-4


def assert_golden(name: str, tensor: Tensor) -> None:
    assert tensor.shape == GOLDEN[name].shape
    assert relative_error(tensor, GOLDEN[name]) < TOLERANCE, name


@pytest.mark.parametrize("name", [*STYLE_CASES, *LOOP_CASES])
def test_latents(name: str) -> None:
    for part, tensor in (STYLE_CASES | LOOP_CASES)[name].compute().items():
        assert_golden(f"{name}: {part}", tensor)


@pytest.mark.parametrize("name", UNALIGNED_CASES)
def test_unaligned_latents(name: str) -> None:
    assert_golden(f"{name}: unaligned", cases.compute_unaligned(name))


@pytest.mark.parametrize("name", ["LCM", "seeds in batches", "sd1 without guidance"])
def test_a_reference_whose_steps_are_done_along_with_its_targets(name: str) -> None:
    case = STYLE_CASES[name]
    reference = case.make(calls.make_reference)
    assert_golden(f"{name}: aligned", case.generate(reference)[0])
    assert_golden(f"{name}: style", calls.style_latents(reference))


def test_targets_after_their_references() -> None:
    assert_golden("replay", cases.compute_replay())


def test_pictures() -> None:
    pictures = cases.compute_pictures()
    assert pictures.shape == GOLDEN["pictures"].shape
    assert (pictures.int() - GOLDEN["pictures"].int()).abs().max() <= 1  # where rounding goes the other way


@pytest.mark.parametrize("file", STYLE_FILES)
def test_style_files(file: str) -> None:
    name, path = STYLE_FILES[file]
    style = calls.load_style(path)
    assert_golden(f"{name}: style", calls.style_latents(style))
    assert_golden(f"{name}: aligned", STYLE_CASES[name].generate(style)[0])  # of the same model, as it can tell
