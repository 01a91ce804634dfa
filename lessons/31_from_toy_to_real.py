# %% [markdown]
# # Lesson 31: from toy to real
#
# You will know at the end: ten choices that separate a notebook from a system that trains Llama, where each is in this
# package, and a measurement of each.
#
# Time: 10 minutes to read, about 13 seconds to compute. Before: all other lessons. The picture needs `pip install
# glassgpt[plot]`.

# %% [markdown]
# ## The table
#
# | choice | toy | here: module (command) | Llama-class systems |
# |---|---|---|---|
# | tokens | characters | `tokenizer/` (`tokenizer=bpe:N`): BPE, Unigram files | BPE or SentencePiece, 128,000 tokens |
# | data | one file | `data/` (`data prepare`): shards, duplicates | 15 trillion tokens, near-duplicates removed |
# | optimiser | AdamW | `training/optim.py`: AdamW, Muon | AdamW; Muon in Kimi K2 |
# | processes | one | `processes.py` (`torchrun`): DDP, FSDP | FSDP x tensor x pipeline, 16,000 GPUs |
# | tuning | all weights | `transforms/lora.py` (`tune lora`) | both; adapters are served by the hundred |
# | numbers | float32 | `training/precision.py`, `quantize` | bfloat16, FP8; 4 bits to serve |
# | execution | eager | `inference/kernels.py`, `compile=true` | compiled, hand-written kernels |
# | decoding | no cache | `model/cache.py`, `inference/decode.py` | continuous batching (vLLM) |
# | evaluation | the loss | `evaluation/`, `data/audit/leaks.py` | suites, contamination filters, people |
# | failure | start again | `training/checkpoint.py` | asynchronous checkpoints, spare machines |
#
# Now a measured pair for each of them.

# %%
import contextlib
import copy
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig, TuneConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.model.attention import ExplicitAttention, FusedAttention
from glassgpt.model.cache import KVCache
from glassgpt.tokenizer import BPETokenizer, CharTokenizer
from glassgpt.training.optim import Muon
from glassgpt.transforms.lora import add_lora
from glassgpt.transforms.quantize import quantize
from glassgpt.weights.folder import write_folder

seed(0)
everything = "\n\n".join(topics[name] for name in sorted(topics))  # Python's own help
text = everything[: short(full=200_000, quick=60_000)]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# %% [markdown]
# ## 1 and 2. Tokens and data

# %%
guess = predict("The text as characters, and as BPE tokens (V = 1024): how many characters are one token?")
bpe = BPETokenizer.train(text, vocab_size=1024)
guess.measured(len(CharTokenizer.train(text).encode(text)) / len(bpe.encode(text)))

guess = predict("Python's help: how many % of the text are in paragraphs that occurred before?")
seen, repeated = set[bytes](), 0
for paragraph in everything.split("\n\n"):
    digest = hashlib.sha256(paragraph.encode()).digest()
    repeated += len(paragraph) * (digest in seen)
    seen.add(digest)
guess.measured(100 * repeated / len(everything))

with TemporaryDirectory() as folder:
    path = Path(folder, "tokens.bin")
    np.arange(5_000_000, dtype=np.uint16).tofile(path)
    guess = predict("10 MB of tokens: how many times faster do we get a row if the file is mapped, not read?")
    read = seconds(lambda: np.fromfile(path, dtype=np.uint16)[4_000_000:4_000_064].copy())
    guess.measured(read / seconds(lambda: np.memmap(path, dtype=np.uint16, mode="r")[4_000_000:4_000_064].copy()))

# %% [markdown]
# Of a mapped file, only the pages that are used are read. `data prepare` writes such files in pieces of equal size, the
# *shards*.
#
# ## 3. The optimiser
#
# Muon takes AdamW's place for the matrices inside the blocks: the momentum is *orthogonalised*, so that a step moves
# all directions equally.

# %%
ids = torch.tensor(bpe.encode(text))
config = ModelConfig(vocab_size=bpe.vocab_size, block_size=64, n_layer=2, n_head=4, n_embd=64)


