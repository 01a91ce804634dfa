# %% [markdown]
# # Lesson 19: choose the next token
#
# You will know at the end: what greedy choice, temperature, top-k and top-p do to the same logits, and how the text
# changes with the temperature.
#
# Time: 7 minutes to read, about 10 seconds to compute. Before: lesson 18 (training). The picture needs `pip install
# glassgpt[plot]`.

# %% [markdown]
# ## The same logits for all
#
# A model gives V logits, and the softmax makes probabilities of them. The choice of the next token is ours. We invent
# logits of eight tokens, as after "The cat sat on the".

# %%
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt import sampling
from glassgpt.learn import equal, picture, predict, seed, short

torch.set_num_threads(1)  # for so small a model, one thread is faster than several

words = ["mat", "sofa", "floor", "table", "roof", "moon", "idea", "of"]
logits = torch.tensor([4.0, 3.4, 3.2, 2.6, 2.0, 0.5, -1.0, -3.0], dtype=torch.float64)


def show(name: str, logits: Tensor) -> None:
    print(f"{name:18}" + "".join(f"{word} {p:.3f}  " for word, p in zip(words, logits.softmax(-1), strict=True)))


show("the model", logits)

# %% [markdown]
# ## Greedy
#
# Always take the most likely token. Often this ends in a loop.

# %%
print("greedy:", words[int(logits.argmax())])

# %% [markdown]
# ## Sampling
#
# Draw a token at random, each with its probability. The probabilities lie side by side on a line from 0 to 1. A random
# number between 0 and 1 falls on one of them.


# %%
def draw(logits: Tensor, number: float) -> int:
    ends = logits.softmax(-1).cumsum(-1)  # where each token's part of the line ends
    return min(int((ends <= number).sum()), len(logits) - 1)


guess = predict('How often is it "moon" or something even less likely, in 10,000 draws?')
seed(0)
numbers = torch.rand(10_000, dtype=torch.float64)
drawn = torch.tensor([draw(logits, number) for number in numbers.tolist()])
guess.measured(int((drawn >= 5).sum()))
theirs = sampling.sample_inverse_cdf(logits.softmax(-1).expand(10_000, -1), numbers)
equal(drawn, theirs, "our draws, and the package's")

# %% [markdown]
# Each of these words does not fit, and the text continues after it. With V = 50,000, one unlikely token alone is rare,
# but together they are not. The next three methods make them rarer.
#
# ## Temperature
#
# Divide all logits by T. Below 1 the differences grow: likely tokens get likelier. Above 1 they shrink. T near 0 is
# greedy.


# %%
def temperature(logits: Tensor, T: float) -> Tensor:
    return logits / T


guess = predict("The probability of 'mat' is 0.414. At T = 0.5?")
guess.measured(temperature(logits, 0.5).softmax(-1)[0].item())
for T in (0.5, 1.0, 1.5):
    show(f"T = {T}", temperature(logits, T))
    theirs = sampling.apply_temperature(logits, T)
    assert torch.allclose(temperature(logits, T).softmax(-1), theirs.softmax(-1)), "as the package"

# %% [markdown]
# ## Top-k
#
# Keep the k largest logits, and set all others to minus infinity. After the softmax their probability is exactly 0.


# %%
def top_k(logits: Tensor, k: int) -> Tensor:
    return logits.masked_fill(logits < logits.topk(k).values[-1], float("-inf"))


show("top-k, k = 3", top_k(logits, 3))
assert torch.equal(top_k(logits, 3), sampling.keep_top_k(logits, 3)), "as the package"

# %% [markdown]
# But k is the same everywhere. After "The cat sat on the", many words are good. After "New Yor", only one letter is,
# and k = 3 keeps two wrong ones.
#
# ## Top-p
#
# Keep the most likely tokens until their probabilities sum to at least p (*nucleus sampling*): many where the model is
# unsure, and one where it is sure.


# %%
def top_p(logits: Tensor, p: float) -> Tensor:
    ordered, order = logits.softmax(-1).sort(descending=True)
    before = ordered.cumsum(-1) - ordered  # the sum of all that are likelier
    return logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p), float("-inf"))


