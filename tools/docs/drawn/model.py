"""Diagrams of the model: the Transformer, and attention step by step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from drawn import tiny
from drawn.canvas import Canvas
from glassgpt.model.attention import ExplicitAttention

STREAM, CARD = 44, 116
CARD_WIDTH = 480 - 16 - CARD


def transformer() -> str:
    """The model of preset tiny, with the shapes of a batch and the parameters of each part."""
    block = tiny.parameters("blocks.0")
    layers, total = tiny.CONFIG.n_layer, tiny.model().num_parameters()
    c = Canvas(
        "The Transformer of preset tiny",
        f"From token ids to logits: embeddings, {layers} blocks that add to a residual stream, a last norm and a head "
        f"that shares the embedding's weights. {total:,} parameters.",
    )
    shape = tiny.shapes()
    y = c.card(CARD, 12, CARD_WIDTH, "token", "token ids: idx", [shape["idx"]])
    c.arrow((CARD + 20, y), (CARD + 20, y + 24))
    c.text(452, y + 17, "parameters", "soft small end")
    y = c.card(
        CARD, y + 24, CARD_WIDTH, "weight", "token_embedding", [_matrix("token_embedding", "V, C")],
        _count("token_embedding"),
    )  # fmt: skip
    y = c.card(
        CARD, y + 8, CARD_WIDTH, "weight", "+ position_embedding", [_matrix("position_embedding", "block_size, C")],
        _count("position_embedding"),
    )  # fmt: skip
    c.arrow((CARD, y - 24), (STREAM, y - 24), (STREAM, y + 22))
    top = y + 22
    c.text(STREAM + 18, top + 14, "the residual stream x", "bold")
    c.text(STREAM + 18, top + 34, shape["embeddings"], "mono")
    frame = top + 52
    y = _branch(c, frame + 44, [
        ("weight", "norm_1", [], _count("blocks.0.norm_1")),
        ("weight", "attention.qkv", [_matrix("blocks.0.attention.qkv", "3 C, C")], _count("blocks.0.attention.qkv")),
        ("activation", "q, k, v: each", [shape["q"]], ""),
        ("activation", "softmax(mask(q·kᵀ / √D))", [shape["scores"]], ""),
        ("activation", "weights · v", [shape["attention output"]], ""),
        ("weight", "attention.out", [_matrix("blocks.0.attention.out", "C, C")], _count("blocks.0.attention.out")),
    ])  # fmt: skip
    y = _branch(c, y + 26, [
        ("weight", "norm_2", [], _count("blocks.0.norm_2")),
        ("weight", "mlp.up", [_matrix("blocks.0.mlp.up", "I, C")], _count("blocks.0.mlp.up")),
        ("activation", "GELU", [shape["MLP hidden"]], ""),
        ("weight", "mlp.down", [_matrix("blocks.0.mlp.down", "C, I")], _count("blocks.0.mlp.down")),
    ])  # fmt: skip
    c.rect(8, frame, 464, y + 14 - frame, "plain", "none dashed", r=10)
    c.text(STREAM + 24, frame + 24, f"{layers} blocks, one after another", "bold")
    c.text(460, frame + 24, f"{block:,} each", "mono end")
    end = y + 62
    c.parts.insert(0, f'<path d="M{STREAM} {top}L{STREAM} {end}" class="activation-edge thick"/>')
    c.arrow((STREAM, end), (CARD, end))
    y = c.card(CARD, end - 17, CARD_WIDTH, "weight", "final_norm", [], _count("final_norm"))
    c.arrow((CARD + 20, y), (CARD + 20, y + 18))
    y = c.card(
        CARD, y + 18, CARD_WIDTH, "weight", "head = token_embedding", [_matrix("token_embedding", "V, C")], "tied"
    )
    c.arrow((CARD + 20, y), (CARD + 20, y + 18))
    y = c.card(CARD, y + 18, CARD_WIDTH, "activation", "logits", [shape["logits"]])
    outside = [tiny.parameters(part) for part in ("token_embedding", "position_embedding", "final_norm")]
    assert sum(outside) + layers * block == total
    c.text(
        16,
        y + 32,
        f"{outside[0]:,} + {outside[1]:,} + {layers} · {block:,} + {outside[2]} = {total:,} parameters",
        "small",
    )
    y = c.paragraph(16, y + 56, [
        "B batch, T tokens, C = n_embd, H = n_head, D = head_dim,", "I = intermediate_size, V = vocab_size",
    ], "soft small")  # fmt: skip
    return c.svg(c.legend(y) + 6)


def _branch(c: Canvas, y: float, cards: list[tuple[str, str, list[str], str]]) -> float:
    """Cards below each other, from the stream and back to it; gives the y of the addition."""
    c.arrow((STREAM, y + 17), (CARD, y + 17))
    for i, (kind, title, lines, right) in enumerate(cards):
        if i:
            c.arrow((CARD + 20, y), (CARD + 20, y + 14))
            y += 14
        y = c.card(CARD, y, CARD_WIDTH, kind, title, lines, right)
    c.arrow((CARD + 20, y), (CARD + 20, y + 18), (STREAM + 12, y + 18))
    c.plus(STREAM, y + 18)
    return y + 32


def _matrix(part: str, symbols: str) -> str:
    return f"weight [{symbols}] = {list(tiny.model().get_submodule(part).weight.shape)}"


def _count(part: str) -> str:
    return f"{tiny.parameters(part):,}"


TOKENS = ["the", "cat", "sat", "down"]
SEED = 654  # of the example; chosen so that rounded numbers add up, and the mask hides the largest score of ROW
ROW = 2  # the query whose numbers are written out
LEFT, HIGH = 66, 26  # the left edge of a matrix, and the height of its rows


def attention() -> str:
    """One head over four tokens, by the program's own explicit attention."""
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (torch.randint(-15, 16, (4, 4), generator=generator).double() / 10 for _ in range(3))  # [T, D]
    seen: dict[str, Tensor] = {}
    output, _ = ExplicitAttention(lambda name, tensor: seen.update({name: tensor[0, 0]}))(
        *(tensor[None, None] for tensor in (q, k, v)), None
    )
    c = Canvas(
        "Attention, step by step",
        "One head over four tokens: scores of queries and keys, divided by the root of the width, masked, softmax, and "
        "the average of the values by these weights. The numbers of the third token are written out.",
    )
    c.text(16, 24, "The inputs of a head: T = 4 tokens, D = 4", "bold")
    _numbers(c, LEFT, 70, q, 46, "q", TOKENS, framed=True)
    _numbers(c, LEFT + 212, 70, k, 46, "k")
    y = _numbers(c, LEFT, 208, v, 46, "v", TOKENS)
    c.paragraph(
        278, y - 82, ["Query, key and value of a", "token are its vector times", "three learned matrices."], "small"
    )
    scaled, weights = seen["scaled scores"][ROW].tolist(), seen["attention weights"][ROW].tolist()
    score = _fixed(seen["scores"][ROW, 0].item(), 2)
    powers = [f"e^{_plain(value, 2)}" for value in scaled[: ROW + 1]]
    y += 40
    for title, name, formula in (
        ("1  scores = q · kᵀ", "scores", [_products(q[ROW], k[0], 1), f"= {score}    (sat · the)"]),
        ("2  divided by √D = 2", "scaled scores", [f"{score} / 2 = {_fixed(scaled[0], 2)}"]),
        ("3  mask: no token looks at a later one", "masked scores", ["later tokens: -∞"]),
        ("4  softmax: each row sums to 1", "attention weights", [
            f"{powers[0]} / ({' + '.join(powers)})", f"= {_fixed(weights[0], 2)}",
        ]),
    ):  # fmt: skip
        c.text(16, y, title, "bold")
        c.text(464, y, "[T, T]", "mono end soft")
        y = _numbers(
            c, LEFT, y + 40, seen[name], 66, "", TOKENS, TOKENS, framed=True, weights=name == "attention weights"
        )
        y = c.paragraph(16, y + 24, formula, "mono") + 18
    c.text(16, y, "5  output = weights · v", "bold")
    c.text(464, y, "[T, D]", "mono end soft")
    y = _numbers(c, LEFT, y + 18, output[0, 0], 66, "", TOKENS, framed=True, digits=2)
    mixed = _products(seen["attention weights"][ROW, : ROW + 1], v[: ROW + 1, 0], 2)
    c.text(16, y + 24, f"{mixed} = {_fixed(output[0, 0, ROW, 0].item(), 2)}", "mono")
    c.text(16, y + 50, "The framed row is the third token, sat.", "soft small")
    return c.svg(c.legend(y + 64) + 6)


