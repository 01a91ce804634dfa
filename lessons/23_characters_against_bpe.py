# %% [markdown]
# # Lesson 23: characters against BPE
#
# You will know at the end: how bits per byte compare models with different tokenizers, why their losses do not, and
# what a tokenizer gains and costs.
#
# Time: 6 minutes to read, about 40 seconds to compute. Before: lessons 8 (byte-pair encoding) and 18 (training). The
# picture needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## Three models, one text
#
# One model reads characters. The others read tokens of byte-pair encoding (BPE). Layers, width, steps and tokens in a
# batch are equal. The text is Python's own help; the last tenth is for validation. Many help pages contain parts of
# others, so a paragraph that stood before is left out: otherwise validation text would stand in the training text.

# %%
import lzma
import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.learn import picture, predict, short
from glassgpt.loss import evaluate
from glassgpt.model import GPT
from glassgpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

paragraphs = (paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
text = "\n\n".join(dict.fromkeys(paragraphs))  # each one once
text = text[: short(full=300_000, quick=60_000)]
cut = len(text) * 9 // 10
train_text, val_text = text[:cut], text[cut:]
tokenizers: dict[str, Tokenizer] = {
    "characters": CharTokenizer.train(text),  # of the whole text: it refuses characters that it has not seen
    "BPE 512": BPETokenizer.train(train_text, vocab_size=512),
    "BPE 2048": BPETokenizer.train(train_text, vocab_size=2048),
}
guess = predict("How many characters does a token of BPE 512 have, on average? And of BPE 2048?")
val_ids = {name: torch.tensor(tokenizer.encode(val_text)) for name, tokenizer in tokenizers.items()}
guess.measured(", ".join(f"{name}: {len(val_text) / len(ids):.2f}" for name, ids in val_ids.items()))

sample = "The for statement is used to iterate"
for name, tokenizer in tokenizers.items():
    print(f"{name:<11}", "|".join(tokenizer.decode([i]) for i in tokenizer.encode(sample)))

# %% [markdown]
# ## Train them

# %%
T = 64


def train(tokenizer: Tokenizer, steps: int) -> GPT:
    ids = torch.tensor(tokenizer.encode(train_text))
    model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=T, n_layer=2, n_head=4, n_embd=64))
    model.init_weights(seed=0)
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20, 2 * (1 - step / steps))
        starts = torch.randint(len(ids) - T - 1, (16,), generator=generator)
        rows = ids[starts[:, None] + torch.arange(T + 1)]
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def sum_of_losses(model: GPT, ids: Tensor) -> tuple[float, int]:
    """The sum of the losses in nats, and the number of predicted tokens."""
    windows = ids[: (len(ids) - 1) // T * T + 1]
    inputs, targets = windows[:-1].view(-1, T), windows[1:].view(-1, T)
    return float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")), targets.numel()


steps = short(full=400, quick=15)
guess = predict("Which model will have the lowest loss per token?")
models = {name: train(tokenizer, steps) for name, tokenizer in tokenizers.items()}
sums = {name: sum_of_losses(models[name], val_ids[name]) for name in models}
per_token = {name: total / count for name, (total, count) in sums.items()}
guess.measured(", ".join(f"{name}: {loss:.2f}" for name, loss in per_token.items()))

# %% [markdown]
# By this number, characters are best by far. But **the usual bug** is to compare losses per token of different
# tokenizers. The character model chooses one of about 100 characters. A BPE model chooses one of hundreds of tokens,
# which is harder, but predicts several characters at once.
#
# ## Bits per byte
#
# All predict the same *text*. So add up the losses of all tokens, and divide by something that does not depend on the
# tokenizer: the bytes of the text in UTF-8. Divide by ln 2 to get bits.
#
#     bits per byte = loss per token  x  tokens per byte  /  ln 2

# %%
num_bytes = len(val_text.encode("utf-8"))
bits = {name: per_token[name] * len(val_ids[name]) / num_bytes / math.log(2) for name in models}
guess = predict("Now which one is best? (8 bits per byte: knows nothing)")
guess.measured(", ".join(f"{name}: {value:.3f}" for name, value in bits.items()))

for name, model in models.items():
    ids = val_ids[name].numpy()
    theirs = evaluate(model, ids, T, torch.device("cpu"), tokens_per_byte=len(ids) / num_bytes)
    assert abs(theirs.bits_per_byte - bits[name]) < 0.02 * bits[name], "the package counts the last window, too"
    print(f"{name:<11} mine {bits[name]:.4f}, the package's {theirs.bits_per_byte:.4f}")

# %% [markdown]
# With an arithmetic coder, the model would store the text in so many bits. So a compressor, which may read the training
# text first, is a baseline.

# %%
extra = len(lzma.compress((train_text + val_text).encode())) - len(lzma.compress(train_text.encode()))
bits["lzma"] = 8 * extra / num_bytes

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
axes[0].bar(per_token.keys(), per_token.values())
axes[0].set(title="loss per token: cannot be compared", ylabel="nats")
axes[1].bar(bits.keys(), bits.values(), color=["C0"] * 3 + ["lightgrey"])
axes[1].set(title="bits per byte: can be compared", ylabel="bits")
for one in axes:
    one.tick_params(axis="x", rotation=30)
picture(figure, "23-bits")
print(", ".join(f"{name} {value:.2f}" for name, value in bits.items()))
if steps > 100:  # not in the short form of the tests
    assert per_token["characters"] < per_token["BPE 512"] < per_token["BPE 2048"], "per token, characters look best"
    assert bits["BPE 512"] < bits["characters"], "per byte, they are not"

# %% [markdown]
# The compressor is better than our tiny models. Large models are better than compressors.
#
# ## What BPE gains, and what it costs
#
# A window of 64 tokens holds 64 characters, or with BPE two to three times as many. So the BPE models see more context
# and more text, and need fewer steps to write a text. But the embedding grows: 2048 rows instead of about 100, and rare
# tokens are seen too seldom.

# %%
for name, model in models.items():
    table = model.token_embedding.weight.numel()
    seen = steps * 16 * T * num_bytes / len(val_ids[name])
    share = 100 * table / model.num_parameters()
    print(f"{name:<11} {model.num_parameters():,} parameters, {share:.0f} % in the table; {seen / 1e6:.1f} MB read")

# %% [markdown]
# ## In real systems
#
# GPT-2 has 50,257 tokens, Llama 2 32,000, Llama 3 128,256, Gemma 256,000. Large models can afford large tables. Papers
# that compare tokenizers give bits per byte; perplexity, e to the loss per token, has the same fault as the loss.
#
# ## Exercises
#
# 1. `bits_per_byte(losses, text)`: `losses` is a list of the losses of all tokens of a text, in nats.
# 2. `better(a, b)`: two models as pairs `(loss per token, tokens)`, both measured on the same text. Return "a", "b", or
#    "equal" if they differ by less than one part in a million.
#
# Check them with `glassgpt learn 23 --check my_answer.py`.
#
# Next: `glassgpt tokenizer compare my.txt char word bpe:512 gpt2` on your own text. Then lesson 24: published weights.
