"""Diagrams of the key/value cache and of LoRA."""

import copy
import functools

import torch

from drawn import tiny
from drawn.canvas import Canvas
from glassgpt.config import ModelConfig, TuneConfig
from glassgpt.model import GPT, KVCache, meta_model
from glassgpt.model.attention import ExplicitAttention
from glassgpt.transforms.lora import LoRALinear, add_lora
from glassgpt.weights.mapping import from_hf_config

PROMPT, CHOSEN = list("To b"), list("e, o")
#: The shape of SmolLM2-135M, from its config.json.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
    "max_position_embeddings": 8192, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
RANK = 8


def cache() -> str:
    """Decoding four tokens without and with a cache, with the keys that are computed, counted in real passes."""
    without, with_cache = _count_work(False), _count_work(True)
    c = Canvas(
        "Decoding without and with a key/value cache",
        f"A prompt of {len(PROMPT)} tokens and {len(CHOSEN)} new ones. Without a cache, each pass computes the keys "
        f"and values of all tokens again: {sum(keys for keys, _ in without)} per head. With a cache, only those of new "
        f"tokens: {sum(keys for keys, _ in with_cache)}.",
    )
    y = _passes(c, 26, "Without a cache: every pass reads all tokens", without, False)
    y = _passes(c, y + 34, "With a cache: a pass reads the new tokens only", with_cache, True)
    y += 22
    c.rect(16, y, 22, 22, "activation", r=2)
    c.text(46, y + 16, "key and value computed in this pass", "small")
    c.rect(16, y + 30, 22, 22, "plain", "dashed", r=2)
    c.text(46, y + 46, "key and value read from the cache", "small")
    bytes_ = _cache_bytes()
    y = c.paragraph(16, y + 82, [
        "The query of the new token is compared with all keys,",
            "old and new: the logits are those without a cache.",
            f"The cache of preset tiny, for one full context of {tiny.CONFIG.block_size} tokens:",
        f"{bytes_:,} bytes of keys and values in float32.",
    ], "small")  # fmt: skip
    return c.svg(c.legend(y) + 6)


def _passes(c: Canvas, y: float, title: str, work: list[tuple[int, int]], cached: bool) -> float:
    """One row of cells for each pass, and the sums below; gives the y after them."""
    c.text(16, y, title, "bold")
    c.text(16, y + 26, "pass", "soft small")
    c.text(352, y + 26, "computed keys", "soft small end")
    c.text(464, y + 26, "next", "soft small end")
    y += 38
    for step, (keys, _) in enumerate(work):
        tokens = PROMPT + CHOSEN[:step]
        old = len(tokens) - keys
        c.text(16, y + 19, str(step + 1), "mono")
        shown = [token.replace(" ", "␣") for token in tokens]
        c.row(56, y, shown[:old], 34, "plain", 28, "dashed")
        c.row(56 + 34 * old, y, shown[old:], 34, "activation", 28)
        c.text(352, y + 19, str(keys), "mono end")
        c.row(430, y, [CHOSEN[step].replace(" ", "␣")], 34, "token", 28)
        y += 34
    assert cached == (work[-1][0] == 1)
    c.line((300, y), (352, y))
    c.text(352, y + 20, str(sum(keys for keys, _ in work)), "mono end bold")
    c.text(16, y + 20, f"scores that a head computes: {sum(scores for _, scores in work)}", "small")
    return y + 20


@torch.no_grad()
def _count_work(cached: bool) -> list[tuple[int, int]]:
    """The keys and the scores that a head computes in each pass, seen in a model of preset tiny."""
    model, work, seen = copy.deepcopy(tiny.model()), [], {}
    attention = model.blocks[0].attention
    attention.attend = ExplicitAttention(lambda name, tensor: seen.update({name: tensor[0, 0]}))
    attention.qkv.register_forward_hook(lambda module, args, output: seen.update(keys=output[0]))
    cache = KVCache(model.config, 1) if cached else None
    ids = torch.arange(len(PROMPT) + len(CHOSEN) - 1)[None]
    for step in range(len(CHOSEN)):
        end = len(PROMPT) + step
        begin = end - 1 if cached and step else 0
        model(ids[:, begin:end], cache=cache)
        work.append((len(seen["keys"]), seen["scores"].numel()))
    return work


