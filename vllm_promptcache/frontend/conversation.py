"""The messages of a chat request as the turns that follow a prompt's PML."""

from __future__ import annotations

from typing import Any

from vllm.renderers.chat_utils import has_non_text_content, parse_chat_messages
from vllm.renderers.hf import HfRenderer, resolve_chat_template_content_format

from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.plan.conversation import Turns

# What vLLM adds for its own renderer, and what names something else in the call that renders.
_NOT_FOR_THE_TEMPLATE = (
    "tokenize",
    "return_dict",
    "chat_template",
    "conversation",
    "messages",
    "previous_roles",
)


def read_turns(messages: list[Any], renderer: Any, chat_params: Any) -> tuple[list[Any], Turns]:
    """A request's messages in vLLM's form, and the turns they make.

    Raises:
        RefusedError: they hold more than text, or ask for what cannot be done after PML.
    """
    if has_non_text_content(messages):
        raise RefusedError("pml cannot be combined with anything but text in messages", field="messages")
    model_config = renderer.model_config
    options = {
        name: value
        for name, value in chat_params.chat_template_kwargs.items()
        if name not in _NOT_FOR_THE_TEMPLATE
    }
    tools = options.pop("tools", None)
    content_format: Any = "string"
    if isinstance(renderer, HfRenderer):
        content_format = resolve_chat_template_content_format(
            chat_params.chat_template,
            tools,
            chat_params.chat_template_content_format,
            renderer.get_tokenizer(),
            model_config=model_config,
        )
    conversation, media, _ = parse_chat_messages(messages, model_config, content_format)
    if media:
        raise RefusedError("pml cannot be combined with anything but text in messages", field="messages")
    add_generation_prompt = bool(options.pop("add_generation_prompt", True))
    if options.get("continue_final_message") and not conversation:
        raise RefusedError("continue_final_message needs a message in messages", field="messages")
    return list(conversation), Turns(conversation, add_generation_prompt, tools, options)