def _numbers(
    c: Canvas, x: float, y: float, values: Tensor, width: float, name: str, rows: Sequence[str] = (),
    columns: Sequence[str] = (), *, framed: bool = False, weights: bool = False, digits: int = 0,
) -> float:  # fmt: skip
    """A matrix with its labels; attention weights are the darker the larger. Gives its lower edge."""
    for i, column in enumerate(columns):
        c.text(x + (i + 0.5) * width, y - 8, column, "mono middle")
    if name:
        c.text(x, y - 8, name, "bold")
        c.text(x + 4 * width, y - 8, "[T, D]", "mono end soft")
    digits = digits or (2 if columns else 1)
    for i, row in enumerate(values.tolist()):
        if rows:
            c.text(x - 8, y + HIGH * i + 18, rows[i], "mono end")
        for j, value in enumerate(row):
            masked = value == float("-inf") or (weights and j > i)
            kind = "plain" if masked else "activation"
            c.rect(x + width * j, y + HIGH * i, width, HIGH, kind, "dashed" if masked else "", r=2)
            if weights:
                c.shade(x + width * j, y + HIGH * i, width, HIGH, kind, 0.4 * value)
            text = "-∞" if value == float("-inf") else _fixed(value, digits)
            c.text(x + width * (j + 0.5), y + HIGH * i + 18, text, "mono middle")
    if framed:
        c.marked(x - 2, y + HIGH * ROW - 2, 4 * width + 4, HIGH + 4)
    return y + HIGH * len(values)


def _products(a: Tensor, b: Tensor, digits: int) -> str:
    """The sum of products of two rows: 0.8·1.9 + (-0.5)·1.7."""
    return " + ".join(f"{_plain(x, digits)}·{_plain(y)}" for x, y in zip(a.tolist(), b.tolist(), strict=True))


def _plain(value: float, digits: int = 1) -> str:
    return f"({_fixed(value, digits)})" if value < 0 else _fixed(value, digits)


def _fixed(value: float, digits: int) -> str:
    """Round halves away from zero, on every machine."""
    return f"{value + math.copysign(1e-6, value):.{digits}f}"