def batch(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(ids) - 65, (rows,), generator=generator)
    windows = ids[starts[:, None] + torch.arange(65)]
    return windows[:, :-1], windows[:, 1:]


def train(kind: str, steps: int) -> tuple[GPT, list[float]]:
    model = GPT(config)
    model.init_weights(seed=0)
    matrices = {p: (p.size(0),) for p in model.blocks.parameters() if p.dim() == 2 and kind == "Muon"}
    optimizers = [torch.optim.AdamW([p for p in model.parameters() if p not in matrices], lr=3e-3)]
    if matrices:
        optimizers.append(Muon([*matrices.items()], lr=0.02, momentum=0.95, weight_decay=0.0))
    losses, generator = [], torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = batch(16, generator)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


steps = short(full=150, quick=10)
guess = predict(f"The loss after {steps} steps, with AdamW and with Muon?")
curves = {}
for kind in ("AdamW", "Muon"):
    model, curves[kind] = train(kind, steps)
guess.measured(", ".join(f"{kind} {sum(curve[-5:]) / 5:.2f}" for kind, curve in curves.items()))

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
for kind, curve in curves.items():
    axes.plot(curve, label=kind)
axes.set(xlabel="step", ylabel="loss (nats per token)", title="Two optimisers, the same batches")
axes.legend()
picture(figure, "31-optimisers")

# %% [markdown]
# ## 4. Processes, and the usual bug
#
# With data parallelism (DDP), each process computes the gradient of its rows, and all take the mean. With FSDP, each
# process keeps only its share of the weights, gradients and optimiser's state, and gets the rest when it is needed.
# Tensor parallelism cuts the matrices. All compute the same gradient.

# %%
x, y = batch(8, torch.Generator().manual_seed(2))


def gradient(x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100).backward()
    return model.blocks[0].mlp.up.weight.grad.clone()


halves = (gradient(x[:4], y[:4]) + gradient(x[4:], y[4:])) / 2
equal(halves, gradient(x, y), "the mean of two halves, and one batch", 1e-6)

mlp, hidden = model.blocks[0].mlp, torch.randn(3, 64)  # tensor parallel: each process has half of the inner units


def share(units: slice) -> Tensor:
    inner = F.linear(hidden, mlp.up.weight[units], mlp.up.bias[units])
    return F.linear(F.gelu(inner, approximate=mlp.approximate), mlp.down.weight[:, units])


equal(share(slice(128)) + share(slice(128, 256)) + mlp.down.bias, mlp(hidden), "an MLP cut in two, and whole")

y = y.clone()
y[:4, 8:] = -100  # in the first half, only 8 of 64 targets are trained: short answers
full, parts = gradient(x, y), (gradient(x[:4], y[:4]), gradient(x[4:], y[4:]))
guess = predict("Halves with 32 and 256 trained tokens: by how many % is the mean of their gradients wrong?")
guess.measured(100 * float(((parts[0] + parts[1]) / 2 - full).norm() / full.norm()))
counts = [int((half != -100).sum()) for half in y.chunk(2)]
weighted = (counts[0] * parts[0] + counts[1] * parts[1]) / sum(counts)
equal(weighted, full, "the mean by the number of trained tokens", 1e-6)

# %% [markdown]
# **The usual bug** of several processes, and of gradient accumulation: a mean of means. `transformers` had it until
# 2024.
#
# ## 5 and 6. Tuning and numbers

# %%
tuned = GPT(config)
add_lora(tuned, TuneConfig(lora_rank=4, lora_targets="all"), seed=0)
guess = predict(f"All weights: {model.num_parameters():,} trained numbers. LoRA of rank 4 on every block matrix?")
guess.measured(f"{sum(p.numel() for p in tuned.parameters() if p.requires_grad):,}")


