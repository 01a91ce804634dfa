"""Diagrams of the model: the Transformer, and attention step by step."""

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
    c.arrow((CARD + 20, y), (CARD + 20, y + 20))
    y = c.card(
        CARD, y + 20, CARD_WIDTH, "weight", "token_embedding", [_matrix("token_embedding", "V, C")],
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
    y = c.card(CARD, y + 18, CARD_WIDTH, "weight", "head = token_embedding", [_matrix("token_embedding", "V, C")], "tied")
    c.arrow((CARD + 20, y), (CARD + 20, y + 18))
    y = c.card(CARD, y + 18, CARD_WIDTH, "activation", "logits", [shape["logits"]])
    outside = [tiny.parameters(part) for part in ("token_embedding", "position_embedding", "final_norm")]
    assert sum(outside) + layers * block == total
    c.text(16, y + 32, f"{outside[0]:,} + {outside[1]:,} + {layers} · {block:,} + {outside[2]} = {total:,} parameters", "small")
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
ROW = 2  # the query whose numbers are written out


def attention() -> str:
    """One head over four tokens, by the program's own explicit attention."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randint(-20, 21, (4, 4), generator=generator) / 10 for _ in range(3))  # [T, D]
    seen: dict[str, Tensor] = {}
    output, _ = ExplicitAttention(lambda name, tensor: seen.update({name: tensor[0, 0]}))(
        *(tensor[None, None] for tensor in (q, k, v)), None
    )
    c = Canvas(
        "Attention, step by step",
        "One head over four tokens: scores of queries and keys, divided by the root of the width, masked, softmax, and "
        "the average of the values by these weights. The numbers of the third token are written out.",
    )
    y = 24.0
    c.text(16, y, "The inputs of one head: T = 4 tokens, D = 4 numbers each", "bold")
    for i, (name, values) in enumerate((("q", q), ("k", k))):
        _numbers(c, 66 + 212 * i, y + 46, values, 1, 46, "activation", TOKENS if not i else [], name, i == 0)
    y = _numbers(c, 66, y + 184, v, 1, 46, "activation", TOKENS, "v", False)
    c.paragraph(278, y - 86, ["Each token has a query,", "a key and a value:", "its vector times", "three matrices."], "small")
    y += 36
    products = " + ".join(f"{_plain(a)}·{_plain(b)}" for a, b in zip(q[ROW].tolist(), k[0].tolist(), strict=True))
    scaled, weights = seen["scaled scores"][ROW].tolist(), seen["attention weights"][ROW].tolist()
    steps = [
        ("1  scores = q · kᵀ", "scores", f"{products} = {seen['scores'][ROW, 0]:.2f}"),
        ("2  divided by √D = 2", "scaled scores", f"{seen['scores'][ROW, 0]:.2f} / 2 = {scaled[0]:.2f}"),
        ("3  masked: no token sees a later one", "masked scores", "a later token has -∞"),
        ("4  softmax: each row sums to 1", "attention weights", "e^" + f"{scaled[0]:.2f} / (e^{scaled[0]:.2f} + e^{scaled[1]:.2f} + e^{scaled[2]:.2f}) = {weights[0]:.2f}"),
    ]  # fmt: skip
    for title, name, formula in steps:
        y = _step(c, y, title, name, seen[name], formula)
    c.text(16, y, "5  output = weights · v", "bold")
    bottom = _numbers(c, 66, y + 20, output[0, 0], 2, 66, "activation", TOKENS, "", True, shade=False)
    mixed = " + ".join(f"{w:.2f}·{_plain(x)}" for w, x in zip(weights[: ROW + 1], v[: ROW + 1, 0].tolist(), strict=True))
    c.text(16, bottom + 26, f"{mixed} = {output[0, 0, ROW, 0]:.2f}", "mono small")
    y = c.paragraph(16, bottom + 54, ["The framed row is the third token. Its numbers are written out."], "soft small")
    return c.svg(c.legend(y - 4) + 6)


def _step(c: Canvas, y: float, title: str, name: str, values: Tensor, formula: str) -> float:
    c.text(16, y, title, "bold")
    c.text(464, y, "[T, T]", "mono end soft")
    weights = name == "attention weights"
    bottom = _numbers(c, 66, y + 40, values, 2, 66, "activation", TOKENS, "keys", True, TOKENS, shade=weights)
    c.text(16, bottom + 26, formula, "mono small")
    return bottom + 64


def _numbers(
    c: Canvas, x: float, y: float, values: Tensor, digits: int, width: float, kind: str, labels: Sequence[str],
    name: str, framed: bool, columns: Sequence[str] = (), shade: bool = False,
) -> float:  # fmt: skip
    """A matrix with labels; gives its lower edge."""
    for i, column in enumerate(columns):
        c.text(x + (i + 0.5) * width, y - 8, column, "mono middle")
    if name and not columns:
        c.text(x, y - 8, name, "bold")
        c.text(x + 4 * width, y - 8, "[T, D]", "mono end soft")
    rows = [["-∞" if value == float("-inf") else f"{value:.{digits}f}" for value in row] for row in values.tolist()]
    bottom = c.matrix(x, y, rows, width, kind, labels)
    if shade:
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                c.shade(x + j * width, y + 26 * i, width, 26, kind, 0.45 * value)
    if framed:
        c.parts.append(f'<rect x="{x - 2:g}" y="{y + 26 * ROW - 2:g}" width="{4 * width + 4:g}" height="30" rx="3" class="mark"/>')
    return bottom


def _plain(value: float) -> str:
    return f"({value:.1f})" if value < 0 else f"{value:.1f}"
