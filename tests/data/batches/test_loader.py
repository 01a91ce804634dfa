"""The loader gives batch k, however many processes read and share it, and its memory does not grow."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from streams import sharded

from glassgpt.data import Batches, Loader
from glassgpt.processes import Processes


def loader(tokens: object, rank: int, ranks: int, workers: int, order: str) -> Loader:
    batches = Batches(tokens, 8, 12, 5, order)  # type: ignore[arg-type]
    return Loader(batches, Processes(rank, ranks).share(12), mask_documents=True, num_workers=workers)


@pytest.mark.parametrize("order", ["random", "sequential"])
def test_a_resumed_loader_gives_the_same_ids_with_other_ranks_and_workers(tmp_path: Path, order: str) -> None:
    tokens = sharded(tmp_path, [500, 40, 300])
    whole = loader(tokens, 0, 1, 0, order)
    expected = [whole.get(k) for k in range(30)]  # across three epochs
    for ranks, workers, begin in ((1, 2, 0), (2, 0, 7), (2, 2, 11), (4, 0, 3), (4, 2, 13)):
        parts = [loader(tokens, rank, ranks, workers, order) for rank in range(ranks)]
        for k in range(begin, begin + 9):
            rows = [part.get(k) for part in parts]
            for i, complete in enumerate(expected[k]):
                assert torch.equal(torch.cat([row[i] for row in rows]), complete), (ranks, workers, k)
        for part in parts:
            part.close()


def test_batches_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    tokens = sharded(tmp_path, [500, 300])
    here, ahead = loader(tokens, 0, 1, 0, "random"), loader(tokens, 0, 1, 1, "random")
    for k in (3, 4, 9, 0, 1):
        assert torch.equal(here.get(k).idx, ahead.get(k).idx)
    ahead.close()


def test_reading_ahead_leaves_the_random_state_alone(tmp_path: Path) -> None:
    ahead = loader(sharded(tmp_path, [500]), 0, 1, 1, "random")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ahead.get(0)
    assert torch.equal(torch.get_rng_state(), before)
    ahead.close()


DYING = """
    import os, signal, sys
    from pathlib import Path
    from glassgpt.config import parse_overrides
    from glassgpt.errors import DataError
    from glassgpt.planning import opening, run_plan
    settings = "n_layer=1 n_head=2 n_embd=16 block_size=16 batch_size=4 steps=100000 sample_tokens=0 dtype=float32"
    layer = parse_overrides([*settings.split(), "compile=false", "num_workers=2", f"source={sys.argv[1]}"])
    trainer = opening.start_run(run_plan.plan_run("tiny", [layer]), "run", Path(sys.argv[2]))
    step = trainer._step
    def kill_one() -> None:
        if trainer.state.step == 5:
            os.kill(trainer.task.loader._iterator._workers[0].pid, signal.SIGKILL)
        step()
    trainer._step = kill_one
    try:
        trainer.train()
    except DataError as error:
        print(error)
"""


def test_a_worker_that_dies_is_one_clear_error(tmp_path: Path, text_file: Path) -> None:
    """In a process of its own: torch raises its error wherever that process happens to be."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DYING), str(text_file), str(tmp_path)],
        capture_output=True, text=True, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a process that reads batches has ended" in done.stdout and "runtime.num_workers=0" in done.stdout


MEMORY = """
    import sys
    from pathlib import Path
    from glassgpt.data import Batches, Loader
    from glassgpt.data.corpus.shards import Tokens, open_shard
    shards = [open_shard(path) for path in sorted(Path(sys.argv[1]).glob("*.safetensors"))]
    loader = Loader(Batches(Tokens(shards), 64, 8, 1, sys.argv[2]), mask_documents=True)
    def private():  # KiB; mapped pages of the shards belong to the system, which takes them back when it likes
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
    for k in range(500):
        loader.get(k)
    before = private()
    for k in range(500, 10_500):
        loader.get(k)
    print(private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system tells no private memory")
@pytest.mark.parametrize("order", ["random", "sequential"])
def test_memory_is_flat_over_ten_thousand_batches(tmp_path: Path, order: str) -> None:
    sharded(tmp_path, [2_000_000, 1_500_000, 2_500_000], document=300)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path), order],
        capture_output=True, text=True, check=True, encoding="utf-8",
    )  # fmt: skip
    assert int(done.stdout) < 2048, f"grew by {done.stdout} KiB while 10,000 batches were read"
