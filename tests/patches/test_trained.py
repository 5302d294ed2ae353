"""From a training run to a patch: a subnetwork is trained, saved, made a patch and served."""

import pytest
import torch

from rlsparse_ray.patches import apply_patch, apply_to_model, make_patch
from rlsparse_ray.patches.entries import chunks
from rlsparse_ray.patches.format import open_patch
from rlsparse_ray.training import Subnetwork, SubnetworkAdamW
from rlsparse_ray.weights import Reader
from tests.patches.builders import tensors_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folders of a base and of what 5 steps on a random tenth of its MLPs made of it; the masks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    masks = {n: torch.rand(p.shape) < 0.1 for n, p in model.named_parameters() if ".mlp." in n}
    subnetwork = Subnetwork.from_masks(masks)
    optimizer = SubnetworkAdamW(
        model.named_parameters(), subnetwork, lr=1e-2, weight_decay=0.1, master_weights=True
    )
    for _ in range(5):
        ids = torch.randint(0, 64, (4, 16))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "trained")
    make_patch(folder / "base", folder / "trained", folder / "patch.safetensors")
    return folder, masks


def test_the_patch_is_the_subnetwork(run):
    """Every entry of the patch is one of the mask, and nearly every one of the mask moved."""
    folder, masks = run
    patch = open_patch(folder / "patch.safetensors")
    assert patch.entries.keys() == masks.keys()
    with Reader() as reader:
        for name, mask in masks.items():
            flat = mask.view(-1)
            (chunk,) = chunks(patch, [name], reader)
            assert flat[torch.from_numpy(chunk.indices)].all()
            assert chunk.indices.size > 0.9 * flat.sum()


def test_the_patched_base_is_the_trained_model(run, tmp_path):
    folder, _ = run
    apply_patch(folder / "base", folder / "patch.safetensors", tmp_path / "out")
    assert tensors_of(tmp_path / "out") == tensors_of(folder / "trained")


def test_a_served_base_becomes_the_trained_model(run):
    from transformers import AutoModelForCausalLM

    folder, _ = run
    served, trained = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype="auto")
        for name in ("base", "trained")
    )
    ids = torch.arange(16).view(1, 16)
    assert not torch.equal(served(ids).logits, trained(ids).logits)
    apply_to_model(served, folder / "patch.safetensors")
    assert torch.equal(served(ids).logits, trained(ids).logits)
