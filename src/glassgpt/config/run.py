"""The configuration of a training run: the sections ``data``, ``train``, ``optim``, ``runtime`` and ``tune``, beside
``model``.

Zero means "derived" wherever a field's help says so.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from glassgpt.config.model import ModelConfig
from glassgpt.config.section import Section, option

#: The largest share of a text that may be kept for validation.
MAX_VAL_FRACTION = 0.5


def parse_duration(text: str) -> float:
    """Seconds in a duration such as ``90s``, ``5m``, ``1h30m`` or ``90`` (seconds).

    Raises:
        ValueError: if the text is no such duration, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise ValueError(f"{text!r} is not a duration; write 90s, 5m or 1h30m")
    return total


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not valid Unicode; rename the file") from None


def _check_device(name: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"{name!r} is not one of auto, cpu, cuda, cuda:N, mps")


def _check_tokenizer(text: str) -> None:
    _check_unicode(text)
    named = text.partition(":")[0] in ("char", "word", "bpe", "gpt2", "")
    if named and not re.fullmatch(r"char|gpt2|word(:\d{1,7})?|bpe:\d{1,7}", text):
        raise ValueError(f"{text!r} is not a tokenizer; write for example char, word, word:8000, bpe:4096 or gpt2")


@dataclass(frozen=True)
class DataConfig(Section):
    """Which text or documents, and how they become tokens and batches."""

    section = "data"

    source: str = option(
        "shakespeare",
        "a file, a folder, a pattern, a corpus (`glassgpt data list`), or what `data prepare` wrote",
        check=_check_unicode,
    )
    tokenizer: str = option(
        "char", "char, word, word:N, bpe:N (N tokens), gpt2, or a tokenizer file or folder", check=_check_tokenizer
    )
    val_fraction: float = option(
        0.1,
        "share kept for validation: the end of a text, or documents or conversations chosen by their content",
        min_value=0.0001,
        max_value=MAX_VAL_FRACTION,
    )
    max_val_tokens: int = option(
        1_000_000,
        "validation text at most, in characters (of documents: bytes); the rest of a long text trains",
        min_value=2,
    )
    separator: str = option(
        "", "the separator between documents in plain files, for example <|endoftext|>", check=_check_unicode
    )
    text_field: str = option(
        "", "the field of a row with its text; empty: text, content, or the only text field", check=_check_unicode
    )
    duplicates: Literal["keep", "drop"] = option("keep", "drop: leave out documents that repeat an earlier one")
    order: Literal["auto", "random", "sequential"] = option(
        "auto", "random windows; or shard after shard, shuffled nearby (auto: from a gigabyte of tokens on)"
    )
    mask_documents: bool = option(False, "attention and positions restart with each document")


@dataclass(frozen=True)
class TrainConfig(Section):
    """How long to train, in what batches, and what to log and save."""

    section = "train"

    init_from: str = option(
        "", "a model to fine-tune: a run, a folder, a .gguf file, a hub name; empty: train from scratch",
        check=_check_unicode,
    )  # fmt: skip
    steps: int = option(0, "optimiser steps; 0: as many as fit in `time`", min_value=0)
    time: str = option("5m", "time budget when steps=0, for example 90s, 5m, 1h30m", check=parse_duration)
    batch_size: int = option(
        16,
        "global batch size, in sequences per optimiser step (nanoGPT's batch_size is our micro_batch_size)",
        min_value=1,
    )
    micro_batch_size: int = option(0, "sequences per forward pass; 0: as many as fit into memory", min_value=0)
    activation_checkpointing: bool = option(
        False, "keep only each block's input for the backward pass and compute the rest again: less memory, slower"
    )
    seed: int = option(1337, "seed of the initial weights, the order of the data, and dropout", min_value=0)
    grad_clip: float = option(1.0, "largest global gradient norm; 0: no clipping", min_value=0)
    eval_interval: int = option(0, "steps between validations; 0: derived, about 10 in a run", min_value=0)
    eval_tokens: int = option(
        0,
        "tokens of the fixed validation subset; 0: so many that validations cost a tenth of the steps, from 5,000 on",
        min_value=0,
        max_value=100_000,
    )
    patience: int = option(0, "stop after this many validations without a better loss; 0: never", min_value=0)
    save_interval: int = option(0, "steps between checkpoints; 0: eval_interval", min_value=0)
    keep_checkpoints: int = option(
        2, "numbered checkpoints to keep beside best and last (as save_total_limit)", min_value=0
    )
    keep_every: int = option(
        0,
        "steps between checkpoints of the weights alone in kept/, beside step 0 and the last step; 0: none",
        min_value=0,
    )
    log_interval: int = option(0, "steps between lines of metrics.jsonl; 0: derived, about 200 in a run", min_value=0)
    sample_interval: int = option(0, "steps between samples shown; 0: twice eval_interval, from 50 on", min_value=0)
    sample_tokens: int = option(160, "tokens in a sample shown during training; 0: no samples", min_value=0)
    max_nonfinite: int = option(5, "stop after this many non-finite gradients in a row", min_value=1)
    tensorboard: bool = option(False, "write TensorBoard events into the run, too (needs glassgpt[tensorboard])")
    wandb: bool = option(
        False, "log to Weights & Biases, too: offline, unless WANDB_MODE says otherwise (needs glassgpt[wandb])"
    )
    format: Literal["hf", "native"] = option("hf", "hf: checkpoints open in transformers; native: any ModelConfig")


