"""A tokenizer with one token a byte, so that tests can count tokens by looking, and four chat templates."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment, Plan

# As SmolLM2's: a conversation without a system message gets a default one.
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# As Llama 3's: BOS and headers, contents stripped; tools in the first user message.
HEADERS = (
    "{{ bos_token }}"
    "{% set found = namespace(user=false) %}"
    "{% for m in messages %}"
    "{{ '<|head|>' + m.role + '<|tail|>\\n\\n' }}"
    "{% if tools and m.role == 'user' and not found.user %}"
    "{% set found.user = true %}{{ 'Tools: ' + (tools | tojson) + '\\n\\n' }}"
    "{% endif %}"
    "{{ m.content | trim + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\\n\\n' }}{% endif %}"
)

# As Llama 2's: the system message goes into the first user message; roles must alternate; BOS each turn.
INST = (
    "{% if messages[0].role == 'system' %}"
    "{% set turns = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m.content %}"
    "{% else %}{% set content = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

# As Gemma's: no system message at all; the assistant goes by another name.
NO_SYSTEM = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<turn>' + role + '\\n' + m.content | trim + '<end>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
)

# As Qwen's: ChatML, with tools in the system message.
CHATML_TOOLS = (
    "{% if tools %}"
    "{{ '<|im_start|>system\\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{{ '# Tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for m in messages %}{% if not (loop.first and m.role == 'system') %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def byte_tokenizer(
    *,
    bos: str | None = None,
    adds_bos: bool = False,
    unk: str | None = "<unk>",
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges. `adds_bos`: it puts `bos` first, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = {"eos_token": "</s>"}
    if unk:
        tokens["unk_token"] = unk
    if bos:
        tokens["bos_token"] = bos
    tokenizer.add_special_tokens(list(tokens.values()))
    if adds_bos:
        assert bos is not None
        id = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, id)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **tokens)


def plan_lines(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """One line a segment: first position, unit or source, text."""
    lines = []
    for segment in plan.segments:
        if isinstance(segment, CachedSegment):
            ids = segment.unit.token_ids[segment.start : segment.end]
            position, name = segment.unit.position_ids[segment.start], segment.unit.id
        else:
            ids, position, name = segment.token_ids, segment.position_ids[0], f"new {segment.source}"
        lines.append(f"{position} {name}: {tokenizer.decode(ids)}")
    return lines


def plan_text(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of the whole prompt."""
    return str(tokenizer.decode(plain_tokens(plan)[0]))
