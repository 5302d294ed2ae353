"""Layer, module and kind of every tensor of every family, on models that transformers builds.

The tables are what we expect, written by hand. A line says how many tensors of the saved
checkpoint it matches, their stored names, their module and their kind. `#` in a name is the layer
number, `*` any other number (the same in the module), and {a,b} stands for a line with a and a
line with b. Every tensor must match one line.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from rlsparse_ray.align import align
from rlsparse_ray.naming import Place, canonical_names, describe
from rlsparse_ray.weights import Checkpoint, open_checkpoint

IDS = {"vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
SIZES = IDS | {
    "pad_token_id": 0,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}
HEADS = SIZES | {"head_dim": 8}
EXPERTS = HEADS | {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

ENDS = """
 1 model.embed_tokens.weight  embed_tokens  embedding
 1 model.norm.weight          norm          norm
"""
HEAD = """
 1 lm_head.weight             lm_head       head
"""
ATTENTION = """
 8 model.layers.#.self_attn.{q,k,v,o}_proj.weight  self_attn.{q,k,v,o}_proj  attention
"""
MLP = """
 6 model.layers.#.mlp.{gate,up,down}_proj.weight   mlp.{gate,up,down}_proj   mlp
"""
NORMS = """
 2 model.layers.#.input_layernorm.weight           input_layernorm           norm
 2 model.layers.#.post_attention_layernorm.weight  post_attention_layernorm  norm
"""
QK_NORMS = """
 4 model.layers.#.self_attn.{q,k}_norm.weight      self_attn.{q,k}_norm      norm
"""
QKV_BIASES = """
 6 model.layers.#.self_attn.{q,k,v}_proj.bias      self_attn.{q,k,v}_proj    attention
"""
SANDWICH = """
 4 model.layers.#.{pre,post}_feedforward_layernorm.weight {pre,post}_feedforward_layernorm norm
"""
SEPARATE_EXPERTS = """
18 model.layers.#.mlp.experts.*.{gate,up,down}_proj.weight mlp.experts.*.{gate,up,down}_proj expert
 2 model.layers.#.mlp.gate.weight                          mlp.gate                          router
"""
FUSED = """
 2 model.layers.#.mlp.gate_up_proj.weight      mlp.gate_up_proj    mlp
 2 model.layers.#.mlp.down_proj.weight         mlp.down_proj       mlp
"""
DENSE = """
 4 transformer.h.#.mlp.dense_{h_to_4h,4h_to_h}.weight  mlp.dense_{h_to_4h,4h_to_h}  mlp
 2 transformer.h.#.self_attention.dense.weight         self_attention.dense         attention
 2 transformer.h.#.self_attention.query_key_value.weight self_attention.query_key_value attention
 1 transformer.word_embeddings.weight                  word_embeddings              embedding
 2 transformer.ln_f.{weight,bias}                      ln_f                         norm
"""
LLAMA = ENDS + HEAD + ATTENTION + MLP + NORMS
LLAMA_4 = """
 1 model.embed_tokens.weight                         embed_tokens                     embedding
 1 model.norm.weight                                 norm                             norm
 1 lm_head.weight                                    lm_head                          head
 8 model.layers.#.self_attn.{q,k,v,o}_proj.weight    self_attn.{q,k,v,o}_proj         attention
 2 model.layers.#.input_layernorm.weight             input_layernorm                  norm
 2 model.layers.#.post_attention_layernorm.weight    post_attention_layernorm         norm
 3 model.layers.#.feed_forward.{gate,up,down}_proj.weight feed_forward.{gate,up,down}_proj mlp
 1 model.layers.#.feed_forward.router.weight         feed_forward.router              router
 1 model.layers.#.feed_forward.experts.gate_up_proj  feed_forward.experts.gate_up_proj expert
 1 model.layers.#.feed_forward.experts.down_proj     feed_forward.experts.down_proj    expert
 3 model.layers.#.feed_forward.shared_expert.{gate,up,down}_proj.weight \
