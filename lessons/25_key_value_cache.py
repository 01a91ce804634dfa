# %% [markdown]
# # Lesson 25: the key/value cache
#
# You will know at the end: which work a cache saves, why the answer stays the same, how much memory it takes, and the
# bug that most first caches have.
#
# Time: 7 minutes to read, about 7 seconds to compute. Before: lessons 17 (the whole GPT) and 19 (choosing the next
# token). The picture needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## The problem
#
# A GPT writes one token at a time. Without a cache, each step runs the whole text through the model again. But the mask
# is causal (lesson 14): what the model computed for earlier positions does not depend on the new token. So all of it
# comes out the same.

# %%
import time

import torch
import torch.nn.functional as F

from glassgpt.config import ModelConfig
from glassgpt.learn import equal, picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.model.cache import KVCache

guess = predict("A prompt of 1 token, 100 tokens to write. How many positions does the model compute without a cache?")
guess.measured(sum(range(1, 101)))
print("With a cache, it is 100: each position once.")

# %% [markdown]
# ## What has to be kept
#
# In a head of attention, the query of the new position is compared with the keys of *all* positions before it, and the
# result is an average of their values.
#
# So we keep the keys and the values: the *key/value cache*.

# %%
seed(0)
T, C, D = 6, 16, 8
x = torch.randn(T, C)  # the hidden state of 6 tokens
w_q, w_k, w_v = torch.randn(3, C, D) / C**0.5


def all_at_once(x: torch.Tensor) -> torch.Tensor:
    """Causal attention of one head, [T, C] -> [T, D]."""
    return F.scaled_dot_product_attention((x @ w_q)[None], (x @ w_k)[None], (x @ w_v)[None], is_causal=True)[0]


keys, values, outputs = torch.empty(0, D), torch.empty(0, D), []
for t in range(T):
    new = x[t : t + 1]  # [1, C]: one token
    keys = torch.cat([keys, new @ w_k])  # [t + 1, D]
    values = torch.cat([values, new @ w_v])
    weights = (new @ w_q @ keys.T / D**0.5).softmax(dim=-1)  # [1, t + 1]: no mask, later tokens are not there yet
    outputs.append(weights @ values)

equal(torch.cat(outputs), all_at_once(x), "one token at a time with a cache, and all at once")

# %% [markdown]
# ## The whole model
#
# The package's `KVCache` keeps the keys and values of every layer, in memory that is reserved at the start. We read a
# text of 40 tokens in three pieces, and compare with one pass.

# %%
config = ModelConfig(vocab_size=300, block_size=512, n_layer=4, n_head=4, n_embd=128, position="rope")
model = GPT(config).eval()
model.init_weights(seed=0)
text = torch.randint(300, (1, 40))

with torch.no_grad():
    full = model(text)
    cache = KVCache(config, max_rows=1)
    pieces = [model(piece, cache=cache) for piece in text.split([25, 1, 14], dim=1)]
equal(torch.cat(pieces, dim=1), full, "logits of 25 + 1 + 14 tokens with a cache, and of 40 at once")

# %% [markdown]
# Reading the prompt in one pass is the *prefill*; the *decode* adds one token per step.
#
# ## Is it faster?
#
# We write greedily (lesson 19). Both ways must write the same text.


# %%
def write(prompt: torch.Tensor, count: int, cached: bool) -> tuple[torch.Tensor, list[float]]:
    """Write `count` tokens; return the text and the seconds of each step."""
    text, seconds = prompt, []
    cache = KVCache(config, max_rows=1) if cached else None
    for step in range(count):
        start = time.perf_counter()
        new = text[:, -1:] if cached and step > 0 else text
        logits = model(new, cache=cache)[:, -1]
        text = torch.cat([text, logits.argmax(dim=-1, keepdim=True)], dim=1)
        seconds.append(time.perf_counter() - start)
    return text, seconds


