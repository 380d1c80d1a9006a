"""Records of one engine: where they are kept, how large they are, and what their states depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from vllm_promptcache import compat
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.engine.record_keeper import RecordKeeper
from vllm_promptcache.records.catalog import RecordCatalog
from vllm_promptcache.records.folder import RecordFolder
from vllm_promptcache.records.index import FolderInUseError, RecordIndex
from vllm_promptcache.records.naming import digest_of_weights, fingerprint
from vllm_promptcache.records.packing import bytes_of_row
from vllm_promptcache.records.rotation import RotaryTable, Rotation

logger = init_logger(__name__)

GIB = 1 << 30
SUBFOLDER = "records"


def open_catalog(vllm_config: Any, kv_cache_config: Any) -> RecordCatalog:
    """The catalog of an engine's records. A folder that cannot be used is told of, and not used."""
    config = PromptCacheConfig.from_vllm_config(vllm_config)
    packs = config.record_dtype == "fp8"
    num_ranks = vllm_config.parallel_config.world_size
    per_row = num_ranks * sum(
        bytes_of_row(numbers, vllm_config.model_config.dtype, packed=packs)
        for numbers in compat.numbers_of_rows(kv_cache_config)
    )
    host, disk = int(config.host_gib * GIB), int(config.disk_gib * GIB)
    index, said = _open_index(vllm_config) if disk else (None, "")
    if index is not None:
        logger.info("Prompt cache: records are kept in %s, at most %.1f GiB", index.folder, config.disk_gib)
    fraction = config.tenant_fraction
    return RecordCatalog(host, disk, lambda rows: rows * per_row, said, num_ranks, index, fraction)


def open_keeper(vllm_config: Any, layers: Any) -> RecordKeeper:
    """One worker's records."""
    config, parallel = PromptCacheConfig.from_vllm_config(vllm_config), vllm_config.parallel_config
    path = folder_of(vllm_config)
    folder = None
    if path is not None and config.disk_gib:
        folder = RecordFolder(path, parallel.rank, parallel.world_size)
    kinds = [compat.shape_of_rows(layer) for layer in layers]
    dtype = vllm_config.model_config.dtype
    return RecordKeeper(kinds, dtype, packs=config.record_dtype == "fp8", folder=folder)


def open_rotation(model: Any, layers: Any, max_model_len: int) -> Rotation | str:
    """How the model's states are moved; or why they cannot be."""
    try:
        found = compat.rotary_of_layers(model, layers, max_model_len)
    except compat.UnsupportedError as error:
        return str(error)
    tables: dict[int, RotaryTable] = {}
    for rotary in found:
        if rotary is not None:
            tables.setdefault(id(rotary), RotaryTable(*rotary))
    return Rotation(
        tuple(None if rotary is None else tables[id(rotary)] for rotary in found),
        tuple(compat.is_latent(layer) for layer in layers),
    )


def folder_of(vllm_config: Any) -> Path | None:
    """The folder of one engine's records; each of several engines has its own."""
    config, parallel = PromptCacheConfig.from_vllm_config(vllm_config), vllm_config.parallel_config
    if config.dir is None:
        return None
    name = SUBFOLDER
    # Not its rank: an engine of a dense model is told that it is the only one.
    if parallel.data_parallel_index:
        name += f"-{parallel.data_parallel_index}"
    return Path(config.dir).expanduser() / name


def _open_index(vllm_config: Any) -> tuple[RecordIndex | None, str]:
    path = folder_of(vllm_config)
    if path is None:
        return None, ""
    try:
        index = RecordIndex(path)
    except (OSError, FolderInUseError) as error:
        logger.warning("Prompt cache: no records are kept on disk: %s", error)
        return None, ""
    try:
        return index, _fingerprint(vllm_config, index)
    except OSError as error:
        logger.warning("Prompt cache: no records are kept on disk: the weights cannot be read: %s", error)
        index.close()
        return None, ""


def _fingerprint(vllm_config: Any, index: RecordIndex) -> str:
    model = vllm_config.model_config
    known = index.weights()
    before = dict(known)
    weights = digest_of_weights(compat.weights_folder(vllm_config), known)
    index.note_weights({file: digest for file, digest in known.items() if file not in before})
    architecture = json.loads(model.hf_config.to_json_string(use_diff=False))
    facts = {
        "weights": weights,
        "architecture": {k: v for k, v in architecture.items() if k not in ("_name_or_path", "dtype")},
        "dtype": str(model.dtype),
        "kv_cache_dtype": vllm_config.cache_config.cache_dtype,
        "quantization": model.quantization,
        "load_format": str(vllm_config.load_config.load_format),
        "seed": model.seed,
        "records": PromptCacheConfig.from_vllm_config(vllm_config).record_dtype,
        # Where frequencies depend on the length that is served, states of one are not those of another.
        "max_model_len": model.max_model_len if "long" in json.dumps(architecture) else None,
        "vllm": compat.installed_vllm()[1],
    }
    return fingerprint(facts)
