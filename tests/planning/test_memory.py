"""Free memory, also in a container."""

from pathlib import Path

import psutil
import pytest
import torch

from glassgpt.planning import memory


def write_group(folder: Path, limit: str, used: int, cached: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, content in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{content}\n", encoding="ascii")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cached}\nfile_{key} 7\n", encoding="ascii")


@pytest.mark.parametrize(("version", "mount", "line"), [(2, "", "0::"), (1, "memory", "7:cpu,memory:")])
def test_limits_of_control_groups_count_without_the_cache_of_files(
    version: int, mount: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "sys/fs/cgroup" / mount
    write_group(root / "outer", "3000000", 2_500_000, 100_000, version)
    write_group(root / "outer/inner", "max" if version == 2 else str(2**63 - 4096), 2_000_000, 0, version)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:pids:/x\n{line}/outer/inner\n", encoding="ascii")
    assert memory._container_limits(tmp_path)[-1] == (3_000_000, 600_000)
    limits = memory._container_limits(tmp_path)
    monkeypatch.setattr(memory, "_container_limits", lambda: limits)
    assert memory.free_memory(torch.device("cpu")) == 600_000
    assert memory._total_memory() == 3_000_000


def test_without_a_container_free_memory_is_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory._container_limits(tmp_path) == [], "not Linux"
    monkeypatch.setattr(memory, "_container_limits", lambda: [])
    assert 0 < memory.free_memory(torch.device("cpu")) <= memory._total_memory() == psutil.virtual_memory().total
