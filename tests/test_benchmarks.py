"""Every script in benchmarks/ runs in its short form; a new one is found by itself."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
CURVES = FOLDER.parent / "src" / "glassgpt" / "config" / "curves"
#: Scripts with a peer that has to be checked out, and its name.
PEERS = {
    "data_preparation.py": "nanoGPT",
    "throughput.py": "nanogpt",
    "time_to_loss.py": "nanoGPT",
    "tokenizer_speed.py": "minbpe",
}


def needs_torch(script: str) -> bool:
    """Whether this torch has what a script compares with."""
    return script == "against_torch.py" and not hasattr(torch.nn.functional, "linear_cross_entropy")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_short_form_prints_figures(script: str, tmp_path: Path) -> None:
    if needs_torch(script):
        pytest.skip("torch 2.13 or later")
    before = {path: path.read_bytes() for path in CURVES.iterdir()}
    command = [sys.executable, str(FOLDER / script), "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d", done.stdout), done.stdout
    if script in PEERS:
        assert re.search(rf"^left out: {PEERS[script]}: give --", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == [], "the short form leaves nothing behind"
    assert {path: path.read_bytes() for path in CURVES.iterdir()} == before, "and does not change the measured curves"


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), FOLDER / script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("expected", "result", "text"),
    [
        ([], [], ""),
        ([1, 2], [1, 2], ""),
        ([1, 2, 3], [1, 5, 2], "number 1 is 5, not 2; 2 of 3 occur in both"),
        ([1, 2, 3], [1, 5], "number 1 is 5, not 2; 1 of 2 occur in both"),
        (["a b", "c d"], ["a b", "d c"], "number 1 is 'd c', not 'c d'; 1 of 2 occur in both"),
        ([1, 2], [], "0, not 2"),
        ([], [1], "1, not 0"),
    ],
)
def test_tokenizer_speed_describes_how_two_results_differ(expected: list[int], result: list[int], text: str) -> None:
    assert load("tokenizer_speed.py").difference(np.array(expected), np.array(result)) == text
