"""Text to token IDs, the way the PML page asks for ("Text")."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from vllm_promptcache.layout.chat_template import ChatTemplate
from vllm_promptcache.layout.template_renderer import TemplatedTokenizer

# So many characters on either side of a cut decide how tokens are there.
_NEAR = 256


class Tokenizer(TemplatedTokenizer, Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def bos_token_id(self) -> Any: ...
    @property
    def eos_token_id(self) -> Any: ...
    @property
    def unk_token(self) -> Any: ...
    @property
    def unk_token_id(self) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> Any: ...
    def decode(self, token_ids: Any) -> Any: ...


class TextEncoder:
    """A tokenizer with what PML wants to know of it. Make one a model and share it.

    `chat_template` replaces the tokenizer's own (Jinja text).
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._stamp = ""
        self._role_tokens: dict[tuple[str, str | None], tuple[list[int], list[int]]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer | TextEncoder) -> TextEncoder:
        """The encoder itself, or a new one for a tokenizer."""
        return tokenizer if isinstance(tokenizer, TextEncoder) else cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """The token IDs of one text run, tokenized by itself, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def parts_at(self, first: str, second: str) -> bool:
        """Whether two texts have the same tokens together as each by itself."""
        first, second = first[-_NEAR:], second[:_NEAR]
        return self.encode(first + second) == [*self.encode(first), *self.encode(second)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(token_ids))

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template."""
        return ChatTemplate(self._tokenizer, self._chat_template)

    def catch_up(self) -> str:
        """As the template's: what is remembered of it is of the date that it says now."""
        stamp = self.template.catch_up()
        if stamp != self._stamp:
            self._stamp = stamp
            self._role_tokens.clear()
        return stamp

    @cached_property
    def bos(self) -> int | None:
        """The BOS token if the tokenizer puts one first, else None."""
        bos = self._tokenizer.bos_token_id
        if bos is None:
            return None
        first = list(self._tokenizer.encode("x", add_special_tokens=True))[:1]
        return int(bos) if first == [bos] else None

    @property
    def template_bos(self) -> int | None:
        """The BOS token if the chat template writes one before the first message, else None."""
        bos = self._tokenizer.bos_token_id
        return int(bos) if bos is not None and self.template.writes_bos else None

    @cached_property
    def unknown(self) -> int | None:
        """The tokenizer's unknown-token, or None where it has none of its own.

        GPT-2's kind of tokenizer names its end-of-text token as unknown-token: a strong signal to the
        model, where a placeholder is to be none. So the token has to call itself unknown.
        """
        tokenizer = self._tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            return None
        return int(unknown) if "unk" in str(tokenizer.unk_token).lower() else None

    @cached_property
    def max_characters(self) -> int:
        """The most characters that one token stands for, as vLLM takes it: those of the longest name."""
        tokenizer: Any = self._tokenizer
        known = getattr(tokenizer, "max_chars_per_token", None)
        return int(known) if known else max(map(len, tokenizer.get_vocab()))

    def role_tokens(self, role: str, previous: str | None) -> tuple[Sequence[int], Sequence[int]]:
        """Token IDs of the words before and after a `role` message that follows a `previous` one.

        Raises ChatTemplateError where the template has no such role.
        """
        key = (role, previous)
        tokens = None if self.template.tells_hours else self._role_tokens.get(key)
        if tokens is None:
            words = self.template.words(role, previous)
            tokens = self._role_tokens[key] = (self.encode(words.before), self.encode(words.after))
        return tokens