feed_forward.shared_expert.{gate,up,down}_proj expert
"""


@dataclass(frozen=True)
class Family:
    """A class of transformers, its config, and the table."""

    model: str
    config: str
    sizes: dict[str, object]
    table: str


def inside(table: str) -> str:
    """A table of a language model as it is in a vision-language model."""
    return re.sub(r"(?m)^( *\d+) (model\.|lm_head)", r"\1 language_model.\2", table)


LLAMA_4_TEXT = EXPERTS | {"intermediate_size_mlp": 24, "interleave_moe_layer_step": 2}

FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        IDS | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        """
 1 transformer.wte.weight                     wte           embedding
 1 transformer.wpe.weight                     wpe           embedding
 4 transformer.h.#.attn.c_attn.{weight,bias}  attn.c_attn   attention
 4 transformer.h.#.attn.c_proj.{weight,bias}  attn.c_proj   attention
 4 transformer.h.#.mlp.c_fc.{weight,bias}     mlp.c_fc      mlp
 4 transformer.h.#.mlp.c_proj.{weight,bias}   mlp.c_proj    mlp
 4 transformer.h.#.ln_1.{weight,bias}         ln_1          norm
 4 transformer.h.#.ln_2.{weight,bias}         ln_2          norm
 2 transformer.ln_f.{weight,bias}             ln_f          norm
""",
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        EXPERTS,
        ENDS
        + HEAD
        + NORMS
        + ATTENTION
        + QKV_BIASES
        + """
 2 model.layers.#.self_attn.o_proj.bias          self_attn.o_proj              attention
 2 model.layers.#.self_attn.sinks                self_attn.sinks               attention
 4 model.layers.#.mlp.router.{weight,bias}       mlp.router                    router
 2 model.layers.#.mlp.experts.gate_up_proj       mlp.experts.gate_up_proj      expert
 2 model.layers.#.mlp.experts.gate_up_proj_bias  mlp.experts.gate_up_proj_bias expert
 2 model.layers.#.mlp.experts.down_proj          mlp.experts.down_proj         expert
 2 model.layers.#.mlp.experts.down_proj_bias     mlp.experts.down_proj_bias    expert
""",
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", SIZES, LLAMA),
    "llama-4": Family("Llama4ForCausalLM", "Llama4TextConfig", LLAMA_4_TEXT, LLAMA_4),
    "llama-4-vision": Family(
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {
            "text_config": LLAMA_4_TEXT,
            "vision_config": VISION
            | {
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "pixel_shuffle_ratio": 0.5,
            },
        },
        inside(LLAMA_4)
        + """
 1 multi_modal_projector.linear_1.weight               multi_modal_projector.linear_1 other
 1 vision_model.patch_embedding.linear.weight          vision_model.patch_embedding.linear other
 1 vision_model.class_embedding                        vision_model.class_embedding embedding
 1 vision_model.positional_embedding_vlm     vision_model.positional_embedding_vlm embedding
 4 vision_model.layernorm_{pre,post}.{weight,bias}     vision_model.layernorm_{pre,post} norm
 2 vision_model.vision_adapter.mlp.{fc1,fc2}.weight vision_model.vision_adapter.mlp.{fc1,fc2} mlp
16 vision_model.model.layers.#.self_attn.{q,k,v,o}_proj.{weight,bias} \
vision_model.model.self_attn.{q,k,v,o}_proj attention
 8 vision_model.model.layers.#.mlp.{fc1,fc2}.{weight,bias} vision_model.model.mlp.{fc1,fc2} mlp
 8 vision_model.model.layers.#.{input,post_attention}_layernorm.{weight,bias} \
vision_model.model.{input,post_attention}_layernorm norm
""",
    ),
    "qwen-2": Family("Qwen2ForCausalLM", "Qwen2Config", SIZES, LLAMA + QKV_BIASES),
    "qwen-3": Family("Qwen3ForCausalLM", "Qwen3Config", HEADS, LLAMA + QK_NORMS),
    "qwen-2-moe": Family(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        EXPERTS | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
        ENDS
        + HEAD
        + NORMS
        + ATTENTION
        + QKV_BIASES
        + SEPARATE_EXPERTS
        + """
 6 model.layers.#.mlp.shared_expert.{gate,up,down}_proj.weight \
