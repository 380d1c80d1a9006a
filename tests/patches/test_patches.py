"""The patches for upstream fit the installed vLLM, and name the shims that they would make unnecessary."""

import ast
import importlib.util
import os
import py_compile
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vllm_promptcache.compat import SUPPORTED

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "vllm_promptcache"
README = (ROOT / "patches" / "README.md").read_text(encoding="utf-8")
PATCHES = sorted((ROOT / "patches" / SUPPORTED).glob("*.patch"))

each_patch = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git apply needs git")


def header_of(patch: Path) -> str:
    """What a patch says about itself, before the diff."""
    return patch.read_text(encoding="utf-8").split("\n---\n")[0]


def removes(patch: Path) -> list[str]:
    """The dotted names, from the package on, of what a patch would make unnecessary."""
    (names,) = re.findall(r"^Removes: (.+(?:\n .+)*)", header_of(patch), re.M)
    return [name.strip() for name in names.split(",")]


def touched_files(patch: Path) -> list[str]:
    """Paths of all files that a patch leaves changed or new, from site-packages on."""
    return re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(encoding="utf-8"), re.M)


def changed_lines(patch: Path) -> str:
    """Added and removed lines, as the table has them."""
    diff = patch.read_text(encoding="utf-8").split("\n---\n", 1)[1]
    added = len(re.findall(r"^\+(?!\+\+ )", diff, re.M))
    removed = len(re.findall(r"^-(?!-- )", diff, re.M))
    return f"+{added} −{removed}"


def copy_installed(patches: list[Path], folder: Path) -> list[Path]:
    """Copy the files that patches touch out of the installed vLLM, and return where all of them will be."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None, "vLLM is not installed"
    installed = Path(spec.origin).parent.parent
    paths = sorted({path for patch in patches for path in touched_files(patch)})
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if (installed / path).exists():  # a patch may also add a file
            shutil.copy(installed / path, folder / path)
    return [folder / path for path in paths]


def apply(patch: Path, folder: Path) -> None:
    """Apply a patch with git, outside any repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)
    for arguments in (["--check"], []):
        done = subprocess.run(
            ["git", "apply", *arguments, str(patch)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def compile_all(files: list[Path]) -> None:
    for file in files:
        py_compile.compile(str(file), doraise=True)


def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    """Functions and methods of a module, by their names within it."""
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            found.update({f"{node.name}.{method.name}": method for method in methods})
    return found


def functions_saying(pattern: str) -> list[tuple[str, str]]:
    """(function of compat, what the pattern's group matched) for every match in compat's text.

    A comment above a function belongs to the function.
    """
    found: list[tuple[str, str]] = []
    for path in sorted(PACKAGE.glob("compat/*.py")):
        text = path.read_text(encoding="utf-8")
        functions = sorted(functions_of(path).items(), key=lambda item: item[1].lineno)
        for match in re.finditer(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            name = next((n for n, node in functions if (node.end_lineno or 0) >= line), "")
            found.append((f"compat.{path.stem}.{name}", match[1]))
    return found


def test_patches_are_numbered_from_one() -> None:
    assert [patch.name[:5] for patch in PATCHES] == [f"{n:04}-" for n in range(1, len(PATCHES) + 1)]


@needs_git
@each_patch
def test_a_patch_applies_to_the_installed_vllm(patch: Path, tmp_path: Path) -> None:
    files = copy_installed([patch], tmp_path)
    before = {file: file.read_text(encoding="utf-8") for file in files if file.exists()}
    apply(patch, tmp_path)
    assert all(file.read_text(encoding="utf-8") != before.get(file) for file in files)
    compile_all(files)


@needs_git
def test_all_patches_apply_one_after_the_other(tmp_path: Path) -> None:
    files = copy_installed(PATCHES, tmp_path)
    for patch in PATCHES:
        apply(patch, tmp_path)
    compile_all(files)


@each_patch
def test_a_patch_explains_itself(patch: Path) -> None:
    title, _, body = header_of(patch).partition("\n\n")
    assert re.fullmatch(r"\[[\w ]+\] [A-Z].{10,70}", title)
    parts = re.findall(r"^(What|Why|Removes): ", body, re.M)
    assert parts == ["What", "Why", "Removes"]
    assert max(map(len, header_of(patch).splitlines())) <= 80


@each_patch
def test_what_a_patch_would_remove_exists(patch: Path) -> None:
    for dotted in removes(patch):
        module, name = re.split(r"\.(?=[^.]+$|[A-Z])", dotted, maxsplit=1)
        path = PACKAGE / (module.replace(".", "/") + ".py")
        assert path.is_file() and name in functions_of(path), f"{patch.name} names {dotted}"


def test_patches_named_in_compat_exist_and_name_the_shim() -> None:
    named = {patch.stem[5:]: removes(patch) for patch in PATCHES}
    mentions = functions_saying(r"\(patches/: ([\w-]+)\)")
    assert mentions, "compat names no patch"
    for function, name in mentions:
        assert function in named.get(name, []), f"{function} names the patch {name}, which does not name it"


def test_every_shim_has_a_patch_or_a_reason() -> None:
    shims = {function for function, _ in functions_saying(r"(Targets?): ")}
    patched = {name for patch in PATCHES for name in removes(patch)}
    excused = set(re.findall(r"^- `(compat[\w.]+)`: ", README, re.M))
    assert shims - patched - excused == set(), "neither a patch nor a reason in patches/README.md"
    assert excused - shims == set(), "patches/README.md excuses what is no shim"


@each_patch
def test_the_table_has_every_patch(patch: Path) -> None:
    (row,) = [line for line in README.splitlines() if f"]({SUPPORTED}/{patch.name})" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert re.findall(r"`([\w.]+)`", cells[2]) == removes(patch)
    assert cells[3] == changed_lines(patch)


def test_the_table_has_no_other_patch() -> None:
    assert len(re.findall(rf"\]\({SUPPORTED}/", README)) == len(PATCHES)
