"""The commands that messages tell the user to type."""

from pathlib import Path

import pytest

from glassgpt import errors


@pytest.mark.parametrize(("has_pip", "tool"), [(True, "pip install"), (False, "uv pip install")])
def test_an_extra_is_installed_from_the_clone_or_the_package_index(
    has_pip: bool, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "has_pip", lambda: has_pip)
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "my clone/src/glassgpt/errors.py"))
    message = str(errors.MissingExtraError("gguf", "gguf", "reading a.gguf"))
    assert message.endswith(
        f"needs the library 'gguf', which is not installed. Install it with: {tool} 'glassgpt[gguf]'"
    )
    (tmp_path / "my clone").mkdir()
    (tmp_path / "my clone/pyproject.toml").touch()
    assert errors.install_extra("gguf") == f"{tool} -e '{tmp_path}/my clone[gguf]'"