mlp.shared_expert.{gate,up,down}_proj expert
 2 model.layers.#.mlp.shared_expert_gate.weight mlp.shared_expert_gate router
""",
    ),
    "qwen-3-moe": Family(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        EXPERTS | {"moe_intermediate_size": 8},
        ENDS + HEAD + NORMS + ATTENTION + QK_NORMS + SEPARATE_EXPERTS,
    ),
    "qwen-2.5-vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": SIZES
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "vision_config": {
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "out_hidden_size": 16,
                "patch_size": 4,
                "fullatt_block_indexes": [1],
            },
        },
        LLAMA
        + QKV_BIASES
        + """
 1 visual.patch_embed.proj.weight                         visual.patch_embed.proj         other
 4 visual.blocks.#.attn.qkv.{weight,bias}                 visual.attn.qkv                 attention
 4 visual.blocks.#.attn.proj.{weight,bias}                visual.attn.proj                attention
12 visual.blocks.#.mlp.{gate,up,down}_proj.{weight,bias}  visual.mlp.{gate,up,down}_proj  mlp
 4 visual.blocks.#.{norm1,norm2}.weight                   visual.{norm1,norm2}            norm
 1 visual.merger.ln_q.weight                              visual.merger.ln_q              norm
 4 visual.merger.mlp.*.{weight,bias}                      visual.merger.mlp.*             mlp
""",
    ),
    "mistral": Family("MistralForCausalLM", "MistralConfig", SIZES, LLAMA),
    "mixtral": Family(
        "MixtralForCausalLM",
        "MixtralConfig",
        EXPERTS,
        ENDS
        + HEAD
        + NORMS
        + ATTENTION
        + """
 2 model.layers.#.block_sparse_moe.gate.weight block_sparse_moe.gate router
18 model.layers.#.block_sparse_moe.experts.*.{w1,w2,w3}.weight \
block_sparse_moe.experts.*.{w1,w2,w3} expert
""",
    ),
    "deepseek-v3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        SIZES
        | {
            "num_key_value_heads": 2,
            "moe_intermediate_size": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        ENDS
        + HEAD
        + NORMS
        + """
 4 model.layers.#.self_attn.{q_a,q_b}_proj.weight        self_attn.{q_a,q_b}_proj     attention
 2 model.layers.#.self_attn.kv_a_proj_with_mqa.weight    self_attn.kv_a_proj_with_mqa attention
 2 model.layers.#.self_attn.kv_b_proj.weight             self_attn.kv_b_proj          attention
 2 model.layers.#.self_attn.o_proj.weight                self_attn.o_proj             attention
 4 model.layers.#.self_attn.{q,kv}_a_layernorm.weight    self_attn.{q,kv}_a_layernorm norm
 3 model.layers.#.mlp.{gate,up,down}_proj.weight         mlp.{gate,up,down}_proj      mlp
 1 model.layers.#.mlp.gate.weight                        mlp.gate                     router
 1 model.layers.#.mlp.gate.e_score_correction_bias mlp.gate.e_score_correction_bias router
12 model.layers.#.mlp.experts.*.{gate,up,down}_proj.weight \
mlp.experts.*.{gate,up,down}_proj expert
 3 model.layers.#.mlp.shared_experts.{gate,up,down}_proj.weight \
mlp.shared_experts.{gate,up,down}_proj expert
""",
    ),
    "gemma-2": Family(
        "Gemma2ForCausalLM", "Gemma2Config", HEADS, ENDS + ATTENTION + MLP + NORMS + SANDWICH
    ),
    "gemma-3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        HEADS,
        ENDS + ATTENTION + QK_NORMS + MLP + NORMS + SANDWICH,
    ),
    "gemma-3-vision": Family(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"text_config": HEADS, "vision_config": VISION, "mm_tokens_per_image": 4},
        inside(ENDS + ATTENTION + QK_NORMS + MLP + NORMS + SANDWICH)
        + """
 1 multi_modal_projector.mm_input_projection_weight \
multi_modal_projector.mm_input_projection_weight other
 1 multi_modal_projector.mm_soft_emb_norm.weight multi_modal_projector.mm_soft_emb_norm norm
 2 vision_tower.embeddings.patch_embedding.{weight,bias} \
