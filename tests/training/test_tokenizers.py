"""Any recipe takes any tokenizer; the run carries it, and needs nothing else to go on or to be used elsewhere."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from glassgpt import api, data
from glassgpt.config import DataConfig, parse_overrides
from glassgpt.data import TokenStream
from glassgpt.data.corpus.encoding import in_validation
from glassgpt.errors import CheckpointError, TokenizerError
from glassgpt.files import sha256_of
from glassgpt.planning import opening, run_plan
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, WordTokenizer, save, specs
from glassgpt.training.checkpoint import Run
from glassgpt.training.metrics import Reporter, StepEvent

pytestmark = pytest.mark.usefixtures("empty_cache", "quick_measuring")

SHAPE = ["n_layer=1", "n_head=2", "n_embd=16", "block_size=8", "batch_size=4"]
OFTEN = ["eval_interval=4", "save_interval=4", "log_interval=1", "sample_tokens=4", "eval_tokens=100"]
SETTINGS = [*SHAPE, *OFTEN, "dtype=float32", "compile=false", "device=cpu"]
#: Written as in a recipe -> the class that it gives, and the size of its vocabulary on the text of the tests.
SPECS = {
    "char": (CharTokenizer, None),
    "word": (WordTokenizer, None),
    "word:90": (WordTokenizer, 90),
    "bpe:300": (BPETokenizer, 300),
    "gpt2": (BPETokenizer, 50257),
    "FILE": (BPETokenizer, 280),
}


@pytest.fixture
def file(tmp_path: Path, prose: str) -> Path:
    """A tokenizer in a folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    save(BPETokenizer.train(prose, 280), folder, block_size=8)
    return folder


@pytest.fixture
def rows(tmp_path: Path, prose: str) -> Path:
    """That text as documents."""
    lines = [json.dumps({"text": f"{i} {line}"}) for i, line in enumerate(prose.splitlines())]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "a.jsonl"