count = short(full=400, quick=60)
guess = predict(f"{count} tokens: how many times faster is it with the cache?")
with torch.no_grad():
    write(text[:, :8], 5, cached=True)  # the first calls are slow
    slow_text, slow = write(text[:, :8], count, cached=False)
    fast_text, fast = write(text[:, :8], count, cached=True)
assert torch.equal(slow_text, fast_text), "the same text"
guess.measured(f"{sum(slow) / sum(fast):.1f} times ({sum(slow):.2f} s and {sum(fast):.2f} s)")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
for seconds, label in ((slow, "without a cache"), (fast, "with a cache")):
    smooth = torch.tensor(seconds).unfold(0, 9, 1).median(dim=-1).values * 1000
    axes.plot(range(12, 12 + len(smooth)), smooth, label=label)
axes.set(xlabel="tokens in the text", ylabel="milliseconds per new token", title="Time per new token")
axes.set_ylim(bottom=0)
axes.legend()
picture(figure, "25-cache")

# %% [markdown]
# Without a cache, a token costs more the longer the text is. With the cache, only the attention over the keys still
# grows, and it is small here.
#
# ## What it costs: memory
#
# Per token, every layer keeps a key and a value for each key/value head.

# %%
guess = predict("Layers 4, heads 4, head size 32, 512 tokens, float32: how many bytes does this cache have?")
guess.measured(cache.keys.nbytes + cache.values.nbytes)
assert cache.keys.nbytes + cache.values.nbytes == 2 * 4 * 4 * 32 * 512 * 4


def kilobytes_per_token(n_layer: int, n_kv_head: int, head_dim: int) -> float:
    return 2 * n_layer * n_kv_head * head_dim * 2 / 1024  # 2 bytes: bfloat16


print(f"Llama 3 8B (32 layers, 8 key/value heads of 128): {kilobytes_per_token(32, 8, 128):5.0f} KiB per token")
print(f"the same with 32 key/value heads:                 {kilobytes_per_token(32, 32, 128):5.0f} KiB per token")

# %% [markdown]
# Llama has 32 query heads but only 8 key/value heads: four query heads share one. This *grouped-query attention*
# (lesson 15) keeps, and reads at each step, a quarter of the bytes.
#
# ## The usual bug
#
# The new token is at place 0 *of the input*, but its position *in the text* is the number of tokens before it. A
# program that counts positions from the start of the input gives every new token position 0. It does not crash, and
# still writes a text.

# %%
guess = predict("Token 30 is read with position 0. How large is the largest error of its logits?")
with torch.no_grad():
    cache = KVCache(config, max_rows=1)
    model(text[:, :30], cache=cache)
    wrong = model(text[:, 30:31], cache=cache, position_ids=torch.tensor([0]))  # should be 30
difference = float((wrong[0, 0] - full[0, 30]).abs().max())
guess.measured(f"{difference:.4f}; the largest logit is {float(full.abs().max()):.4f}")
assert difference > 1e-3

# %% [markdown]
# The error is small here, because the attention of an untrained model is nearly even. The test above finds it
# nevertheless: *the cached pass equals the full pass*, on several pieces.
#
# ## In real systems
#
# The caches of many users fill the GPU of a server. vLLM cuts the cache into pages, and gives them out as texts grow.
# Keys and values are often stored in 8 bits. Some models keep less: one key/value head for all (multi-query), a sliding
# window (Mistral), or one short vector per token from which keys and values are computed (DeepSeek's MLA).
#
# ## Exercises
#
# Check them with `glassgpt learn 25 --check my_answer.py`.
#
# 1. `cache_bytes(n_layer, n_kv_head, head_dim, tokens, bytes_per_number)` returns the bytes of a cache for one text.
# 2. `step(q, k, v, cache)`: attention of one new token. `q`, `k`, `v` are `[1, D]`; `cache` is None at first, and then
#    what the last call returned. Return the output `[1, D]` and the new cache. The cache may be whatever you like.
#
# Next: `glassgpt doctor --break cached-positions-start-again` trains a model whose cache has this bug, and
# `glassgpt bench generate MODEL` measures a model of yours. Then lesson 26: a model in 8 bits.