vision_tower.embeddings.patch_embedding other
 1 vision_tower.embeddings.position_embedding.weight \
vision_tower.embeddings.position_embedding embedding
16 vision_tower.encoder.layers.#.self_attn.{q,k,v,out}_proj.{weight,bias} \
vision_tower.encoder.self_attn.{q,k,v,out}_proj attention
 8 vision_tower.encoder.layers.#.mlp.{fc1,fc2}.{weight,bias} \
vision_tower.encoder.mlp.{fc1,fc2} mlp
 8 vision_tower.encoder.layers.#.{layer_norm1,layer_norm2}.{weight,bias} \
vision_tower.encoder.{layer_norm1,layer_norm2} norm
 2 vision_tower.post_layernorm.{weight,bias}         vision_tower.post_layernorm          norm
 1 vision_tower.head.probe                           vision_tower.head.probe              other
 2 vision_tower.head.attention.in_proj_{weight,bias} \
vision_tower.head.attention.in_proj_{weight,bias} attention
 2 vision_tower.head.attention.out_proj.{weight,bias} \
vision_tower.head.attention.out_proj attention
 2 vision_tower.head.layernorm.{weight,bias}         vision_tower.head.layernorm          norm
 4 vision_tower.head.mlp.{fc1,fc2}.{weight,bias}     vision_tower.head.mlp.{fc1,fc2}      mlp
""",
    ),
    "olmo-2": Family(
        "Olmo2ForCausalLM",
        "Olmo2Config",
        SIZES,
        ENDS
        + HEAD
        + ATTENTION
        + QK_NORMS
        + MLP
        + """
 2 model.layers.#.post_attention_layernorm.weight    post_attention_layernorm    norm
 2 model.layers.#.post_feedforward_layernorm.weight  post_feedforward_layernorm  norm
""",
    ),
    "phi-3": Family(
        "Phi3ForCausalLM",
        "Phi3Config",
        SIZES,
        ENDS
        + HEAD
        + NORMS
        + FUSED
        + """
 2 model.layers.#.self_attn.qkv_proj.weight  self_attn.qkv_proj  attention
 2 model.layers.#.self_attn.o_proj.weight    self_attn.o_proj    attention
""",
    ),
    "glm-4": Family(
        "Glm4ForCausalLM",
        "Glm4Config",
        HEADS,
        ENDS
        + HEAD
        + ATTENTION
        + QKV_BIASES
        + NORMS
        + FUSED
        + """
 2 model.layers.#.post_self_attn_layernorm.weight  post_self_attn_layernorm  norm
 2 model.layers.#.post_mlp_layernorm.weight        post_mlp_layernorm        norm
""",
    ),
    "falcon": Family(
        "FalconForCausalLM",
        "FalconConfig",
        IDS | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        DENSE
        + """
 4 transformer.h.#.input_layernorm.{weight,bias}  input_layernorm  norm
""",
    ),
    "falcon-2": Family(
        "FalconForCausalLM",
        "FalconConfig",
        IDS
        | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"new_decoder_architecture": True, "num_kv_heads": 1},
        DENSE
        + """
 4 transformer.h.#.ln_attn.{weight,bias}  ln_attn  norm
 4 transformer.h.#.ln_mlp.{weight,bias}   ln_mlp   norm
""",
    ),
}

RELEASES = {
    "Llama, Meta's own": """
 1 tok_embeddings.weight                           tok_embeddings               embedding
 8 layers.#.attention.{wq,wk,wv,wo}.weight         attention.{wq,wk,wv,wo}      attention
 6 layers.#.feed_forward.{w1,w2,w3}.weight         feed_forward.{w1,w2,w3}      mlp
 4 layers.#.{attention,ffn}_norm.weight            {attention,ffn}_norm         norm
 1 norm.weight                                     norm                         norm
 1 output.weight                                   output                       head
""",
    "Llama 4, Meta's own": """
 2 layers.#.feed_forward.router_DE                 feed_forward.router_DE       router
 4 layers.#.feed_forward.experts.moe_w_{in_eD_F,out_eF_D} \
