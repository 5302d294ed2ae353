"""The randomised method on a real update: the pretrained tiny-a, tuned for a few steps in bf16.

Planted matrices have gaps where they were planted; those of a trained model have none.
"""

import pytest
import torch

from rlsparse_ray.compare.spectra import SpectraOptions, spectra
from rlsparse_ray.compare.spectra.krylov import krylov_spectrum
from rlsparse_ray.compare.spectra.spectrum import gram_spectrum
from rlsparse_ray.compare.spectra.wide import Wide
from rlsparse_ray.demo.models import BASES
from rlsparse_ray.experiments.arithmetic import answer, encode_pairs, questions
from tests.compare.test_spectra_krylov import assert_within_errors

K, OVERSAMPLE = 12, 8
MODULES = ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj")


@pytest.fixture(scope="module")
def updates():
    """Matrices of 128 x 128 and 128 x 320 before and after four steps of AdamW, rounded to bf16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = BASES / "tiny-a"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = [f"model.layers.1.{module}.weight" for module in MODULES]
    before = {name: model.get_parameter(name).detach().bfloat16() for name in names}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    asked = questions("addition", "train")
    for step in range(4):
        batch = [(question, answer(question)) for question in asked[64 * step : 64 * step + 64]]
        ids, mask = encode_pairs(tokenizer, batch)
        model(input_ids=ids, labels=torch.where(mask, ids, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: (base, model.get_parameter(name).detach().bfloat16()) for name, base in before.items()
    }


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_every_measure_is_within_the_error_that_it_states(updates, depth):
    for base, tuned in updates.values():
        assert 0.01 < (base != tuned).float().mean() < 0.5
        exact = spectra(base, tuned, SpectraOptions("exact", k=K))
        options = SpectraOptions("randomised", k=K, oversample=OVERSAMPLE, depth=depth)
        found = spectra(base, tuned, options)
        assert found.method == "randomised"
        assert_within_errors(found, exact, K)


def test_the_errors_shrink_until_they_say_something(updates):
    """A basis of 120 of the 128 dimensions knows the subspace; one of 80 says that it does not."""
    for base, tuned in updates.values():
        shallow, deep = (
            spectra(base, tuned, SpectraOptions("randomised", k=K, oversample=OVERSAMPLE, depth=n))
            for n in (4, 6)
        )
        assert deep.errors["stable_rank"] < 1e-2 * shallow.errors["stable_rank"]
        assert deep.errors["update_top"] < 1e-3 * deep.update_top


def test_singular_values_and_subspaces_of_weights_and_updates(updates):
    for base, tuned in updates.values():
        for matrix in (Wide(base[None]), Wide(tuned[None]), Wide(tuned[None], base[None])):
            exact = gram_spectrum(matrix, K)
            found = krylov_spectrum(matrix, K, K + OVERSAMPLE, 6, 0)
            off = exact.values[0, : K + 1] - found.values[0]
            rounding = exact.error[0, : K + 1] + 1e-12 * exact.values[0, 0]
            assert (off >= -rounding).all() and (off <= found.error[0] + rounding).all()