@dataclass(frozen=True)
class OptimConfig(Section):
    """The optimiser and its schedule."""

    section = "optim"

    optimizer: Literal["muon", "adamw"] = option(
        "muon", "muon: Muon for the hidden matrices, AdamW for the rest; adamw: AdamW for all"
    )
    adamw_learning_rate: float = option(5e-3, "peak learning rate of AdamW", min_value=0)
    muon_learning_rate: float = option(0.015, "peak learning rate of Muon", min_value=0)
    weight_decay: float = option(0.1, "decoupled weight decay of matrices (never of norms and biases)", min_value=0)
    beta1: float = option(0.9, "AdamW's first moment decay", min_value=0, max_value=0.9999)
    beta2: float = option(0.99, "AdamW's second moment decay", min_value=0, max_value=0.99999)
    momentum: float = option(0.95, "Muon's momentum", min_value=0, max_value=0.9999)
    warmup_steps: int = option(0, "steps of linear warmup; 0: derived, 5 % of the run, at most 200", min_value=0)
    schedule: Literal["cosine", "trapezoid"] = option(
        "cosine", "after warmup: half a cosine; or constant, then linearly down (trapezoid, also called WSD)"
    )
    decay_fraction: float = option(0.5, "trapezoid: share of the run spent going down", min_value=0, max_value=1)
    min_lr_ratio: float = option(0.1, "final learning rate as a share of the peak", min_value=0, max_value=1)
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights, for example 0.99; best/ gets it where its validation "
        "loss is lower; 0: none",
        min_value=0,
        max_value=0.99999,
    )


@dataclass(frozen=True)
class RuntimeConfig(Section):
    """Where and how to compute. ``auto`` is resolved once and saved with the run."""

    section = "runtime"

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", check=_check_device)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "mixed precision: the compute dtype; master weights stay float32; auto: the fastest that agrees with float32",
    )
    compile: Literal["auto", "true", "false"] = option(
        "auto", "torch.compile the blocks; auto: if the steps gain more time than compiling costs"
    )
    attention: Literal["auto", "fused", "unfused"] = option(
        "auto",
        "attention in training: fused in one kernel, or unfused, which some CPUs compute faster in 16 bits; "
        "auto: the faster one",
    )
    threads: int = option(0, "CPU threads; 0: PyTorch's choice", min_value=0, max_value=1024)
    decode: Literal["eager", "kernels"] = option(
        "eager", "how samples in training are generated: eager PyTorch, or kernels (numba, on a CPU)"
    )
    num_workers: int = option(
        0,
        "DataLoader worker processes that read batches ahead; 0: load in the main process",
        min_value=0,
        max_value=256,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "compile", str(self.compile).lower())  # TOML's own true and false will do, too
        super().__post_init__()


@dataclass(frozen=True)
class TuneConfig(Section):
    """How to fine-tune on conversations. The verb sets the method: ``glassgpt tune sft`` or ``glassgpt tune lora``."""

    section = "tune"

    method: Literal["none", "sft", "lora"] = option(
        "none", "sft: train all weights; lora: train small matrices beside frozen weights; none: pre-training"
    )
    epochs: int = option(0, "passes over the conversations at most; 0: 10", min_value=0)
    max_length: int = option(
        0,
        "tokens in a row; longer conversations are cut at a turn; 0: as the longest needs, from 256 to 1,024",
        min_value=0,
    )
    packing: bool = option(True, "several conversations in a row; they do not see each other")
    lora_rank: int = option(16, "columns of each pair of LoRA matrices", min_value=1, max_value=65536)
    lora_alpha: float = option(32.0, "LoRA's product is multiplied by alpha / rank", min_value=0)
    rslora: bool = option(False, "multiply by alpha / sqrt(rank) instead (rank-stabilised LoRA)")
    lora_dropout: float = option(0.0, "dropout of the input of LoRA's matrices", min_value=0, max_value=0.9)
    lora_targets: str = option(
        "all", "which matrices get LoRA, by their published names: q_proj,v_proj; all: every matrix in the blocks"
    )
    lora_layers: int = option(
        0, "only the last so many blocks get LoRA: the others need no backward pass; 0: all blocks", min_value=0
    )


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration of a training run."""

    preset: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    optim: OptimConfig
    runtime: RuntimeConfig
    tune: TuneConfig = TuneConfig()

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a global batch, with padding if there is any."""
        return self.train.batch_size * (self.tune.max_length or self.model.block_size)

    @property
    def models_validated(self) -> int:
        """How many models each validation during a run evaluates: the weights, and their average if there is one."""
        return 2 if self.optim.ema else 1

    def replace(self, section: str, **changes: Any) -> "RunConfig":
        """A copy with fields of one section changed. Derived model fields keep their values."""
        part = dataclasses.replace(getattr(self, section), **changes)
        return dataclasses.replace(self, **{section: part})

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: ``{"preset": ..., "model": {...}, ...}``, as written to run.toml.

        The section ``tune`` is there only if the run fine-tunes on conversations.
        """
        values = dataclasses.asdict(self)
        if self.tune == TuneConfig():
            del values["tune"]
        return values