def num_bytes(model: torch.nn.Module) -> int:
    return sum({t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())  # a tied one once


guess = predict("The largest error of a logit in bfloat16, and in INT8, in % of the largest logit? And the bytes?")
models = {"float32": model, "bfloat16": copy.deepcopy(model).to(torch.bfloat16), "INT8": copy.deepcopy(model)}
quantize(models["INT8"], bits=8)
with torch.no_grad():
    exact = model(x)
    errors = {name: 100 * float((m(x) - exact).abs().max() / exact.abs().max()) for name, m in models.items()}
guess.measured("; ".join(f"{name}: {errors[name]:.1f} %, {num_bytes(m):,} bytes" for name, m in models.items()))

# %% [markdown]
# ## 7 and 8. Execution and decoding

# %%
guess = predict("Attention over 1024 tokens: how many times faster is one fused kernel than five operations?")
q, k, v = torch.randn(3, 1, 4, short(full=1024, quick=256), 32)
with torch.no_grad():
    slow = min(seconds(lambda: ExplicitAttention()(q, k, v, None)) for _ in range(3))
    guess.measured(slow / min(seconds(lambda: FusedAttention()(q, k, v, None)) for _ in range(3)))

guess = predict("Tokens per second: no cache, a cache, a cache with 8 texts at once?")
speeds = {}
with torch.no_grad():
    for name, rows, cached in (("no cache", 1, False), ("cache", 1, True), ("8 texts", 8, True)):
        text_ids, start = x[:1, :8].repeat(rows, 1), time.perf_counter()
        cache = KVCache(config, max_rows=rows) if cached else None
        for step in range(50):
            new = model(text_ids[:, -1:] if cached and step else text_ids, cache=cache)[:, -1].argmax(-1, keepdim=True)
            text_ids = torch.cat([text_ids, new], dim=1)
        speeds[name] = rows * 50 / (time.perf_counter() - start)
guess.measured(", ".join(f"{name}: {speed:.0f}" for name, speed in speeds.items()))

# %% [markdown]
# ## 9 and 10. Evaluation and failure
#
# A benchmark of 100 questions is a sample. A test text must not be in the training text: *contamination* is measured by
# sequences of words that both have. And a checkpoint must survive that the machine stops while the next one is written.

# %%
guess = predict("100 questions, 60 % right. Between which numbers do 95 % of such measurements lie?")
scores = (torch.rand(10_000, 100) < 0.6).float().mean(1) * 100
guess.measured(f"{float(scores.quantile(0.025)):.0f} % and {float(scores.quantile(0.975)):.0f} %")

words = everything.split()
sequences = [tuple(words[i : i + 8]) for i in range(len(words) - 7)]
cut = len(sequences) * 9 // 10
train_sequences = set(sequences[:cut])
guess = predict("Cut Python's help at nine tenths: how many % of the last part's 8-word sequences are in the first?")
guess.measured(100 * sum(sequence in train_sequences for sequence in sequences[cut:]) / len(sequences[cut:]))

with TemporaryDirectory() as folder:
    target = Path(folder, "checkpoint")
    with write_folder(target) as new:
        (new / "weights.json").write_text("step 100")
    with contextlib.suppress(KeyboardInterrupt), write_folder(target) as new:
        (new / "weights.json").write_text("step 2")  # half written
        raise KeyboardInterrupt  # the machine stops
    guess = predict("What is in the checkpoint now: step 100, 'step 2' (half of step 200), or nothing?")
    guess.measured((target / "weights.json").read_text())
    assert (target / "weights.json").read_text() == "step 100"

# %% [markdown]
# ## In real systems
#
# Llama 3 405B was trained on 16,000 GPUs. In 54 days there were 419 unexpected interruptions, and still more than 90 %
# of the time was training. Its Transformer is almost the same as yours. Everything around it is different.
#
# ## Exercises
#
# 1. `average(gradients, counts)`: the gradient of the mean loss over *all* trained tokens. Each process has the
#    gradient of the mean over its own tokens, and their number. A process may have none.
# 2. `training_bytes(parameters, processes, kind)`: bytes of weights, gradients and AdamW's state in each process.
#    bfloat16 for weights and gradients, float32 for a copy of the weights and the two states of AdamW. `kind` is "ddp"
#    (each process has everything) or "fsdp" (each has its share).
#
# Check them with `glassgpt learn 31 --check my_answer.py`.
#
# Next: train something of your own: `glassgpt train my.txt`. `glassgpt plan my.txt` tells what it will cost.
