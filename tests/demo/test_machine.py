"""Ports and memory, as the demo looks at them before it starts anything."""

import socket
from pathlib import Path

import pytest

from demo.errors import DemoError
from demo.machine import HOST, available_memory, choose_port, require_memory


def test_a_free_port_is_chosen_where_none_is_named() -> None:
    assert 1024 <= choose_port(None) <= 65535


def test_a_named_port_is_taken_as_it_is() -> None:
    port = choose_port(None)
    assert choose_port(port) == port


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(DemoError, match=rf"port {port} cannot be used .*--port"):
            choose_port(port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(DemoError, match="cannot be used"):
        choose_port(port)


def test_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2048 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 2048 << 10


@pytest.mark.parametrize(
    ("limit", "usage", "stat"),
    [
        ("memory.max", "memory.current", "inactive_file 300"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file 300"),
    ],
)
def test_memory_is_less_in_a_container(tmp_path: Path, limit: str, usage: str, stat: str) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 2048 kB\n")
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("10000\n")
    (tmp_path / usage).write_text("4000\n")
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon 1\n{stat}\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 6300


def test_a_container_without_a_limit_has_all_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 2048 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 2048 << 10


def test_memory_may_be_unknown(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "nothing", tmp_path) is None
    require_memory(1 << 40, None, "it")


def test_too_little_memory_is_refused_with_both_amounts() -> None:
    require_memory(3 << 30, 3 << 30, "it")
    with pytest.raises(DemoError, match=r"serving it needs about 3\.0 GiB and 1\.5 GiB are available"):
        require_memory(3 << 30, 3 << 29, "serving it")