guess = predict("How many of the 8 tokens does top-p with p = 0.9 keep?")
guess.measured(int(top_p(logits, 0.9).isfinite().sum()))
show("top-p, p = 0.9", top_p(logits, 0.9))
assert torch.equal(top_p(logits, 0.9), sampling.keep_top_p(logits, 0.9)), "as the package"

# %%
import matplotlib.pyplot as plt

rows = {
    "T = 0.5": temperature(logits, 0.5), "T = 1": logits, "T = 1.5": temperature(logits, 1.5),
    "greedy": top_k(logits, 1), "top-k = 3": top_k(logits, 3), "top-p = 0.9": top_p(logits, 0.9),
}  # fmt: skip
figure, axes = plt.subplots(2, 3, figsize=(10, 5), sharey=True, layout="constrained")
for place, (name, row) in zip(axes.flat, rows.items(), strict=True):
    place.bar(words, row.softmax(-1).tolist())
    place.set(title=name)
    place.tick_params(axis="x", rotation=60)
figure.supylabel("probability")
picture(figure, "19-methods")

# %% [markdown]
# ## The usual bug: the order of the steps
#
# Temperature changes probabilities, so top-p keeps other tokens before it than after it. `transformers` and this
# package apply the temperature first, then top-k, then top-p.

# %%
first = top_p(temperature(logits, 1.5), 0.8)
last = temperature(top_p(logits, 0.8), 1.5)
guess = predict("T = 1.5 and p = 0.8. How many tokens are kept with the temperature first? And last?")
guess.measured(f"first: {int(first.isfinite().sum())}, last: {int(last.isfinite().sum())}")
assert first.isfinite().sum() > last.isfinite().sum()
setting = sampling.SamplingConfig(temperature=1.5, top_p=0.8)
equal(first.softmax(-1), sampling.probabilities(logits, setting), "temperature first: ours, and the package's")

# %% [markdown]
# ## The temperature, in a text
#
# A small model, trained on a few proverbs, continues the same start with the same random numbers.

# %%
from glassgpt.config import ModelConfig
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer

proverbs = """A rolling stone gathers no moss. All roads lead to Rome. Better late than never. Still waters run deep.
The early bird catches the worm. Time and tide wait for no man. Where there is a will there is a way. You cannot judge
a book by its cover. A watched pot never boils. Every cloud has a silver lining. No man is an island. The pen is
mightier than the sword. When in Rome, do as the Romans do. Two heads are better than one. """.replace("\n", " ")
tokenizer = CharTokenizer.train(proverbs)
ids = torch.from_numpy(tokenizer.encode_array(proverbs))
model = GPT(ModelConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2, n_embd=64))
model.init_weights(seed=0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
seed(0)
for _ in range(short(full=500, quick=40)):
    window = ids[torch.randint(len(ids) - 32, (16, 1)) + torch.arange(33)]  # [B, T + 1]
    loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.2f}")


# %%
@torch.no_grad()
def write(start: str, T: float, length: int) -> str:
    written = tokenizer.encode(start)
    numbers = torch.rand(length, generator=torch.Generator().manual_seed(3)).tolist()
    for number in numbers:
        logits = model(torch.tensor([written[-32:]]))[0, -1].double()  # the last position predicts the next token
        written.append(draw(temperature(logits, T), number))
    return tokenizer.decode(written)


for T in (0.5, 1.0, 1.5):
    print(f"T = {T}: {write('The ', T, short(full=180, quick=30))}\n")

# %% [markdown]
# With T = 0.5 the model mostly repeats the proverbs. With T = 1.5 many words are no longer English. People use about
# 0.7 to 1 for stories, and near 0 where there is one right answer.
#
# ## In real systems
#
# Chat services use a temperature with top-p, some with *min-p*: drop every token that is less than p times as likely as
# the best one. A *repetition penalty* makes tokens less likely that have already occurred.
#
# ## Exercises
#
# 1. `apply(logits, temperature, k, p)` returns the probabilities of logits `[V]` after temperature, top-k and top-p, in
#    this order. `k = 0` keeps all, `p = 1` keeps all, `temperature = 0` is greedy.
# 2. `min_p(logits, p)` returns the probabilities of logits `[V]` after dropping every token that is less than p times
#    as likely as the most likely one.
#
# Check them with `glassgpt learn 19 --check my_answer.py`.
#
# Next: `glassgpt sample RUN --explain` shows these steps for a model of yours. Then lesson 20: the learning rate.