def _cache_bytes() -> int:
    cache = KVCache(tiny.CONFIG, 1)
    return cache.keys.nbytes + cache.values.nbytes


def lora() -> str:
    """A frozen matrix with its pair, and how many numbers train in whole models."""
    smollm2 = from_hf_config(SMOLLM2)[0]
    name, layer = _first_pair(smollm2)
    a, b = layer.pair(name)
    out, inputs = b.shape[0], a.shape[1]
    pair = a.numel() + b.numel()
    c = Canvas(
        f"LoRA of rank {RANK} beside a frozen matrix",
        f"The matrix W of {name} in SmolLM2-135M stays as it is. Two small matrices, A [{RANK}, {inputs}] and B "
        f"[{out}, {RANK}], are trained: {pair:,} numbers instead of {out * inputs:,}.",
    )
    c.card(110, 12, 260, "activation", "input x", [f"[..., in] = [..., {inputs}]"])
    c.arrow((150, 66), (150, 92))
    c.arrow((330, 66), (330, 92))
    _matrices(c, out, inputs)
    c.plus(240, 332)
    c.arrow((107, 274), (107, 332), (228, 332))
    c.arrow((372, 274), (372, 332), (252, 332))
    c.text(118, 312, "x Wᵀ", "mono")
    c.text(362, 312, "scale · x Aᵀ Bᵀ", "mono end")
    c.arrow((240, 344), (240, 368))
    c.card(110, 368, 260, "activation", "output y", [f"[..., out] = [..., {out}]"])
    y = c.paragraph(16, 452, [
        "scale = alpha / rank. B is zero at first, so the model starts",
        "as it was. After training, W + scale · B A can be stored",
        "as one matrix: the model computes no more than before.",
    ], "small") + 14  # fmt: skip
    c.text(16, y, "Parameters", "bold")
    c.text(322, y, "trained", "soft small end")
    c.text(464, y, "frozen", "soft small end")
    rows = [
        (f"{name}: A and B", pair, out * inputs),
        ("SmolLM2-135M, all blocks", *_whole(smollm2)),
        ("preset tiny, all blocks", *_whole(tiny.CONFIG)),
    ]
    for label, trained, frozen in rows:
        y += 26
        c.text(16, y, label, "small")
        c.text(322, y, f"{trained:,}", "mono end")
        c.text(464, y, f"{frozen:,}", "mono end soft")
    return c.svg(c.legend(y + 24) + 6)


def _matrices(c: Canvas, out: int, inputs: int) -> None:
    """W at the left; A and B at the right, as narrow as they fit on paper."""
    c.rect(16, 92, 182, 182, "weight", "dashed")
    c.text(107, 170, "W, frozen", "bold middle")
    c.text(107, 194, f"[{out}, {inputs}]", "mono middle")
    c.text(107, 218, f"{out * inputs:,}", "mono middle soft")
    c.rect(282, 92, 182, 30, "weight")
    c.text(372, 112, f"A  [{RANK}, {inputs}]", "mono middle")
    c.arrow((372, 122), (372, 152))
    c.text(384, 142, f"[..., {RANK}]", "mono soft")
    c.rect(357, 152, 30, 122, "weight")
    c.text(346, 210, "B", "bold end")
    c.text(346, 232, f"[{out}, {RANK}]", "mono end")
    c.text(398, 210, "trained", "small")


@functools.cache
def _meta(config: ModelConfig) -> GPT:
    """A model with LoRA that has shapes and no memory."""
    model = meta_model(config)
    add_lora(model, TuneConfig(method="lora", lora_rank=RANK), seed=0)
    return model


def _first_pair(config: ModelConfig) -> tuple[str, LoRALinear]:
    layer = next(module for module in _meta(config).modules() if isinstance(module, LoRALinear))
    return layer.targets[0], layer


def _whole(config: ModelConfig) -> tuple[int, int]:
    """Parameters that train, and that do not."""
    parameters = list(_meta(config).parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained, sum(p.numel() for p in parameters) - trained
