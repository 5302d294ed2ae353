"""A LoRA adapter in a pair is what peft makes of it: base + scaling * B @ A, merged and saved."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlsparse_ray.corpus import load_corpus
from rlsparse_ray.errors import CheckpointError
from rlsparse_ray.plan import make_plan
from rlsparse_ray.weights import Reader, apply_adapter, open_checkpoint
from rlsparse_ray.weights.spec import Adapter
from tests.builders import (
    extract_directly,
    extract_slices,
    mask_rows,
    rows_of,
    write_corpus,
)
from tests.test_derived import windowed

UP = "model.layers.0.mlp.up_proj"


def llama(dtype, tied=False):
    config = LlamaConfig(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=130,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def gpt2(dtype):
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)).to(dtype)


def train(folder, model, dtype=torch.float32, **settings):
    """A base, a random adapter of it and the two merged, each as its own library saves it."""
    torch.manual_seed(0)
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = (parameter.data.float() + torch.randn(parameter.shape) * 0.02).to(
                dtype
            )
    adapted.save_pretrained(folder / "adapter")
    base = type(model).from_pretrained(folder / "base", dtype="auto")
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged")


def applied(folder):
    return apply_adapter(
        open_checkpoint(str(folder / "adapter")), open_checkpoint(str(folder / "base"))
    )


def assert_as_peft(folder, window=1000):
    """Every tensor has the bits that peft's merge has."""
    merged = open_checkpoint(str(folder / "merged")).by_name
    checkpoint = applied(folder)
    assert checkpoint.by_name.keys() == merged.keys()
    with Reader() as reader:
        for spec in checkpoint.tensors:
            if spec.inputs:
                ours = windowed(spec, window, reader)
                assert ours.tobytes() == windowed(merged[spec.name], spec.numel, reader).tobytes()
    return checkpoint


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.bfloat16, {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
        (torch.float32, {"r": 5, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"]}),
        (torch.float16, {"r": 4, "target_modules": ["down_proj"], "use_rslora": True}),
        (
            torch.bfloat16,
            {
                "r": 8,
                "lora_alpha": 32,
                "target_modules": ["q_proj", "v_proj", "up_proj"],
                "rank_pattern": {"layers.1.self_attn.q_proj": 3, "up_proj": 16},
                "alpha_pattern": {"v_proj": 7},
                "modules_to_save": ["lm_head"],
            },
        ),
    ],
)
@pytest.mark.parametrize("window", [1000, 1 << 20])
def test_every_bit_is_as_in_peft(tmp_path, dtype, settings, window):
    train(tmp_path, llama(dtype), **settings)
    checkpoint = assert_as_peft(tmp_path, window)
    assert any(tensor.inputs for tensor in checkpoint.tensors)


@pytest.mark.parametrize(
    ("settings", "head", "embedding"),
    [
        ({"modules_to_save": ["lm_head"]}, "compared", "identical"),
        ({"modules_to_save": ["embed_tokens"]}, "identical", "compared"),
        ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, None, "compared"),
        ({"target_modules": ["lm_head"]}, None, "compared"),
    ],
)
def test_the_head_of_a_tied_base_is_as_in_peft(tmp_path, settings, head, embedding):
    """Trained in full it is one of its own; with a low-rank update it stays the embedding."""
    settings = {"r": 4, "target_modules": ["q_proj"]} | settings
    train(tmp_path, llama(torch.bfloat16, tied=True), **settings)
    assert_as_peft(tmp_path)
    pairs = [{"name": name, "base": "base", "tuned": name} for name in ("adapter", "merged")]
    plan = extract_directly(write_corpus(tmp_path / "c.yaml", pairs), tmp_path / "s")
    ours, theirs = (rows_of(tmp_path / "s", "counts", pair.pair_id) for pair in plan.pairs)
    assert ours == theirs
    rows = rows_of(tmp_path / "s", "tensors", plan.pairs[0].pair_id)
    status = {row["tensor"]: row["status"] for row in rows}
    assert (status.get("lm_head.weight"), status["embed_tokens.weight"]) == (head, embedding)


def test_an_update_of_a_head_that_is_not_tied(tmp_path):
    """peft writes the head under the update too."""
    train(tmp_path, llama(torch.bfloat16), r=4, target_modules=["lm_head"])
    stored = open_checkpoint(str(tmp_path / "adapter")).by_name
    assert "base_model.model.lm_head.base_layer.weight" in stored
    assert assert_as_peft(tmp_path).by_name["lm_head.weight"].encoding == "lora r=4 scale=2"


def test_an_adapter_in_bf16(tmp_path):
    settings = {"r": 8, "target_modules": ["q_proj"]}
    train(tmp_path, llama(torch.bfloat16), torch.bfloat16, **settings)
    assert_as_peft(tmp_path)


