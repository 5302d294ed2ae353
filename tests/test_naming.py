import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsparse_ray.naming import Place, canonical_names, describe

KINDS = {"embedding", "attention", "mlp", "norm", "head", "router", "expert", "other"}


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
        ("model.language_model.layers.0.x", "layers.0.x"),
        ("language_model.model.layers.0.x", "layers.0.x"),
        ("base_model.model.model.layers.0.x", "layers.0.x"),
        ("module._orig_mod.model.norm.weight", "norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("base_model.other", "base_model.other"),
        ("model.visual.blocks.0.x", "visual.blocks.0.x"),
        ("model.", "model."),
        ("modelling.x", "modelling.x"),
    ],
)
def test_prefixes(name, canonical):
    assert canonical_names([name]) == {name: canonical}


def test_names_that_would_collide_stay_whole():
    names = ["model.a", "transformer.a", "model.b", "c", "module.c"]
    assert canonical_names(names) == {
        "model.a": "model.a",
        "transformer.a": "transformer.a",
        "model.b": "b",
        "c": "c",
        "module.c": "module.c",
    }


PARTS = ["model", "transformer", "module", "base_model", "language_model", "a", "b", "_orig_mod"]


@given(st.sets(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map(".".join)))
def test_canonical_names_never_collide(names):
    canonical = canonical_names(names)
    assert canonical.keys() == names
    assert len(set(canonical.values())) == len(names)
    assert all(name.endswith(short) for name, short in canonical.items())


@pytest.mark.parametrize(
    ("name", "layer", "module", "kind"),
    [
        ("layers.13.self_attn.q_proj.weight", 13, "self_attn.q_proj", "attention"),
        ("layers.13.self_attn.q_proj.bias", 13, "self_attn.q_proj", "attention"),
        ("layers.13.self_attn.q_norm.weight", 13, "self_attn.q_norm", "norm"),
        ("layers.0.input_layernorm.weight", 0, "input_layernorm", "norm"),
        ("layers.1.mlp.gate_proj.weight", 1, "mlp.gate_proj", "mlp"),
        ("layers.1.mlp.gate.weight", 1, "mlp.gate", "router"),
        ("layers.1.mlp.router.weight", 1, "mlp.router", "router"),
        ("layers.1.mlp.router.bias", 1, "mlp.router", "router"),
        (
            "layers.1.mlp.gate.e_score_correction_bias",
            1,
            "mlp.gate.e_score_correction_bias",
            "router",
        ),
        ("layers.1.mlp.experts.17.up_proj.weight", 1, "mlp.experts.17.up_proj", "expert"),
        ("layers.1.mlp.experts.gate_up_proj", 1, "mlp.experts.gate_up_proj", "expert"),
        ("layers.1.mlp.shared_expert.up_proj.weight", 1, "mlp.shared_expert.up_proj", "expert"),
        ("layers.1.mlp.shared_experts.up_proj.weight", 1, "mlp.shared_experts.up_proj", "expert"),
        ("layers.1.mlp.shared_expert_gate.weight", 1, "mlp.shared_expert_gate", "router"),
        ("layers.1.block_sparse_moe.gate.weight", 1, "block_sparse_moe.gate", "router"),
        ("layers.2.fc1.weight", 2, "fc1", "mlp"),
        ("embed_tokens.weight", None, "embed_tokens", "embedding"),
        ("wte.weight", None, "wte", "embedding"),
        ("wpe.weight", None, "wpe", "embedding"),
        ("embeddings.word_embeddings.weight", None, "embeddings.word_embeddings", "embedding"),
        ("embeddings.LayerNorm.weight", None, "embeddings.LayerNorm", "norm"),
        ("lm_head.weight", None, "lm_head", "head"),
        ("score.weight", None, "score", "head"),
        ("v_head.summary.weight", None, "v_head.summary", "head"),
        ("norm.weight", None, "norm", "norm"),
        ("ln_f.bias", None, "ln_f", "norm"),
        ("h.3.ln_1.weight", 3, "ln_1", "norm"),
        ("h.3.attn.c_attn.weight", 3, "attn.c_attn", "attention"),
        ("h.3.mlp.c_fc.weight", 3, "mlp.c_fc", "mlp"),
        ("visual.blocks.7.attn.qkv.weight", 7, "visual.attn.qkv", "attention"),
        ("visual.blocks.7.mlp.fc1.weight", 7, "visual.mlp.fc1", "mlp"),
        ("visual.patch_embed.proj.weight", None, "visual.patch_embed.proj", "other"),
        (
            "vision_model.embeddings.patch_embedding.weight",
            None,
            "vision_model.embeddings.patch_embedding",
            "other",
        ),
        (
            "encoder.layer.5.attention.self.query.weight",
            5,
            "encoder.attention.self.query",
            "attention",
        ),
        ("encoder.layer.5.output.dense.weight", 5, "encoder.output.dense", "mlp"),
        (
            "encoder.block.2.layer.0.SelfAttention.q.weight",
            2,
            "encoder.layer.0.SelfAttention.q",
            "attention",
        ),
        ("weight", None, "weight", "other"),
        ("layers.norm", None, "layers.norm", "norm"),
        ("layers.3", None, "layers.3", "other"),
        ("mixer.7.x", None, "mixer.7.x", "other"),
    ],
)
def test_describe(name, layer, module, kind):
    assert describe(name) == Place(layer, module, kind)


@given(st.text(max_size=30))
def test_any_name_has_a_kind(name):
    assert describe(name).kind in KINDS