class Interrupter(Reporter):
    """Presses Ctrl-C in a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            signal.raise_signal(signal.SIGINT)


def prepared(text: Path, tokenizer: str, val_fraction: float = 0.1) -> TokenStream:
    config = DataConfig(source=str(text), tokenizer=tokenizer, val_fraction=val_fraction)
    return data.prepare(data.find_source(config), config)


def train(folder: Path, text: Path, *settings: str, stop_at: int = 0) -> Run:
    plan = run_plan.plan_run("tiny", [parse_overrides([*SETTINGS, f"source={text}", *settings])])
    return opening.start_run(plan, "run", folder, reporter=Interrupter(stop_at)).train().run


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "time/"))} for row in run.metrics]


@pytest.mark.parametrize("written", SPECS)
def test_a_stream_holds_the_same_text_in_any_tokens(written: str, prose: str, text_file: Path, file: Path) -> None:
    spec = str(file) if written == "FILE" else written
    kind, vocab_size = SPECS[written]
    stream = prepared(text_file, spec)
    tokenizer, cut = stream.tokenizer, len(prose) - round(0.1 * len(prose))
    assert isinstance(tokenizer, kind)
    assert stream.info.vocab_size == tokenizer.vocab_size == (vocab_size or tokenizer.vocab_size)
    assert stream.info.bytes == {"train": len(prose[:cut].encode()), "val": len(prose[cut:].encode())}
    assert stream.train.dtype == "<u2" and len(stream.train) == stream.info.tokens["train"]
    assert stream.info.lossless == (written != "word:90")
    if stream.info.lossless:
        assert tokenizer.decode(stream.train.tolist()) == prose[:cut]
        assert tokenizer.decode(stream.val.tolist()) == prose[cut:]
        assert stream.tokens_per_byte == stream.info.tokens["val"] / stream.info.bytes["val"]
    else:
        assert "<|unk|>" in tokenizer.decode(stream.val.tolist()) and stream.tokens_per_byte is None
    assert prepared(text_file, spec).folder == stream.folder, "prepared once"


def test_bpe_learns_from_the_training_part_alone(prose: str, tmp_path: Path) -> None:
    ending = "zqzqzq " * 400  # all of it in the validation part
    (tmp_path / "a.txt").write_text(prose + ending, encoding="utf-8")
    learned = prepared(tmp_path / "a.txt", "bpe:300", len(ending) / len(prose + ending)).tokenizer
    assert isinstance(learned, BPETokenizer)
    assert learned.model.merges == BPETokenizer.train(prose, 300).model.merges
    assert b"zq" not in learned.model.vocab


def test_a_changed_tokenizer_file_is_another_stream(prose: str, text_file: Path, file: Path) -> None:
    first = prepared(text_file, str(file))
    save(BPETokenizer.train(prose, 270), file, block_size=8)
    second = prepared(text_file, str(file))
    assert (first.info.vocab_size, second.info.vocab_size) == (280, 270)
    assert first.folder != second.folder


def test_other_roles_of_the_same_file_are_another_stream(rows: Path, file: Path, tmp_path: Path) -> None:
    """The token that ends a document is in tokenizer_config.json, not in tokenizer.json."""
    other = tmp_path / "other"
    shutil.copytree(file, other)
    (other / "tokenizer_config.json").write_text('{"model_max_length": 8}', encoding="utf-8")
    ours, theirs = (prepared(rows, str(folder), 0.3) for folder in (file, other))
    assert (ours.tokenizer.eos_token_id, theirs.tokenizer.eos_token_id) == (279, None)
    assert ours.folder != theirs.folder and 279 in ours.train[:1000] and 279 not in theirs.train[:1000]
    assert prepared(rows, str(file), 0.3).folder == ours.folder


@pytest.mark.parametrize("written", ["word:90", "bpe:300"])
def test_words_and_bpe_learn_from_training_documents_alone(written: str, rows: Path) -> None:
    """The held-out documents change nothing that is learned, and generation may begin where documents do."""
    stream = prepared(rows, written, 0.3)
    texts = [json.loads(row)["text"] for row in rows.read_text(encoding="utf-8").splitlines()]
    kept = [text for text in texts if not in_validation([text], 0.3)]
    assert 300 < len(kept) < len(texts)
    expected = specs.make(specs.parse(written), kept)
    ours = stream.tokenizer
    assert [ours.token_bytes(i) for i in range(ours.vocab_size)] == list(
        map(expected.token_bytes, range(ours.vocab_size))
    )
    assert ours.vocab_size == expected.vocab_size and ours.bos_token_id == ours.eos_token_id == expected.eos_token_id


@pytest.mark.parametrize("written", ["word", "bpe:300", "FILE"])
def test_a_run_carries_its_tokenizer(written: str, tmp_path: Path, text_file: Path, file: Path, prose: str) -> None:
    from transformers import AutoTokenizer

    run = train(tmp_path, text_file, "steps=4", f"tokenizer={file if written == 'FILE' else written}")
    shutil.rmtree(file)
    shutil.rmtree(tmp_path / "cache")
    model, tokenizer = api.load(run.path)
    assert model.config.vocab_size == tokenizer.vocab_size
    theirs = AutoTokenizer.from_pretrained(run.best)
    text = "\n".join(prose.splitlines()[:20])
    ids = tokenizer.encode(text)
    assert theirs(text)["input_ids"] == ids == api.load_tokenizer(run.path).encode(text)
    assert theirs.decode(ids) == tokenizer.decode(ids) == text
    assert api.generate(model, tokenizer, text, max_new_tokens=5, seed=1)
    config = json.loads((run.best / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == tokenizer.eos_token_id and config["bos_token_id"] is None
    assert tokenizer.eos_token_id is None or theirs.eos_token_id == tokenizer.eos_token_id


def write_former_identity(run: Run, file: Path) -> None:
    """Change run.toml to what version 0.1 wrote: the SHA-256 of the tokenizer's file."""
    former, toml = f"file {sha256_of(file / 'tokenizer.json')}", run.path / "run.toml"
    content = toml.read_text(encoding="utf-8")
    assert "loaded " in content
    toml.write_text(re.sub(r"loaded \w+", former, content), encoding="utf-8")


