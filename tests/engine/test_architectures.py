"""Other decoder architectures than Llama: what they add must not rest on a token's index."""

from typing import Any

import pytest
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from tests import decilm
from tests.engine.oracle import Oracle
from tests.engine.plans import random_tokens, travel
from tests.engine.support import greedy, largest_error, serving, tokens_of
from tests.models import tiny_model
from vllm_promptcache.compat import UnsupportedError
from vllm_promptcache.engine import configure

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_size": 128},  # biases
    "qwen3": {},  # norms of queries and keys
    decilm.MODEL_TYPE: {"kv_heads": [2, 4, 2], "num_key_value_heads": 4},  # layers of different shape
    "gpt_neox": {"rotary_pct": 0.25, "num_key_value_heads": None, "head_dim": None, "hidden_size": 128},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_against_the_oracle(model_type: str, oracle: Oracle) -> None:
    model = tiny_model(model_type, **ARCHITECTURES[model_type])
    prompt = travel()
    tokens, logprobs = oracle(model, prompt, 8)
    with serving(model) as engine:
        for _ in range(2):
            (output,) = engine.ask([prompt], greedy(8, logprobs=5))
            assert largest_error(output, logprobs) < 1e-3
            assert tokens_of(output) == tokens


def test_alibi_that_the_configuration_does_not_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "n_layer": 2,
        "n_head": 4,
        "hidden_size": 128,
        "num_hidden_layers": None,
        "tie_word_embeddings": True,
    }
    model = tiny_model("bloom", **(dict.fromkeys(("num_attention_heads", "num_key_value_heads")) | changes))
    monkeypatch.setattr(configure, "ALWAYS_ALIBI", set())
    with serving(model, plugin=False, max_model_len=1024) as engine:
        assert engine.ask([random_tokens(10, "x").tolist()])
    with pytest.raises(UnsupportedError, match="ALiBi"), serving(model, max_model_len=1024):
        pass


def test_backends_that_write_their_cache_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys and values do not pass where they could be captured."""
    monkeypatch.setattr(CPUAttentionBackend, "forward_includes_kv_cache_update", True)
    with pytest.raises(UnsupportedError, match="CPU_ATTN"), serving(tiny_model("llama"), max_model_len=1024):
        pass
