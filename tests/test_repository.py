"""What must hold of the repository as a whole: who imports whom, entry points, links in documents."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vllm_promptcache"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Data flows one way: each stage may import only the stages listed for it.
STAGES: dict[str, set[str]] = {
    "contract": set(),
    "pml": set(),
    "program": {"pml"},
    "layout": {"contract", "pml"},
    "plan": {"contract", "pml", "layout"},
    "repairs": {"contract"},
    "blocks": {"contract"},
    "compat": set(),
    "records": {"contract", "blocks"},
    "engine": {"contract", "blocks", "compat", "records"},
    "frontend": {"contract", "pml", "layout", "plan", "repairs", "blocks", "compat"},
    "server": {"contract", "pml", "layout", "plan", "repairs", "blocks", "compat", "frontend"},
}
# These put the stages together and may import any of them.
TOPS = {"advise", "arguments", "cli", "offline", "plugin", "__init__"}
MAY_IMPORT_VLLM = {"engine", "frontend", "server", "compat", "offline", "plugin"}


def part_of(path: Path) -> str:
    """`pml` for vllm_promptcache/pml/parser.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in the file, relative ones resolved."""
    package = ["vllm_promptcache", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def violations(path: Path) -> list[str]:
    """The imports of a file that the rules at the top do not allow."""
    part = part_of(path)
    allowed = STAGES.get(part, {"contract"}) | {part}
    bad = []
    for line, name in imported_names(path):
        root, *rest = name.split(".")
        if root == "vllm" and part not in MAY_IMPORT_VLLM:
            bad.append(f"{path.relative_to(ROOT)}:{line}: {part} must not import {name}")
        if root != "vllm_promptcache" or part in TOPS or not rest:
            continue
        target = rest[0]
        # Modules that are no stage (config, errors) may be imported by all, and import no stage.
        is_restricted = target in STAGES or target in TOPS - {"__init__"}
        if is_restricted and target not in allowed:
            bad.append(f"{path.relative_to(ROOT)}:{line}: {part} must not import {name}")
    return bad


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_flow_of_data(path: Path) -> None:
    assert violations(path) == []


@pytest.mark.parametrize(
    ("file", "line", "allowed"),
    [
        ("pml/x.py", "import vllm", False),
        ("pml/x.py", "from vllm.v1 import y", False),
        ("pml/x.py", "from vllm_promptcache.layout import y", False),
        ("pml/x.py", "from ..layout import y", False),
        ("pml/x.py", "from vllm_promptcache import layout", False),
        ("pml/x.py", "from vllm_promptcache.config import y", True),
        ("pml/x.py", "from vllm_promptcache.contract.unit import Unit", False),
        ("layout/x.py", "from vllm_promptcache.contract.unit import Unit", True),
        ("layout/x.py", "from vllm_promptcache.plan.build import y", False),
        ("contract/unit.py", "from vllm_promptcache.layout import y", False),
        ("contract/plan.py", "from vllm_promptcache.contract.unit import Unit", True),
        ("repairs/x.py", "from vllm_promptcache.plan.build import y", False),
        ("layout/x.py", "from ..pml.nodes import y", True),
        ("layout/x.py", "from .other import y", True),
        ("config.py", "from vllm_promptcache.engine import y", False),
        ("blocks/x.py", "from vllm_promptcache.compat import y", False),
        ("compat/x.py", "import vllm", True),
        ("compat/x.py", "from vllm_promptcache.engine import y", False),
        ("engine/x.py", "from vllm_promptcache.server import y", False),
        ("engine/x.py", "def f():\n    import vllm_promptcache.server.app", False),
        ("server/x.py", "from vllm_promptcache.engine.scheduler import y", False),
        ("engine/x.py", "from vllm_promptcache.plan.build import y", False),
        ("frontend/x.py", "from vllm_promptcache.server.app import y", False),
        ("cli/x.py", "from vllm_promptcache.engine import y", True),
        ("cli/x.py", "import vllm", False),
        ("plugin.py", "import vllm", True),
    ],
)
def test_the_import_rules_themselves(
    file: str, line: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "vllm_promptcache")
    path = tmp_path / "vllm_promptcache" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert (violations(path) == []) is allowed


def test_importing_the_early_stages_does_not_load_vllm() -> None:
    stages = [name for name in STAGES if name not in MAY_IMPORT_VLLM and (PACKAGE / name).is_dir()]
    modules = ["vllm_promptcache", "demo.embedded_model"]
    modules += [f"vllm_promptcache.{name}" for name in stages]
    code = f"import sys, {', '.join(modules)}; sys.exit('vllm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_documented_and_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no module docstring"
    assert text.count("\n") <= 400, "one noun a file: split it"


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        ("console_scripts", "vllm-promptcache", "vllm_promptcache.cli.main:main"),
        ("vllm.general_plugins", "prompt_cache", "vllm_promptcache.plugin:register"),
    ],
)
def test_entry_points_are_installed_and_exist(group: str, name: str, target: str) -> None:
    distribution = importlib.metadata.distribution("vllm-promptcache")
    (entry,) = distribution.entry_points.select(group=group, name=name)
    assert entry.value == target
    assert callable(entry.load())


def test_the_demo_and_its_model_are_not_installed() -> None:
    """What is tried in a clone is not part of the package."""
    found = find_packages(str(ROOT), include=["vllm_promptcache", "vllm_promptcache.*"])
    assert (
        'find_packages(include=["vllm_promptcache", "vllm_promptcache.*"])' in (ROOT / "setup.py").read_text()
    )
    assert (ROOT / "demo" / "embedded_model.py").exists()
    assert not any("demo" in name for name in found) and "vllm_promptcache.cli" in found


def test_links_in_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("patches/**/*.md")]
    broken = []
    for document in documents:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []
