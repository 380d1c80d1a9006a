"""Model families: tiny random models, each held against Transformers by tests and by `benchmarks models`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import decilm, vision
from tests.models import NULL, TINY_CONFIG, tiny_model

# Heads that are as wide as the model: whoever divides finds the head size that whoever reads it finds.
NEAT_HEADS: dict[str, Any] = {"hidden_size": 128}
# For configurations that have no head size, or another.
NO_HEAD_DIM: dict[str, Any] = {"head_dim": None, "hidden_size": 128}
NO_KV_HEADS: dict[str, Any] = NO_HEAD_DIM | {"num_key_value_heads": None}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS: dict[str, Any] = EXPERTS | {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "head_dim": None,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "hidden_size": 128,
    # The default's is wrong in vLLM on CPUs, also on plain prompts; published models have this.
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
}
ONE_KIND = ["full_attention"] * 3
TWO_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
}
GPT_OSS_ROPE = YARN_ROPE | {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
# vLLM then asks for no processor of images, and takes no images.
TEXT_ONLY: dict[str, Any] = {"language_model_only": True}
# With it, vLLM's kernels for CPUs fail on recurrent layers.
NO_PREFIX_CACHE: dict[str, Any] = {"enable_prefix_caching": False}
# Without attention.
MAMBA: dict[str, Any] = dict.fromkeys(("num_attention_heads", "num_key_value_heads", "intermediate_size"))
FALCON_RW = {"multi_query": False, "alibi": True, "parallel_attn": False, "bias": True}
QWEN3_VISION: dict[str, Any] = {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
# Published Granites scale scores; the default does not.
SCALED = {"attention_multiplier": 32**-0.5}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}


def with_vision(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """A configuration with a part for images, which is small and never asked."""
    small = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128}
    return dict.fromkeys(TINY_CONFIG) | {
        "text_config": TINY_CONFIG | NEAT_HEADS | text,
        "vision_config": small | vision,
        "tie_word_embeddings": False,
        "image_token_id": 5,
        "video_token_id": 6,
    }


@dataclass(frozen=True)
class Family:
    """A tiny random model: what Transformers makes of ``model_type`` with ``changes``, in an engine with
    ``settings``; ``users`` names models that people know. Of one that ``is_recurrent`` nothing is reused."""

    users: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    is_recurrent: bool = False

    def model(self) -> Path:
        """The folder of the model, which vLLM can serve from then on."""
        if self.settings.items() >= TEXT_ONLY.items():
            vision.make_importable()
        return tiny_model(self.model_type, draws_norms=True, **(NEAT_HEADS | self.changes))


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama 2 and 3, Yi, InternLM 3, DeepSeek-R1-Distill", "llama"),
    "llama-3.1": Family("Llama 3.1 to 3.3", "llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-yarn": Family("Llama with YaRN", "llama", {"rope_parameters": YARN_ROPE}),
    "qwen2": Family("Qwen2, Qwen2.5", "qwen2"),
    "qwen2-moe": Family(
        "Qwen1.5-MoE, Qwen2-MoE",
        "qwen2_moe",
        EXPERTS | NO_HEAD_DIM | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "qwen3": Family("Qwen3", "qwen3"),
    "qwen3-moe": Family("Qwen3-MoE", "qwen3_moe", EXPERTS | {"moe_intermediate_size": 64}),
    "mistral": Family("Mistral 7B v0.2 and later, Nemo, Small", "mistral", {"sliding_window": NULL}),
    "ministral-3": Family("Ministral 3", "ministral3", {"sliding_window": NULL}),
    "mixtral": Family("Mixtral", "mixtral", EXPERTS | {"sliding_window": NULL}),
    "phi-4": Family("Phi-4, Phi-3 without windows", "phi3", NO_HEAD_DIM | {"sliding_window": NULL}),
    "phi": Family("Phi-1, Phi-2", "phi", NO_HEAD_DIM | {"num_key_value_heads": 4}),
    "glm": Family("GLM-4-9B", "glm"),
    "glm4": Family("GLM-4-0414", "glm4"),
    "glm4-moe": Family("GLM-4.5, GLM-4.6", "glm4_moe", MANY_EXPERTS),
    "falcon-7b": Family("Falcon 7B", "falcon", NO_KV_HEADS | {"multi_query": True, "alibi": False}),
    "falcon-40b": Family(
        "Falcon 40B",
        "falcon",
        NO_KV_HEADS | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    ),
    "gpt2": Family(
        "GPT-2", "gpt2", NO_KV_HEADS | {"n_positions": 4096, "n_embd": 128, "n_head": 4, "n_layer": 3}
    ),
    "opt": Family(
        "OPT",
        "opt",
        NO_KV_HEADS | {"ffn_dim": 256, "word_embed_proj_dim": 128, "max_position_embeddings": 4096},
    ),
    "gpt-bigcode": Family(
        "StarCoder",
        "gpt_bigcode",
        NO_KV_HEADS | {"n_positions": 4096, "n_embd": 128, "n_head": 4, "n_layer": 3},
    ),
    "gpt-j": Family(
        "GPT-J",
        "gptj",
        NO_KV_HEADS | {"n_positions": 4096, "n_embd": 128, "n_head": 4, "n_layer": 3, "rotary_dim": 16},
    ),
    "gpt-neox": Family("GPT-NeoX, Pythia", "gpt_neox", NO_KV_HEADS | {"rotary_pct": 0.25}),
    "stablelm": Family("StableLM 2", "stablelm", NO_HEAD_DIM),
    "olmo": Family("OLMo", "olmo", NO_HEAD_DIM),
    "olmo2": Family("OLMo 2", "olmo2", NO_HEAD_DIM),
    "olmoe": Family("OLMoE", "olmoe", EXPERTS | NO_HEAD_DIM),
    "granite": Family("Granite 3", "granite", NO_HEAD_DIM | SCALED),
    "granite-moe": Family("Granite-MoE", "granitemoe", EXPERTS | NO_HEAD_DIM | SCALED),
    "smollm3": Family(
        "SmolLM3 (every 4th layer without positions)", "smollm3", NO_HEAD_DIM | {"num_hidden_layers": 4}
    ),
    "command-r": Family("Command-R", "cohere", NO_HEAD_DIM | {"tie_word_embeddings": True}),
    "exaone-4": Family(
        "EXAONE 4 1.2B",
        "exaone4",
        {"layer_types": ONE_KIND, "sliding_window": NULL, "tie_word_embeddings": True},
    ),
    "nemotron": Family("Nemotron 4, Minitron", "nemotron", NO_HEAD_DIM),
    "nemotron-nas": Family(
        "Llama-Nemotron Super and Ultra", decilm.MODEL_TYPE, {"kv_heads": [2, 4, 2], "num_key_value_heads": 4}
    ),
    "gemma": Family("Gemma 1", "gemma", {"tie_word_embeddings": True}),
    "seed-oss": Family("Seed-OSS", "seed_oss"),
    "ernie-4.5": Family("ERNIE 4.5", "ernie4_5"),
    "hunyuan": Family("Hunyuan dense", "hunyuan_v1_dense"),
    "arcee": Family("Arcee AFM", "arcee"),
    "starcoder2": Family("StarCoder2", "starcoder2", NO_HEAD_DIM | {"sliding_window": NULL}),
    "minicpm3": Family(
        "MiniCPM3", "minicpm3", LATENT | {"q_lora_rank": 32, "kv_lora_rank": 32, "rope_parameters": None}
    ),
    "phi-4-mini": Family(
        "Phi-4-mini, Phi-3.5-mini (window beyond the model's length)",
        "phi3",
        NO_HEAD_DIM | {"sliding_window": 8192},
    ),
    "mistral-v0.1-short": Family("Mistral 7B v0.1 up to 4k", "mistral", {"sliding_window": 4096}),
    "gemma2-short": Family(
        "Gemma 2 up to 4k",
        "gemma2",
        {"tie_word_embeddings": True, "sliding_window": 4096, "layer_types": TWO_KINDS},
    ),
    "llama4-short": Family(
        "Llama 4 up to 8k (without temperature tuning)",
        "llama4_text",
        EXPERTS
        | {
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8192,
            "attn_temperature_tuning": False,
            "intermediate_size_mlp": 128,
        },
    ),
    "deepseek-v2": Family("DeepSeek V2", "deepseek_v2", MANY_EXPERTS | LATENT, {"block_size": 16}),
    "deepseek-v3": Family(
        "DeepSeek V3 and R1, Kimi K2, Mistral Large 3 (dense layers)",
        "deepseek_v3",
        MANY_EXPERTS | LATENT | {"first_k_dense_replace": 3, "q_lora_rank": 32},
        {"block_size": 16},
    ),
    "glm-4.7-flash": Family(
        "GLM-4.7-Flash", "glm4_moe_lite", MANY_EXPERTS | LATENT | {"q_lora_rank": 32}, {"block_size": 16}
    ),
    "gpt-oss": Family(
        "gpt-oss (sinks)",
        "gpt_oss",
        EXPERTS | {"sliding_window": 100, "layer_types": TWO_KINDS, "rope_parameters": GPT_OSS_ROPE},
    ),
    "gemma2": Family(
        "Gemma 2", "gemma2", {"tie_word_embeddings": True, "sliding_window": 100, "layer_types": TWO_KINDS}
    ),
    "gemma3": Family(
        "Gemma 3",
        "gemma3_text",
        {"tie_word_embeddings": True, "sliding_window": 100, "layer_types": TWO_KINDS},
    ),
    "gemma4": Family(
        "Gemma 4",
        "gemma4_text",
        {
            "sliding_window": 100,
            "layer_types": [*TWO_KINDS[:2], "full_attention"],
            "global_head_dim": 64,
            "tie_word_embeddings": True,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "mistral-v0.1": Family("Mistral 7B v0.1", "mistral", {"sliding_window": 100}),
    "phi-3-mini": Family("Phi-3-mini", "phi3", NO_HEAD_DIM | {"sliding_window": 100}),
    "olmo3": Family("OLMo 3", "olmo3", NO_HEAD_DIM | {"sliding_window": 100, "layer_types": TWO_KINDS}),
    "exaone-4-32b": Family("EXAONE 4 32B", "exaone4", {"sliding_window": 100, "layer_types": TWO_KINDS}),
    "ministral": Family("Ministral 8B", "ministral", {"sliding_window": 100, "layer_types": TWO_KINDS}),
    "command-r7b": Family(
        "Command-R7B, Command-A",
        "cohere2",
        NO_HEAD_DIM | {"sliding_window": 100, "layer_types": TWO_KINDS, "tie_word_embeddings": True},
    ),
    "gemma3n": Family(
        "Gemma 3n, for text (layers that share KV caches)",
        "gemma3n_text",
        {"sliding_window": 100, "layer_types": TWO_KINDS[:2] * 2, "num_hidden_layers": 4}
        | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 32, "laurel_rank": 8}
        | {"vocab_size_per_layer_input": TINY_CONFIG["vocab_size"], "activation_sparsity_pattern": [0.0] * 4}
        | {"tie_word_embeddings": True},
    ),
    "exaone-moe": Family(
        "EXAONE MoE",
        "exaone_moe",
        MANY_EXPERTS | {"sliding_window": 100, "layer_types": TWO_KINDS, "tie_word_embeddings": True},
    ),
    "cwm": Family("Code World Model", "cwm", {"sliding_window": 100, "layer_types": TWO_KINDS}),
    "dots1": Family("dots.llm1", "dots1", MANY_EXPERTS | {"n_shared_experts": 1}),
    "flex-olmo": Family("FlexOlmo", "flex_olmo", EXPERTS | NO_HEAD_DIM),
    "helium": Family("Helium", "helium"),
    "hunyuan-moe": Family(
        "Hunyuan A13B", "hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 128}
    ),
    "ernie-4.5-moe": Family(
        "ERNIE 4.5 MoE",
        "ernie4_5_moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_num_shared_experts": 1}
        | {"moe_layer_start_index": 1, "moe_layer_interval": 1, "moe_layer_end_index": 2},
    ),
    "qwen2-vl": Family(
        "Qwen2-VL, for text",
        "qwen2_vl",
        with_vision({"rope_parameters": MROPE}, {"embed_dim": 64, "hidden_size": 128}),
        TEXT_ONLY,
    ),
    "qwen2.5-vl": Family(
        "Qwen2.5-VL, for text",
        "qwen2_5_vl",
        with_vision({"rope_parameters": MROPE}, {"fullatt_block_indexes": [1]}),
        TEXT_ONLY,
    ),
    "qwen3-vl": Family(
        "Qwen3-VL, for text",
        "qwen3_vl",
        with_vision({"rope_parameters": MROPE | {"mrope_interleaved": True}}, QWEN3_VISION),
        TEXT_ONLY,
    ),
    "bloom": Family(
        "BLOOM",
        "bloom",
        NO_KV_HEADS
        | {"n_layer": 3, "n_head": 4, "num_hidden_layers": None, "num_attention_heads": None}
        | {"tie_word_embeddings": True},
    ),
    "falcon-rw": Family("Falcon-RW", "falcon", NO_KV_HEADS | FALCON_RW),
    "mpt": Family(
        "MPT (a model class of the plugin's)",
        "mpt",
        {"n_heads": 4, "n_layers": 3, "expansion_ratio": 4, "max_seq_len": 4096, "hidden_size": 128}
        | dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_hidden_layers"))
        | {"tie_word_embeddings": True, "head_dim": None},
    ),
    "mamba2": Family(
        "Mamba-2, Codestral Mamba (not reused)",
        "mamba2",
        MAMBA | {"num_heads": 8, "expand": 2, "state_size": 32, "n_groups": 1, "chunk_size": 64},
        is_recurrent=True,
    ),
    "granite-4-h": Family(
        "Granite 4 H (not reused)",
        "granitemoehybrid",
        NO_HEAD_DIM
        | {"layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0, "num_experts_per_tok": 0}
        | {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 32, "mamba_expand": 2}
        | {"shared_intermediate_size": 128, "mamba_chunk_size": 64},
        NO_PREFIX_CACHE,
        is_recurrent=True,
    ),
    "falcon-h1": Family(
        "Falcon-H1 (not reused)",
        "falcon_h1",
        {"mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 32}
        | {"mamba_chunk_size": 64},
        NO_PREFIX_CACHE,
        is_recurrent=True,
    ),
    "nemotron-h": Family(
        "Nemotron-H (not reused)",
        "nemotron_h",
        {"layers_block_type": ["mamba", "attention", "mamba"], "mamba_num_heads": 8, "mamba_head_dim": 32}
        | {"ssm_state_size": 32, "n_groups": 1, "chunk_size": 64},
        NO_PREFIX_CACHE,
        is_recurrent=True,
    ),
    "apertus": Family("Apertus", "apertus"),
}
