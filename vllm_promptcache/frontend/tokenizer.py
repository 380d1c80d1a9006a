"""The tokenizer and chat template that vLLM serves with, as the layout wants them."""

from __future__ import annotations

from typing import Any

from vllm.renderers.hf import (
    HfRenderer,
    resolve_chat_template,
    resolve_chat_template_kwargs,
    safe_apply_chat_template,
)

from vllm_promptcache.layout.encoder import TextEncoder


class ServedTokenizer:
    """A Hugging Face tokenizer whose chat template is chosen and called as vLLM's renderer does.

    ``chat_template`` is the server's own (``--chat-template``), or None. Everything else is the
    tokenizer's.
    """

    def __init__(self, tokenizer: Any, model_config: Any, chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._given_template = chat_template

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    @property
    def chat_template(self) -> str | None:
        """The template of a conversation without tools, or None."""
        return self._template(None)

    def apply_chat_template(
        self, conversation: list[Any], *, tools: list[Any] | None = None, **options: Any
    ) -> str:
        """The text of a conversation. Raises whatever the template raises."""
        template = self._template(tools)
        options = {
            name: value for name, value in options.items() if name not in ("tokenize", "chat_template")
        }
        if template is None or any(message["role"] == "developer" for message in conversation):
            # vLLM's own way, which also says what is wrong; it warns in the log, so it is not for trying out.
            return str(
                safe_apply_chat_template(
                    self._model_config,
                    self._tokenizer,
                    conversation,
                    tools=tools,
                    chat_template=template,
                    tokenize=False,
                    **options,
                )
            )
        options = resolve_chat_template_kwargs(self._tokenizer, template, options)
        return str(
            self._tokenizer.apply_chat_template(
                conversation=conversation, tools=tools, chat_template=template, tokenize=False, **options
            )
        )

    def _template(self, tools: list[Any] | None) -> str | None:
        return resolve_chat_template(
            self._tokenizer, self._given_template, tools, model_config=self._model_config
        )


def open_encoder(renderer: Any, chat_template: str | None) -> TextEncoder:
    """The encoder of a model that vLLM serves with ``renderer``.

    Raises:
        ValueError: the engine runs without a tokenizer.
    """
    tokenizer = renderer.get_tokenizer()
    if isinstance(renderer, HfRenderer):
        tokenizer = ServedTokenizer(tokenizer, renderer.model_config, chat_template)
        return TextEncoder(tokenizer)
    return TextEncoder(tokenizer, chat_template)