@pytest.mark.parametrize("written", ["bpe:300", "FILE", "FILE, as version 0.1 did"])
def test_resuming_needs_neither_the_cache_nor_the_file(
    written: str, tmp_path: Path, text_file: Path, file: Path
) -> None:
    setting = f"tokenizer={file if 'FILE' in written else written}"
    whole = train(tmp_path / "whole", text_file, "steps=8", setting)
    run = train(tmp_path / "broken", text_file, "steps=8", setting, stop_at=5)
    if written.endswith("did"):
        write_former_identity(run, file)
    shutil.rmtree(file)
    shutil.rmtree(tmp_path / "cache")
    opening.resume_run(run.path).train()
    assert (run.last / "model.safetensors").read_bytes() == (whole.last / "model.safetensors").read_bytes()
    assert timeless(run) == timeless(whole)


def test_a_run_without_a_checkpoint_does_not_go_on_with_another_tokenizer(
    tmp_path: Path, text_file: Path, file: Path, prose: str
) -> None:
    plan = run_plan.plan_run(
        "tiny", [parse_overrides([*SETTINGS, f"source={text_file}", "steps=4", f"tokenizer={file}"])]
    )
    run = opening.start_run(plan, "run", tmp_path).run
    shutil.rmtree(tmp_path / "cache")
    former = tmp_path / "former"
    shutil.copytree(run.path, former)
    write_former_identity(Run(former), file)
    for path in (former, run.path):
        opening.resume_run(path)  # the file is the same
        shutil.rmtree(tmp_path / "cache")
    config = file / "tokenizer_config.json"
    roles = config.read_text(encoding="utf-8")
    config.write_text(roles.replace("eos_token", "no_token"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has changed since"):
        opening.resume_run(run.path)
    config.write_text(roles, encoding="utf-8")
    save(BPETokenizer.train(prose, 270), file, block_size=8)
    for path in (former, run.path):
        with pytest.raises(CheckpointError, match="has changed since"):
            opening.resume_run(path)


def test_a_run_keeps_the_whole_path_of_a_tokenizer(
    tmp_path: Path, text_file: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    run = train(tmp_path, text_file, "steps=2", "tokenizer=mine")
    assert run.config().data.tokenizer == str(file)
    assert run.provenance()["tokenizer"] == specs.identity(specs.parse(str(file)))


def test_what_became_unk_is_not_measured_in_bits_per_byte(tmp_path: Path, text_file: Path, cli: Any) -> None:
    run = train(tmp_path, text_file, "steps=4", "tokenizer=word:90")
    assert [row["val/bpb"] for row in run.metrics if "val/bpb" in row] == [None, None]
    assert run.metrics[-1]["final/val_bpb"] is None and run.metrics[-1]["final/val_loss"] > 0
    code, out, _ = cli("runs", "show", run.path)
    assert code == 0 and "bits per byte    -" in out


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("bpe", "write for example"),
        ("bpe:", "write for example"),
        ("bpe:many", "write for example"),
        ("bpe:-5", "write for example"),
        ("char:100", "write for example"),
        ("", "write for example"),
        ("bpe:100", "at least 257 tokens"),
        ("word:2", "at least 3 tokens"),
        ("wrod", "did you mean 'word'?"),
        ("nothere/tokenizer.json", "there is no tokenizer"),
        ("x" * 5000, "there is no tokenizer"),
        (".", "has no tokenizer.json"),
        ("text.txt", "known format"),
    ],
)
def test_a_wrong_tokenizer_is_one_message(written: str, said: str, cli: Any, text_file: Path) -> None:
    Path("text.txt").write_text("no tokenizer", encoding="utf-8")
    code, _, err = cli("train", text_file, "preset=tiny", "steps=2", f"tokenizer={written}")
    assert code == 2 and said in err and "Traceback" not in err and err.count("error:") == 1
    assert not Path("runs").exists()


def test_a_word_that_was_not_in_the_text_is_named(tmp_path: Path, text_file: Path, cli: Any) -> None:
    run = train(tmp_path, text_file, "steps=2", "tokenizer=word")
    code, _, err = cli("sample", run.path, "--prompt", "xylophone")
    assert code == 2 and "'xylophone'" in err and "bpe:N" in err


def test_made_from_a_text_means_there_is_nothing_to_open() -> None:
    for written in ("char", "word", "word:100", "bpe:300"):
        with pytest.raises(TokenizerError, match="train it first"):
            api.load_tokenizer(written)