def test_transposed_weights(tmp_path):
    """GPT-2 keeps its linear layers as [in, out]."""
    settings = {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    train(tmp_path, gpt2(torch.float32), **settings)
    checkpoint = assert_as_peft(tmp_path, 700)
    (encoding,) = {t.encoding for t in checkpoint.tensors if t.inputs}
    assert encoding == "lora r=4 scale=2 transposed"


def test_a_pair_with_an_adapter_is_a_pair_with_the_merged_model(tmp_path):
    """The same rows and masks; what the adapter leaves alone is identical and read once."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"]}
    train(tmp_path, llama(torch.bfloat16), **settings)
    pairs = [{"name": name, "base": "base", "tuned": name} for name in ("adapter", "merged")]
    corpus = write_corpus(tmp_path / "c.yaml", pairs, slice_bytes=40_000)
    plan = extract_directly(corpus, tmp_path / "s")
    adapter, merged = (pair.pair_id for pair in plan.pairs)
    for criterion in ("exact", "abs:1e-5"):
        ours = mask_rows(tmp_path / "s", adapter, criterion)
        assert ours == mask_rows(tmp_path / "s", merged, criterion)
        assert sum(row["changed"] for row in ours) > 0
    for table in ("counts", "strata", "margins", "steps"):
        assert rows_of(tmp_path / "s", table, adapter) == rows_of(tmp_path / "s", table, merged)
    rows = {r["tensor"]: r for r in rows_of(tmp_path / "s", "tensors", adapter)}
    encoded = {name: r["tuned_encoding"] for name, r in rows.items() if r["tuned_encoding"]}
    assert len(encoded) == 4
    assert set(encoded.values()) == {"lora r=8 scale=2"}
    assert {r["status"] for n, r in rows.items() if n not in encoded} == {"identical"}
    for row in rows_of(tmp_path / "s", "tensors", merged):
        assert rows[row["tensor"]]["tuned_xxh3"] == row["tuned_xxh3"]
    base = sum(a.nbytes for a in load_file(tmp_path / "base" / "model.safetensors").values())
    delta = load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()
    (pair,) = rows_of(tmp_path / "s", "pairs", adapter)
    assert pair["bytes_read"] == base + sum(a.nbytes for a in delta)


def test_each_byte_is_read_once(tmp_path):
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"]}
    train(tmp_path, llama(torch.bfloat16), **settings)
    entry = {"name": "p", "base": "base", "tuned": "adapter"}
    plan = make_plan(load_corpus(write_corpus(tmp_path / "c.yaml", [entry])))
    reports = extract_slices(plan, tmp_path / "s")
    files = ("base/model.safetensors", "adapter/adapter_model.safetensors")
    weights = sum(a.nbytes for f in files for a in load_file(tmp_path / f).values())
    assert sum(report.nbytes for report in reports) == plan.nbytes == weights


def changed(checkpoint, **settings):
    config = json.loads(checkpoint.adapter.config) | settings
    return replace(checkpoint, adapter=Adapter(json.dumps(config)))


def test_what_cannot_be_applied_is_refused(tmp_path):
    train(tmp_path, llama(torch.bfloat16), r=8, target_modules=["up_proj"])
    base = open_checkpoint(str(tmp_path / "base"))
    adapter = open_checkpoint(str(tmp_path / "adapter"))

    def refused(adapter, base, *words):
        with pytest.raises(CheckpointError) as caught:
            apply_adapter(adapter, base)
        for word in (str(tmp_path), *words):
            assert word in str(caught.value)

    refused(changed(adapter, use_dora=True), base, "use_dora", "merge_and_unload")
    refused(changed(adapter, peft_type="IA3"), base, "a IA3 adapter, not LoRA")
    refused(changed(adapter, init_lora_weights="pissa_niter_4"), base, "pissa_niter_4")
    refused(changed(adapter, r=4), base, "of rank 4 do not fit", UP)
    refused(changed(adapter, r=None), base, "lacks r or lora_alpha")
    other = replace(base, tensors=tuple(t for t in base.tensors if UP not in t.name))
    refused(adapter, other, f"updates {UP}.weight, which the base", "lacks")
    first, *rest = adapter.tensors
    odd = replace(first, name=first.name.replace("lora_A", "lora_magnitude_vector"))
    refused(replace(adapter, tensors=(odd, *rest)), base, "belongs to no plain LoRA")
    fp8 = tuple(replace(t, dtype="F8_E4M3") for t in base.tensors)
    refused(adapter, replace(base, tensors=fp8), "F8_E4M3", "merge it first")


def test_an_adapter_is_no_base(tmp_path):
    train(tmp_path, llama(torch.bfloat16), r=8, target_modules=["up_proj"])
    entry = {"name": "p", "base": "adapter", "tuned": "base"}
    plan = make_plan(load_corpus(write_corpus(tmp_path / "c.yaml", [entry])))
    assert "the base of a pair cannot be an adapter" in plan.failed["p"]


def test_the_identity_is_that_of_both(tmp_path):
    train(tmp_path, llama(torch.bfloat16), r=8, target_modules=["up_proj"])
    adapter, base = (open_checkpoint(str(tmp_path / name)) for name in ("adapter", "base"))
    found = apply_adapter(adapter, base)
    assert adapter.revision in found.identity
    assert base.revision in found.identity
    assert found.source == adapter.source
    assert found.adapter is None
    assert found.tied_embeddings is False
