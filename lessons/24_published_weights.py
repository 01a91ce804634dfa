# %% [markdown]
# # Lesson 24: published weights into your own model
#
# You will know at the end: what a file of weights contains, how its names and shapes become those of your model, why
# GPT-2's matrices have to be transposed, and how to prove that nothing went wrong.
#
# Time: 10 minutes to read, about 6 seconds to compute. Before: lesson 17 (the whole GPT). The lesson compares with
# `transformers` (`pip install transformers`), or without it with this package.

# %% [markdown]
# ## A file of weights is a dictionary
#
# A published model is a dictionary of names and tensors, without the program that trained it. Your model can take them
# if three things fit: the *names*, the *shapes*, and *what is computed*.
#
# Here is the GPT of lesson 17 with names of our own.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt import assets
from glassgpt.config import ModelConfig
from glassgpt.learn import equal, predict, seed, short
from glassgpt.model import GPT
from glassgpt.weights.families import FAMILIES
from glassgpt.weights.mapping import placements, to_published

try:
    import transformers

    transformers.logging.set_verbosity_error()
except ImportError:
    transformers = None
    print("transformers is not installed: pip install transformers. The package takes its place below.")


class Block(nn.Module):
    def __init__(self, C: int, heads: int):
        super().__init__()
        self.heads, self.norm_1, self.norm_2 = heads, nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class MyGPT(nn.Module):
    def __init__(self, V: int, T: int, layers: int, heads: int, C: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.ModuleList(Block(C, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(C)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tokens(idx) + self.positions.weight[: idx.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T  # the head is the embedding: they are tied


# %% [markdown]
# ## GPT-2
#
# The real GPT-2 has 124 million weights. If it is not on this machine, we make a small GPT-2 with random weights.
# Names, orientation and function are the same.

# %%
seed(0)
sizes = {"V": 120, "T": 32, "layers": 2, "heads": 4, "C": 48}
oracle = None
if transformers is not None:
    try:
        oracle = transformers.GPT2LMHeadModel.from_pretrained("gpt2", local_files_only=True).eval()
        sizes = {"V": 50257, "T": 1024, "layers": 12, "heads": 12, "C": 768}
        print("This is the published GPT-2.")
    except Exception:
        print("GPT-2 is not on this machine: this is a small GPT-2 with random weights.")
        config = transformers.GPT2Config(
            vocab_size=120, n_positions=32, n_layer=2, n_head=4, n_embd=48,
            initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        oracle = transformers.GPT2LMHeadModel(config).eval()
        for parameter in oracle.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)  # biases of 0 would hide mistakes
    published = oracle.state_dict()
else:
    print("This is a small GPT of the package with random weights, under GPT-2's names.")
    own = ModelConfig(vocab_size=120, block_size=32, n_layer=2, n_head=4, n_embd=48)
    oracle = GPT(own).eval()
    oracle.init_weights(seed=0)
    published = to_published(oracle.state_dict(), own, FAMILIES["gpt2"])

mine = MyGPT(**sizes).eval()

# %% [markdown]
# ## The table
#
# Our names, and the published ones; `{i}` is the number of the block. The third column says whether the matrix must be
# transposed.

# %%
TABLE = (
    ("tokens.weight", "transformer.wte.weight", False),
    ("positions.weight", "transformer.wpe.weight", False),
    ("blocks.{i}.norm_1", "transformer.h.{i}.ln_1", False),
    ("blocks.{i}.qkv", "transformer.h.{i}.attn.c_attn", True),
    ("blocks.{i}.out", "transformer.h.{i}.attn.c_proj", True),
    ("blocks.{i}.norm_2", "transformer.h.{i}.ln_2", False),
    ("blocks.{i}.up", "transformer.h.{i}.mlp.c_fc", True),
    ("blocks.{i}.down", "transformer.h.{i}.mlp.c_proj", True),
    ("norm", "transformer.ln_f", False),
)


def rows(layers: int) -> list[tuple[str, str, bool]]:
    """The table for all blocks."""
    found = []
    for ours, theirs, transpose in TABLE:
        for i in range(layers) if "{i}" in ours else (0,):
            one, other = ours.format(i=i), theirs.format(i=i)
            if one.endswith(".weight"):
                found.append((one, other, transpose))
            else:  # a bias is a vector: there is nothing to transpose
                found += [(f"{one}.weight", f"{other}.weight", transpose), (f"{one}.bias", f"{other}.bias", False)]
    return found


guess = predict("nn.Linear(C, 3 * C) computes x @ weight.T. What is the shape of its weight, for C = 48?")
guess.measured(list(nn.Linear(48, 144).weight.shape))

shapes = mine.state_dict()
print(f"{'ours':<24}{'shape':<15}{'published':<36}{'shape':<15}transpose")
for ours, theirs, transpose in rows(1):
    print(f"{ours:<24}{list(shapes[ours].shape)!s:<15}{theirs:<36}{list(published[theirs].shape)!s:<15}"
          f"{'yes' if transpose else ''}")  # fmt: skip

# %% [markdown]
# GPT-2 was written in TensorFlow. Its layers compute `x @ W`, where W is `[in, out]`. `nn.Linear` keeps `[out, in]`. So
# four matrices of each block must be transposed.
#
# Now copy. `load_state_dict` refuses missing names, names that are left over, and other shapes.


# %%
def convert(published: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    return {ours: published[theirs].T if transpose else published[theirs] for ours, theirs, transpose in rows(layers)}


mine.load_state_dict(convert(published, sizes["layers"]))
used = {theirs for _, theirs, _ in rows(sizes["layers"])}
print("left over:", [name for name in published if name not in used], "(tied with the embedding)")

idx = torch.randint(sizes["V"], (2, 16))
with torch.no_grad():
    theirs = oracle(idx) if transformers is None else oracle(idx).logits
    equal(mine(idx), theirs, "my logits and theirs", tolerance=1e-4)

# %% [markdown]
# Equal logits are the only proof. Equal shapes prove little.
#
# ## The usual bug
#
# `attn.c_proj` is a *square* matrix, `[C, C]`. If you forget its transpose, the shape still fits.

# %%
guess = predict("c_proj of every block is not transposed. How many % of the largest logit are the logits off?")
wrong = {name: w.T if ".out.w" in name else w for name, w in convert(published, sizes["layers"]).items()}
mine.load_state_dict(wrong)
with torch.no_grad():
    difference = float((mine(idx) - theirs).abs().max() / theirs.abs().max())
guess.measured(f"{100 * difference:.0f} %, and load_state_dict said nothing")
assert difference > 0.01

# %% [markdown]
# Other bugs that load without an error: the exact GELU in place of the tanh form, an epsilon of 1e-6 in place of 1e-5,
# q, k, v in another order.
#
# ## SmolLM2: another family
#
# SmolLM2 is a Llama. Its names differ, and its function: RMSNorm in place of LayerNorm, rotary positions, an MLP with a
# gate, no biases, and fewer key/value heads than query heads. Its matrices are stored as in `nn.Linear`. We need no
# classes: this forward pass reads the dictionary.


# %%
def llama(w: dict[str, Tensor], c: ModelConfig, idx: Tensor) -> Tensor:
    """Logits of a Llama from its published weights."""
    (B, T), D = idx.shape, c.head_dim

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + c.norm_eps).rsqrt() * w[name]

    angles = torch.outer(torch.arange(T), c.rope_theta ** -(torch.arange(0, D, 2) / D)).repeat(1, 2)  # [T, D]

    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-b, a], dim=-1) * angles.sin()

    x = w["model.embed_tokens.weight"][idx]
    for i in range(c.n_layer):
        at = f"model.layers.{i}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = ((h @ w[f"{at}self_attn.{n}_proj.weight"].T).view(B, T, -1, D).transpose(1, 2) for n in "qkv")
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).reshape(B, T, -1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


tokenizer, name = None, "smollm2-135m-instruct"
if assets.available(name) and short(full=1, quick=0):
    import glassgpt

    model, tokenizer = glassgpt.load(name, device="cpu", keep_quantized=False)
else:
    print(f"{name} is not here: a small Llama with random weights takes its place. `glassgpt pull {name}` fetches it.")
    model = GPT(ModelConfig(
        vocab_size=120, block_size=64, n_layer=2, n_head=6, n_kv_head=2, n_embd=48, norm="rmsnorm", mlp="swiglu",
        position="rope", norm_bias=False, qkv_bias=False, attention_out_bias=False, mlp_bias=False,
    )).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data = (parameter.dim() == 1) + 0.1 * torch.randn(parameter.shape)
weights = to_published(model.state_dict(), model.config, FAMILIES["llama"])  # the names of the published file
for place in placements(model.config, FAMILIES["llama"]):
    if ".0." in place.published:
        print(f"{place.published:<48}{list(place.published_shape)!s:<12} -> {place.ours:<30}{place.operation}")

# %%
prompt = "The capital of France is"
ids = torch.tensor([tokenizer.encode(prompt)]) if tokenizer else torch.randint(120, (1, 12))
with torch.no_grad():
    logits = llama(weights, model.config, ids)
    equal(logits, model(ids), "my Llama and the package's", tolerance=1e-4)
if tokenizer:
    guess = predict(f"What does the model think comes after {prompt!r}?")
    best = logits[0, -1].softmax(-1).topk(3)
    guess.measured([(tokenizer.decode([int(i)]), round(float(p), 3)) for p, i in zip(*best, strict=True)])

# %% [markdown]
# ## In real systems
#
# `transformers` has such a program for each of hundreds of families; this package has a table per family in
# `weights/families/`. Weights come as `safetensors`: names, shapes and bytes. (The older `.bin` files are pickles,
# which can run code when they are opened.) llama.cpp's GGUF has names of its own and, for Llama, *reorders the rows* of
# q and k.
#
# ## Exercises
#
# 1. `convert(published, n_layer)` maps a GPT-2 dictionary to the names of this package's `GPT`
#    (`glassgpt pull gpt2 --explain` lists them; or print `GPT(config).state_dict().keys()`). The result must load.
# 2. `split_qkv(weight, n_head, n_kv_head, head_dim)` cuts a fused matrix `[rows, C]`, as this package has it, into
#    Llama's q, k and v.
#
# Check them with `glassgpt learn 24 --check my_answer.py`.
#
# Next: `glassgpt sample smollm2-135m-instruct --chat --prompt "Why is the sky blue?"`, and with a network
# `glassgpt pull gpt2 --explain`. Then lesson 25: the key/value cache.