feed_forward.experts.moe_w_{in_eD_F,out_eF_D} expert
 4 layers.#.feed_forward.w_{in_shared_FD,out_shared_DF}.weight \
feed_forward.w_{in_shared_FD,out_shared_DF} expert
 2 layers.#.feed_forward.w_swiglu_FD.weight        feed_forward.w_swiglu_FD     expert
 2 layers.#.feed_forward.norm.weight               feed_forward.norm            norm
 2 layers.#.attention.wqkv.layer_norm_weight       attention.wqkv.layer_norm_weight norm
""",
    "gpt-oss, quantised": """
 4 model.layers.#.mlp.experts.{gate_up,down}_proj_blocks mlp.experts.{gate_up,down}_proj_blocks \
expert
 4 model.layers.#.mlp.experts.{gate_up,down}_proj_scales mlp.experts.{gate_up,down}_proj_scales \
expert
""",
    "gpt-oss, OpenAI's own": """
 1 embedding.weight                                embedding                    embedding
 1 unembedding.weight                              unembedding                  head
 1 norm.scale                                      norm.scale                   norm
 4 block.#.attn.qkv.{weight,bias}                  attn.qkv                     attention
 4 block.#.attn.out.{weight,bias}                  attn.out                     attention
 2 block.#.attn.sinks                              attn.sinks                   attention
 4 block.#.{attn,mlp}.norm.scale                   {attn,mlp}.norm.scale        norm
 4 block.#.mlp.gate.{weight,bias}                  mlp.gate                     router
 4 block.#.mlp.{mlp1,mlp2}_weight.blocks           mlp.{mlp1,mlp2}_weight.blocks expert
 4 block.#.mlp.{mlp1,mlp2}_weight.scales           mlp.{mlp1,mlp2}_weight.scales expert
 4 block.#.mlp.{mlp1,mlp2}_bias                    mlp.{mlp1,mlp2}_bias         expert
""",
    "DeepSeek V3: scales, and the layer that predicts one more token": """
 2 model.layers.#.self_attn.q_a_proj.weight_scale_inv self_attn.q_a_proj.weight_scale_inv attention
 2 model.layers.#.embed_tokens.weight              embed_tokens                 embedding
 2 model.layers.#.shared_head.head.weight          shared_head.head             head
 2 model.layers.#.shared_head.norm.weight          shared_head.norm             norm
 2 model.layers.#.eh_proj.weight                   eh_proj                      other
 4 model.layers.#.{enorm,hnorm}.weight             {enorm,hnorm}                norm
""",
    "DeepSeek V3, its own inference code": """
 1 embed.weight                                    embed                        embedding
 1 head.weight                                     head                         head
 2 layers.#.attn.wq_a.weight                       attn.wq_a                    attention
 4 layers.#.{attn,ffn}_norm.weight                 {attn,ffn}_norm              norm
 4 layers.#.ffn.gate.{weight,bias}                 ffn.gate                     router
 2 layers.#.ffn.experts.7.w1.weight                ffn.experts.7.w1             expert
 2 layers.#.ffn.shared_experts.w1.weight           ffn.shared_experts.w1        expert
""",
    "GLM, first releases": """
 1 transformer.embedding.word_embeddings.weight    embedding.word_embeddings    embedding
 1 transformer.output_layer.weight                 output_layer                 head
 1 transformer.encoder.final_layernorm.weight      encoder.final_layernorm      norm
 2 transformer.encoder.layers.#.self_attention.query_key_value.weight \
encoder.self_attention.query_key_value attention
 2 transformer.encoder.layers.#.mlp.dense_h_to_4h.weight encoder.mlp.dense_h_to_4h mlp
""",
    "OLMo, first releases": """
 1 model.transformer.wte.weight                    wte                          embedding
 1 model.transformer.ff_out.weight                 ff_out                       head
 4 model.transformer.blocks.#.{att_proj,attn_out}.weight {att_proj,attn_out}    attention
 4 model.transformer.blocks.#.{ff_proj,ff_out}.weight {ff_proj,ff_out}          mlp
""",
    "value models": """
 2 v_head.summary.{weight,bias}                    v_head.summary               head
 1 score.weight                                    score                        head
