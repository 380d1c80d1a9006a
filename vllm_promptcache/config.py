"""The plugin's settings: one dataclass, given as ``--prompt-cache-config`` or ``additional_config``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from vllm_promptcache.contract.repair import AUTO, Repair

CONFIG_KEY = "prompt_cache"
# What of a plain chat request may be reused without a mark of the client's.
AUTO_KINDS = ("tool_messages", "documents", "tools")


@dataclass(frozen=True)
class PromptCacheConfig:
    """Settings of the prompt cache. Unknown fields are errors.

    Attributes:
        schemas: files or folders of schemas (``*.pml``, ``*.xml``) to load, encode and pin before the
            server says it is ready.
        pin_fraction: at most this part of the KV blocks may be pinned; 0 to 1.
        tenant_fraction: a tenant (``cache_salt``) that holds more than this part of the KV blocks, or of the
            memory or disk for records, is the first to lose some; 0 to 1.
        share_operator_schemas: whether ``schemas`` are the same modules for all tenants.
        max_document_bytes: a larger PML document is refused.
        max_schemas: how many schemas may be registered at once.
        max_pool_members: how many members of pools may be registered at once.
        min_free_tokens: positions that a schema leaves free for new text, at least.
        allow_request_schemas: whether requests may bring schemas of their own.
        allow_management: whether clients may register, remove, pin, unpin and warm schemas over the API;
            as ``allow_request_schemas`` if it is not given.
        repair: what requests compute anew that do not say it themselves; a string is read as one.
        auto: what of plain chat requests is reused without a mark: ``tool_messages``, ``documents``,
            ``tools``.
        min_mark_tokens: shorter marked parts are computed.
        host_gib: memory for records, in GiB, over all workers; 0 for none.
        dir: a folder for records and registered schemas, which outlive the server; none by default.
        disk_gib: how much of a disk they may take there, in GiB.
        module_ttl_s: modules that no request used for so many seconds are dropped, unless they are pinned;
            never by default. Their records stay.
        record_dtype: ``auto`` keeps records in the model's data type, ``fp8`` in 8 bits.
    """

    schemas: tuple[str, ...] = ()
    pin_fraction: float = 0.5
    tenant_fraction: float = 0.5
    share_operator_schemas: bool = True
    max_document_bytes: int = 4 * 1024 * 1024
    max_schemas: int = 1000
    max_pool_members: int = 20_000
    min_free_tokens: int = 16
    allow_request_schemas: bool = True
    allow_management: bool | None = None
    repair: Repair = AUTO
    auto: tuple[str, ...] = ()
    min_mark_tokens: int = 64
    host_gib: float = 1.0
    dir: str | None = None
    disk_gib: float = 10.0
    record_dtype: str = "auto"
    module_ttl_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.schemas, list | tuple) or not all(isinstance(s, str) for s in self.schemas):
            raise ValueError("prompt cache config: schemas must be a list of paths")
        object.__setattr__(self, "schemas", tuple(self.schemas))
        for name in ("pin_fraction", "tenant_fraction"):
            fraction = getattr(self, name)
            if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 <= fraction <= 1:
                raise ValueError(f"prompt cache config: {name} is {fraction!r}, not a number in 0..1")
        for name in (
            "max_document_bytes",
            "max_schemas",
            "max_pool_members",
            "min_free_tokens",
            "min_mark_tokens",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"prompt cache config: {name} is {value!r}, not a positive integer")
        self._check_records()
        self._check_rights()
        if not isinstance(self.auto, list | tuple) or not set(self.auto) <= set(AUTO_KINDS):
            raise ValueError(
                f"prompt cache config: auto is {self.auto!r}; allowed are {', '.join(AUTO_KINDS)}"
            )
        object.__setattr__(self, "auto", tuple(self.auto))
        if not isinstance(self.repair, Repair):
            try:
                object.__setattr__(self, "repair", Repair.parse(self.repair))
            except ValueError as error:
                raise ValueError(f"prompt cache config: {error}") from None

    def _check_rights(self) -> None:
        for name in ("allow_request_schemas", "share_operator_schemas"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"prompt cache config: {name} must be true or false")
        if self.allow_management is None:
            object.__setattr__(self, "allow_management", self.allow_request_schemas)
        if not isinstance(self.allow_management, bool):
            raise ValueError("prompt cache config: allow_management must be true, false or null")

    def _check_records(self) -> None:
        for name in ("host_gib", "disk_gib"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 30:
                raise ValueError(f"prompt cache config: {name} is {value!r}, not a number of GiB from 0 on")
        ttl = self.module_ttl_s
        if ttl is not None and (not isinstance(ttl, int | float) or isinstance(ttl, bool) or not ttl > 0):
            raise ValueError(f"prompt cache config: module_ttl_s is {ttl!r}, not a positive number or null")
        if self.dir is not None and not (isinstance(self.dir, str) and self.dir):
            raise ValueError(f"prompt cache config: dir is {self.dir!r}, not a path")
        if self.record_dtype not in ("auto", "fp8"):
            raise ValueError(f"prompt cache config: record_dtype is {self.record_dtype!r}, not auto or fp8")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptCacheConfig:
        """Read settings.

        Raises:
            ValueError: a field is unknown or its value is not allowed.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"prompt cache config: unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(**values)

    @classmethod
    def from_vllm_config(cls, vllm_config: Any) -> PromptCacheConfig:
        """The settings that travel to every process in ``VllmConfig.additional_config``."""
        return cls.from_dict(vllm_config.additional_config[CONFIG_KEY])

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            **asdict(self),
            "schemas": list(self.schemas),
            "auto": list(self.auto),
            "repair": str(self.repair),
        }


def is_enabled(config: Any) -> bool:
    """Whether the prompt cache is on, by an engine's arguments or its ``VllmConfig``."""
    additional = config.additional_config
    return isinstance(additional, dict) and CONFIG_KEY in additional
