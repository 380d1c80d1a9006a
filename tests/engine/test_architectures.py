"""Other decoder architectures than Llama: what they add must not rest on a token's index."""

import pytest
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from tests.engine.plans import random_tokens
from tests.engine.support import serving
from tests.families import FAMILIES
from tests.family import WAYS, deviations
from tests.models import tiny_model
from vllm_promptcache.compat import UnsupportedError
from vllm_promptcache.engine import models

# What each adds that could go wrong; `python -m benchmarks models` has all families.
CHOSEN = {
    "qwen2": "biases",
    "qwen3": "norms of queries and keys",
    "glm4": "rotation of a part of each head",
    "nemotron-nas": "layers with different numbers of KV heads",
    "gemma3": "windows in some layers",
    "mistral-v0.1": "windows in all layers",
    "deepseek-v3": "latent attention",
    "qwen2.5-vl": "positions in several dimensions",
    "falcon-rw": "ALiBi",
    "minicpm3": "rotated dimensions behind others",
    "hunyuan": "norms behind rotation",
}


@pytest.mark.parametrize("name", CHOSEN)
def test_against_the_oracle(name: str) -> None:
    """Cold, warm, moved, and with reuse off."""
    found = deviations(FAMILIES[name])
    assert all(found[way] < 1e-3 for way in WAYS), found


def test_alibi_that_the_configuration_does_not_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "n_layer": 2,
        "n_head": 4,
        "hidden_size": 128,
        "num_hidden_layers": None,
        "tie_word_embeddings": True,
    }
    model = tiny_model("bloom", **(dict.fromkeys(("num_attention_heads", "num_key_value_heads")) | changes))
    monkeypatch.setattr(models, "ALWAYS_ALIBI", set())
    with serving(model, plugin=False, max_model_len=1024) as engine:
        assert engine.ask([random_tokens(10, "x").tolist()])
    with pytest.raises(UnsupportedError, match="ALiBi"), serving(model, max_model_len=1024):
        pass


def test_backends_that_write_their_cache_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys and values do not pass where they could be captured."""
    monkeypatch.setattr(CPUAttentionBackend, "forward_includes_kv_cache_update", True)
    with pytest.raises(UnsupportedError, match="CPU_ATTN"), serving(tiny_model("llama"), max_model_len=1024):
        pass
