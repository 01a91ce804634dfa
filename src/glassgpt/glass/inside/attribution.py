"""Direct logit attribution: how much each part of a model adds to a logit (Elhage et al. 2021, "direct path").

The residual stream is a sum: token and position embedding, each head, each MLP, and the biases of both. The head of the
model reads it through the final norm. With the norm's scale held at its value in this pass, the logit is linear in that
sum, so each part adds a number of its own, and these numbers sum to the logit.

It is the direct path only: a head that serves another head, or moves the norm's scale, gets nothing for that. A part
that adds much is not thereby necessary: later parts may make up for its loss, which ``ablate`` measures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassgpt.errors import ConfigError, GenerationError
from glassgpt.files import is_unicode
from glassgpt.glass.inside.prompt import Prompt, read_prompt, token_text
from glassgpt.model import GPT, Block
from glassgpt.model.gpt import Norm
from glassgpt.recording import Recording, record
from glassgpt.tokenizer import Tokenizer

#: A remainder above this share of the largest of the logit and its parts is an error.
TOLERANCE = 1e-4
_NAMES = ("token embedding", "position embedding", "concatenated heads", "mlp output", "residual after mlp")
#: Tokens of a text that is not one token, as a message lists them at most.
_LISTED = 8


@dataclass(frozen=True)
class Part:
    """A part of the model and the number that it adds; kind is embedding, head, mlp or bias."""

    name: str
    kind: str
    value: float


@dataclass(frozen=True)
class Attribution:
    """What each part of a model adds to a logit, or to the difference of two, at one position.

    Attributes:
        prompt: the tokens that the model reads.
        position: the logit is of the token after this one.
        token: id of the token T.
        instead: id of the token U; None: the logit of T alone.
        texts: T, and U if there is one, as printable texts.
        value: logit(T), or logit(T) - logit(U), as the model computes it.
        probability: of T at that position.
        rank: of T at that position; 1 is the most likely.
        token_embedding, position_embedding: None without learned positions.
        heads: ``[L, H]``, without the bias of the output projection.
        mlps: ``[L]``, without the bias of the last matrix.
        attention_biases, mlp_biases: ``[L]``; None without such biases.
        final_norm_bias: None without one.
    """

    prompt: Prompt
    position: int
    token: int
    instead: int | None
    texts: list[str]
    value: float
    probability: float
    rank: int
    token_embedding: float
    position_embedding: float | None
    heads: np.ndarray
    mlps: np.ndarray
    attention_biases: np.ndarray | None
    mlp_biases: np.ndarray | None
    final_norm_bias: float | None

    def parts(self) -> list[Part]:
        """Return every part, the largest (by absolute value) first."""
        return sorted(self._parts(), key=lambda part: -abs(part.value))

    def _parts(self) -> Iterator[Part]:
        yield Part("token embedding", "embedding", self.token_embedding)
        if self.position_embedding is not None:
            yield Part("position embedding", "embedding", self.position_embedding)
        for layer, values in enumerate(self.heads.tolist()):
            for head, value in enumerate(values):
                yield Part(f"layer {layer} head {head}", "head", value)
            yield Part(f"layer {layer} MLP", "mlp", float(self.mlps[layer]))
            for name, biases in (("attention", self.attention_biases), ("MLP", self.mlp_biases)):
                if biases is not None:
                    yield Part(f"layer {layer} {name} bias", "bias", float(biases[layer]))
        if self.final_norm_bias is not None:
            yield Part("final norm bias", "bias", self.final_norm_bias)

    def totals(self) -> dict[str, float]:
        """Return the sum of the parts of each kind that the model has."""
        kinds = dict.fromkeys(part.kind for part in self._parts())
        return {kind: sum(part.value for part in self._parts() if part.kind == kind) for kind in kinds}

    @property
    def remainder(self) -> float:
        """The value less the sum of all parts: rounding, if all is well."""
        return self.value - sum(part.value for part in self._parts())

    @property
    def relative_remainder(self) -> float:
        """The remainder as a share of the largest of the value and its parts.

        The value alone would be a poor measure: large parts can cancel to almost nothing, and their rounding stays.
        """
        largest = max(abs(self.value), *(abs(part.value) for part in self._parts()))
        return abs(self.remainder) / largest if largest else 0.0

    @property
    def explained(self) -> bool:
        """Whether the parts sum to the value: the relative remainder is at most 1e-4."""
        return self.relative_remainder <= TOLERANCE


@torch.no_grad()
def why(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    token: str | None = None,
    instead: str | None = None,
    position: int = -1,
) -> Attribution:
    """Return how much each head, each MLP, the embeddings and the biases add to a logit.

    The parts are computed in float64 from the tensors of one pass of the model in its own dtype.

    Args:
        model: in float32, so that the parts sum to the logit (see :attr:`Attribution.explained`).
        tokenizer: its tokenizer.
        prompt: the text that the model reads.
        token: T, a text that is one token, or ``id:7``; by default the token that the model predicts.
        instead: U, in the same way; then the parts add to logit(T) - logit(U).
        position: of the token that T comes after; negative ones count from the end.

    Raises:
        ConfigError: if a text is not one token, or there is no such token or position.
        GlassError: if the prompt cannot be read, or the logits are not finite.
    """
    read = read_prompt(model, tokenizer, prompt)
    place = find_position(len(read.ids), position)
    V = model.config.vocab_size
    wanted = None if token is None else find_token(tokenizer, V, token, "--token")
    other = None if instead is None else find_token(tokenizer, V, instead, "--instead")
    recording = record(model, read.idx(model), _NAMES, attention="fused")
    logits = recording.logits[0, place].double()  # [V]
    if not logits.isfinite().all():
        raise GenerationError("the logits are not all finite numbers; the model's weights are damaged")
    chosen = int(logits.argmax()) if wanted is None else wanted
    if chosen == other:
        raise ConfigError(f"--instead is the same token as --token: {token_text(tokenizer, chosen)!r} (id {chosen})")
    head = model.head.weight
    row = head[chosen].double() if other is None else head[chosen].double() - head[other].double()  # [C]
    return Attribution(
        prompt=read,
        position=place,
        token=chosen,
        instead=other,
        texts=[token_text(tokenizer, i) for i in (chosen, other) if i is not None],
        value=float(logits[chosen] if other is None else logits[chosen] - logits[other]),
        probability=float(logits.softmax(-1)[chosen]),
        rank=1 + int((logits > logits[chosen]).sum()),
        **_split(model, recording, place, row),
    )


def _split(model: GPT, recording: Recording, place: int, row: Tensor) -> dict[str, Any]:
    """Return the fields of the parts: what each adds along ``row [C]`` of the head."""
    config, norm = model.config, model.final_norm
    H, D = config.n_head, config.head_dim
    stream = recording.get("residual after mlp", config.n_layer - 1)[0, place].double()  # [C]
    direction = linear_direction(norm, stream, row)  # [C]
    heads, mlps, attention_biases, mlp_biases = [], [], [], []
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        out, down = block.attention.out, block.mlp.down
        mixed = recording.get("concatenated heads", layer)[0, place].double()  # [H D]
        heads.append((mixed * (direction @ out.weight.double())).view(H, D).sum(dim=-1))
        mlp = recording.get("mlp output", layer)[0, place].double() @ direction
        if out.bias is not None:
            attention_biases.append(out.bias.double() @ direction)
        if down.bias is not None:
            mlp_biases.append(bias := down.bias.double() @ direction)
            mlp = mlp - bias
        mlps.append(mlp)
    learned = model.position_embedding is not None
    position = recording.get("position embedding")[place].double() @ direction if learned else None
    return {
        "token_embedding": float(recording.get("token embedding")[0, place].double() @ direction),
        "position_embedding": None if position is None else float(position),
        "heads": torch.stack(heads).cpu().numpy(),
        "mlps": torch.stack(mlps).cpu().numpy(),
        "attention_biases": torch.stack(attention_biases).cpu().numpy() if attention_biases else None,
        "mlp_biases": torch.stack(mlp_biases).cpu().numpy() if mlp_biases else None,
        "final_norm_bias": None if norm.bias is None else float(norm.bias.double() @ row),
    }


def linear_direction(norm: Norm, stream: Tensor, row: Tensor) -> Tensor:
    """Return the vector ``[C]`` whose product with the stream is ``row . norm(stream)``, without the norm's bias.

    The norm's scale is held at its value for ``stream [C]``; the centring of LayerNorm is linear and is part of it.
    """
    direction = row * norm.weight.double()
    if norm.kind == "layernorm":
        variance = stream.var(correction=0)
        direction = direction - direction.mean()
    else:
        variance = stream.square().mean()
    return direction / (variance + norm.eps).sqrt()


def find_position(T: int, position: int) -> int:
    """Return a position of a prompt of T tokens, counted from 0; negative ones count from the end.

    Raises:
        ConfigError: if there is none.
    """
    if not -T <= position < T:
        raise ConfigError(f"--position {position}: the prompt has the positions 0 to {T - 1}; -1 is the last one")
    return position % T


def find_token(tokenizer: Tokenizer, vocab_size: int, text: str, option: str) -> int:
    """Return the id of the token that a text is, or of ``id:7``. Special tokens have their names.

    Raises:
        ConfigError: if there is no such id, or if the text is not exactly one token.
        TokenizerError: if the text has characters that the tokenizer does not know.
    """
    if not is_unicode(text):
        raise ConfigError(f"{option} is not valid Unicode")
    if text.startswith("id:") and text != "id:":
        number = text.removeprefix("id:")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and int(number) < vocab_size):
            raise ConfigError(f"{option} {text}: the model's tokens are id:0 to id:{vocab_size - 1}")
        return int(number)
    ids = tokenizer.encode(text, allow_special=True)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if len(ids) == 1 and ids[0] < vocab_size and (ids[0] != unknown or text in tokenizer.special_ids()):
        return ids[0]
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    listed = ", ".join(f"'{token_text(tokenizer, i)}' id:{i}" for i in ids[:_LISTED])
    more = f" and {len(ids) - _LISTED:,} more" if len(ids) > _LISTED else ""
    what = f"is {len(ids):,} tokens ({listed}{more})" if ids else "has no token"
    what = f"is not one of the model's tokens ({listed})" if len(ids) == 1 else what
    message = f"{option} {shown!r} {what}; give a text that is one token, or its id as id:7"
    if len(ids) > 1 and not text.startswith(" ") and len(tokenizer.encode(f" {text}", allow_special=True)) == 1:
        message += f". With a space before it, it is one token: {f' {text}'!r}"
    raise ConfigError(message)
