"""Each organ still computes what its golden file says."""

import pytest
import torch

from tests.golden.make import FOLDER, ORGANS, build, golden, run

# Other kernels and thread counts add in another order: a few units in the last place of float32,
# through a dozen layers, of numbers up to about ten.
TOLERANCE = 2e-4


@pytest.mark.parametrize("organ", ORGANS)
def test_the_organ_computes_what_it_did(organ: str) -> None:
    state, expected = golden(organ)
    module = build(organ)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)  # nothing may be left of the seed
    module.load_state_dict(state)
    found = run(organ, module)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name], tensor, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            assert found[name].tolist() == tensor.tolist()


@pytest.mark.parametrize("organ", ORGANS)
def test_the_files_are_small_and_say_something(organ: str) -> None:
    assert (FOLDER / f"{organ}.safetensors").stat().st_size < 100_000
    for name, tensor in golden(organ)[1].items():
        assert tensor.double().std() > 0.02, name
        assert tensor.isfinite().all(), name
