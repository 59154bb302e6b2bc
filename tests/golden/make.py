"""Write the golden files anew, with `python -m tests.golden.make`.

They hold what earlier versions computed, so that later ones compute the same: write them anew only where results were
meant to change. Style files are left as they are, if they exist: they are of earlier formats.
"""

from itertools import combinations

from safetensors.torch import save_file
from torch import Tensor

from tests.golden import calls, cases
from tests.oracle import relative_error


def compute() -> dict[str, Tensor]:
    """Compute everything that the golden file holds, by name."""
    results: dict[str, Tensor] = {}
    for name, case in (cases.STYLE_CASES | cases.LOOP_CASES).items():
        results.update({f"{name}: {part}": tensor for part, tensor in case.compute().items()})
    for name in cases.UNALIGNED_CASES:
        results[f"{name}: unaligned"] = cases.compute_unaligned(name)
    results["replay"] = cases.compute_replay()
    results["pictures"] = cases.compute_pictures()
    return results


def check(results: dict[str, Tensor]) -> None:
    """Check that no two cases come to the same, so that each can fail on its own."""
    compared = {name: tensor for name, tensor in results.items() if not name.endswith("style") and name != "pictures"}
    for (name, tensor), (other, other_tensor) in combinations(compared.items(), 2):
        assert tensor.isfinite().all(), name
        if tensor.shape == other_tensor.shape:
            assert (error := relative_error(tensor, other_tensor)) > 1e-3, (name, other, error)


def main() -> None:
    results = compute()
    check(results)
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, cases.FILE)
    for name, path in cases.STYLE_FILES.values():
        if not path.exists():
            calls.save_style(cases.STYLE_CASES[name].make(), path)


if __name__ == "__main__":
    main()
