# %% [markdown]
# # Lesson 17: a GPT, assembled
#
# You will know at the end: how the pieces of the earlier lessons become a GPT, how to count its parameters, and which
# loss it must have before it has learned anything.
#
# Time: 8 minutes to read, about 2 seconds to compute. Before: lesson 16 (the block). The picture needs `pip install
# glassgpt[plot]`.

# %% [markdown]
# ## All the pieces
#
# *Embeddings* turn token ids into vectors. A stack of *blocks* changes these vectors. A *head* turns each vector into V
# numbers, the *logits*, one for each token of the vocabulary. The larger a logit, the more the model expects this token
# next.
#
# The pieces are from lessons 14 to 16. The names of the layers are those of the package, so that we can copy its
# weights later.

# %%
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.config import presets
from glassgpt.estimate import count_parameters
from glassgpt.learn import equal, picture, predict, seed
from glassgpt.model import GPT


class Attention(nn.Module):
    def __init__(self, C: int, H: int):
        super().__init__()
        self.H, self.qkv, self.out = H, nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.H, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))  # [B, H, T, D]
        mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        scores = (q @ k.mT / math.sqrt(C / self.H)).masked_fill(~mask, float("-inf"))  # [B, H, T, T]
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, C: int):
        super().__init__()
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, C: int, H: int):
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(C), Attention(C, H)
        self.norm_2, self.mlp = nn.LayerNorm(C), MLP(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


# %% [markdown]
# ## The model
#
# A token and its position each give a vector of C numbers. Their sum goes through the blocks, a last norm, and the
# head.
#
# The head is a matrix `[V, C]`, and so is the table of the token embeddings. GPT-2 uses one matrix for both: the head
# is *tied* to the embedding.


# %%
class MyGPT(nn.Module):
    def __init__(self, V: int, T: int, L: int, H: int, C: int):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.ModuleList(Block(C, H) for _ in range(L))
        self.final_norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, V, bias=False)
        self.head.weight = self.token_embedding.weight  # tied: one parameter with two names

    def forward(self, idx: Tensor) -> Tensor:
        x = self.token_embedding(idx) + self.position_embedding.weight[: idx.size(1)]  # [B, T, C]
        for block in self.blocks:
            x = block(x)  # [B, T, C]
        return self.head(self.final_norm(x))  # [B, T, V]


V, T, L, H, C = 65, 64, 4, 4, 64  # the preset `tiny`: 65 characters, 64 positions, 4 blocks, 4 heads, width 64
seed(0)
mine = MyGPT(V, T, L, H, C)
idx = torch.randint(V, (2, T))  # [B, T]: two texts of 64 random tokens
print("token ids", tuple(idx.shape), "-> logits", tuple(mine(idx).shape))

# %% [markdown]
# ## Is it the package's model?
#
# We copy the random weights of a model of the package into ours. `load_state_dict` fails if one name or one shape
# differs.

# %%
config = presets.get("tiny").model
theirs = GPT(config)
theirs.init_weights(seed=0)
mine.load_state_dict(theirs.state_dict())
equal(mine(idx), theirs(idx), "the logits")

# %% [markdown]
# ## Count the parameters
#
# A linear layer from n to m numbers has n m weights and m biases. A norm has C weights and C biases. Attention has
# matrices of `C x 3C` and `C x C`, the MLP of `C x 4C` and `4C x C`. So a block has about `12 C C` parameters.

# %%
guess = predict(f"Parameters of the whole model? (4 blocks, a vocabulary of {V}, {T} positions, tied head)")
by_hand = {
    "token embedding": V * C,
    "position embedding": T * C,
    "attention": L * (C * 3 * C + 3 * C + C * C + C),
    "mlp": L * (C * 4 * C + 4 * C + 4 * C * C + C),
    "norms": L * 4 * C + 2 * C,
    "head": 0,  # it is the token embedding
}
guess.measured(sum(parameter.numel() for parameter in mine.parameters()))
assert by_hand == count_parameters(config), "the package counts the same"
assert sum(by_hand.values()) == sum(parameter.numel() for parameter in mine.parameters())

# %% [markdown]
# `parameters()` gives the tied matrix once.
#
# ## The first loss
#
# A model that has learned nothing should find every token equally likely: each has the probability 1 / V. The loss is
# minus the logarithm of the probability of the right token, so it should be ln V. This cheap test finds many bugs.

# %%
targets = torch.randint(V, (2, T))


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(idx).flatten(0, 1), targets.flatten()).item()


guess = predict(f"The loss of the untrained model? (V = {V}, ln V = {math.log(V):.2f})")
first_loss = loss_of(mine)
guess.measured(first_loss)
assert abs(first_loss - math.log(V)) < 0.05 * math.log(V)

# %% [markdown]
# ## The usual bug
#
# Our class `MyGPT` sets no weights, so PyTorch does. `nn.Embedding` draws from a normal distribution with standard
# deviation 1. That is fine for an embedding, but this matrix is also the head. A logit is then a sum of 64 products of
# size 1, and has a standard deviation of about 8. The untrained model is *sure*, and wrong.

# %%
seed(0)
careless = MyGPT(V, T, L, H, C)
guess = predict("The loss of the same model with PyTorch's weights?")
careless_loss = loss_of(careless)
guess.measured(careless_loss)
assert careless_loss > 2 * math.log(V), "far above ln V"

# %% [markdown]
# Training needs about a hundred steps to repair that. GPT-2 draws its matrices with a standard deviation of 0.02
# instead.

# %%
import matplotlib.pyplot as plt

spreads, losses = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], []
for spread in spreads:
    seed(0)
    model = MyGPT(V, T, L, H, C)
    nn.init.normal_(model.token_embedding.weight, std=spread)
    losses.append(loss_of(model))
figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(spreads, losses, marker="o", label="untrained model")
axes.axhline(math.log(V), color="grey", linestyle=":", label="ln V")
axes.set(xscale="log", xlabel="standard deviation of the tied embedding", ylabel="loss (nats)", title="The first loss")
axes.legend()
picture(figure, "17-first-loss")

# %% [markdown]
# A first loss clearly *below* ln V is a bug, too: the model must see the answer (lesson 14).
#
# ## In real systems
#
# The shape has hardly changed since 2019. Llama, Mistral and Qwen replace parts: RMSNorm for LayerNorm, a gated MLP
# (SwiGLU) for GELU, rotations of q and k (RoPE) for learned positions, fewer heads for k and v. Small models often tie
# the head, large ones do not: in Qwen3-0.6B (151,936 tokens, C = 1,024) the table alone has 156 million parameters.
#
# ## Exercises
#
# 1. `parameters(V, T, L, C, tied)` returns how many parameters a GPT of this shape has; `tied` is True or False.
# 2. `loss(logits, targets)` returns the mean cross-entropy (a tensor with one number) of logits `[B, T, V]` for targets
#    `[B, T]`, without `torch.nn.functional`. It must also survive logits of 1,000.
#
# Check them with `glassgpt learn 17 --check my_answer.py`.
#
# Next: `glassgpt doctor --break tied-head-std-1` trains this lesson's bug beside the right model; `glassgpt trace`
# prints every tensor of a forward pass. Then lesson 18: train it.