""",
}


@dataclass(frozen=True)
class Line:
    """One line of a table, without alternatives."""

    pattern: str
    module: str
    kind: str

    def place_of(self, name: str) -> Place | None:
        """What a name has to be; None if the line is not about it."""
        names = re.escape(self.pattern).replace(r"\#", "#").replace(r"\*", r"(?P<number>\d+)")
        found = re.fullmatch(names.replace("#", r"(?P<layer>\d+)"), name)
        if found is None:
            return None
        known = found.groupdict()
        layer = int(known["layer"]) if "layer" in known else None
        return Place(layer, self.module.replace("*", known.get("number", "")), self.kind)


def read_table(table: str) -> list[tuple[int, list[Line]]]:
    """How many tensors each line of a table matches, and the lines that it stands for."""
    rows = [text.split(maxsplit=1) for text in table.splitlines() if text.strip()]
    return [(int(count), [Line(*text.split()) for text in expand(line)]) for count, line in rows]


def expand(line: str) -> list[str]:
    """The lines that one with {a,b} stands for; equal braces take the same alternative."""
    braces = re.search(r"\{([^}]*)\}", line)
    if braces is None:
        return [line]
    return [text for word in braces[1].split(",") for text in expand(line.replace(braces[0], word))]


def check(names: list[str], table: str) -> None:
    """Every name matches one line and is what that line says."""
    canonical = canonical_names(names)
    left = set(names)
    for count, lines in read_table(table):
        expected = {
            name: place for line in lines for name in names if (place := line.place_of(name))
        }
        assert len(expected) == count, lines
        assert expected.keys() <= left, f"matched by two lines: {set(expected) - left}"
        left -= expected.keys()
        assert {name: describe(canonical[name]) for name in expected} == expected
    assert left == set()


@cache
def build(family: str) -> torch.nn.Module:
    wanted = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, wanted.config)(**wanted.sizes)
    model: torch.nn.Module = getattr(transformers, wanted.model)(config)
    return model


def save(model: torch.nn.Module, folder: Path) -> Checkpoint:
    model.save_pretrained(folder)
    return open_checkpoint(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family(family, tmp_path):
    names = [tensor.name for tensor in save(build(family), tmp_path).tensors]
    check(names, FAMILIES[family].table)
    # a vision tower's layer 0 is not that of the language model
    places = {name: describe(short) for name, short in canonical_names(names).items()}
    told_apart = {(p.layer, p.module, name.split(".")[-1]) for name, p in places.items()}
    assert len(told_apart) == len(names)


@pytest.mark.parametrize("release", RELEASES)
def test_names_of_original_releases(release):
    table = RELEASES[release]
    names = [
        line.pattern.replace("#", layer)
        for _, lines in read_table(table)
        for line in lines
        for layer in ("0", "61")
    ]
    check(sorted(set(names)), table)


PAIRS = ("gpt2", "gpt-oss", "llama-4", "qwen-2.5-vl", "deepseek-v3", "phi-3", "gemma-3-vision")


@pytest.mark.parametrize("family", PAIRS)
def test_base_and_tuned_are_compared_whole(family, tmp_path):
    model = build(family)
    base = save(model, tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    rows = align(base, save(model, tmp_path / "tuned"))
    assert len(rows) == len(base.tensors)
    assert {row.status for row in rows} == {"compared"}
    assert [row.shape for row in rows] == [tensor.shape for tensor in base.tensors]


def test_gpt2_stores_its_matrices_transposed(tmp_path):
    """Input channels are the rows there: what its margins mean."""
    shapes = {tensor.name: tensor.shape for tensor in save(build("gpt2"), tmp_path).tensors}
    assert shapes["transformer.h.0.mlp.c_fc.weight"] == (16, 64)


def test_one_model_saved_by_itself_and_within_another():
    """The text model of a vision-language model has the names of the plain one."""
    table = FAMILIES["gemma-3"].table
    names = [line.pattern.replace("#", "0") for _, lines in read_table(table) for line in lines]
    plain = canonical_names(names)
    within = canonical_names(f"language_model.{name}" for name in names)
    assert [within[f"language_model.{name}"] for name in names] == [plain[n] for n in names]
