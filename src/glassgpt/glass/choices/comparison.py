"""Several ways to choose the next token, on the same logits: their probabilities, and what each writes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glassgpt.errors import ConfigError
from glassgpt.glass.inside.prompt import token_text
from glassgpt.glass.pictures import drawable, label_tokens, new_figure, save_figure
from glassgpt.inference.decode import Request, generate_text
from glassgpt.inference.stream import encode_prompt
from glassgpt.model import GPT
from glassgpt.sampling import SamplingConfig, stages
from glassgpt.tokenizer import Tokenizer

_DROPPED, _KEPT = "#9aa1ab", "#3465b5"


@dataclass(frozen=True)
class Comparison:
    """S settings on the logits after one prompt, and N continuations with each.

    Attributes:
        settings: by name.
        ids: the R most likely tokens, before any setting but the repetition penalty.
        tokens: them as printable text.
        probabilities: of these tokens, 0 where one is dropped: ``[R, S]``.
        kept: how many tokens each setting keeps, ``[S]``.
        continuations: the texts, ``[S][N]``; text n of every setting is drawn with the same random numbers.
    """

    settings: dict[str, SamplingConfig]
    ids: list[int]
    tokens: list[str]
    probabilities: np.ndarray
    kept: list[int]
    continuations: list[list[str]]


def usual_settings(
    *, top_k: int = 40, top_p: float = 0.9, min_p: float = 0.0, repetition_penalty: float = 1.0
) -> dict[str, SamplingConfig]:
    """Return greedy, three temperatures, and top-k and top-p (min-p if it is above 0) at temperature 1, by name."""
    settings: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0}, "T=0.5": {"temperature": 0.5}, "T=1": {"temperature": 1.0},
        "T=1.5": {"temperature": 1.5}, f"top-k {top_k}": {"top_k": top_k}, f"top-p {top_p:g}": {"top_p": top_p},
    }  # fmt: skip
    if min_p > 0:
        settings[f"min-p {min_p:g}"] = {"min_p": min_p}
    return {
        name: dataclasses.replace(SamplingConfig(repetition_penalty=repetition_penalty), **values)
        for name, values in settings.items()
    }


def compare_settings(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: Mapping[str, SamplingConfig] | None = None,
    *,
    candidates: int = 10,
    num_samples: int = 1,
    max_new_tokens: int = 40,
    **others: Any,
) -> Comparison:
    """Compare settings on the logits after a prompt, and continue it with each; all rows are one batch.

    Args:
        model: any model.
        tokenizer: its tokenizer.
        prompt: the text to continue, or its token ids.
        settings: by name; by default :func:`usual_settings`.
        candidates: rows of the table at most, R.
        num_samples: continuations with each setting, N.
        max_new_tokens: tokens of a continuation at most.
        others: ``seed``, ``stop``, ``min_new_tokens``, ``end_token_ids``: as :class:`Request`.

    Raises:
        TokenizerError: if the prompt has characters that the tokenizer does not know.
        ConfigError: if no token is to be generated, or an end token is not in the vocabulary.
        GenerationError: if the model does not have a token of the prompt, or its logits are not numbers.
    """
    ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt
    if max_new_tokens < 1 or num_samples < 1:
        raise ConfigError("max_new_tokens and num_samples: a comparison needs at least 1")
    chosen = dict(usual_settings() if settings is None else settings)
    requests = [
        Request(ids, max_new_tokens, sampling, sample_index=n, **others)
        for sampling in chosen.values()
        for n in range(num_samples)
    ]
    generation = generate_text(model, tokenizer, requests)
    first, streamers = next(generation)
    for _ in generation:  # the streamers collect the texts
        pass
    logits = first.logits[0]  # after equal prompts, of all rows
    penalty = next(iter(chosen.values())).repetition_penalty
    order = stages(logits, SamplingConfig(repetition_penalty=penalty), ids)[0]
    best = order.sort(descending=True, stable=True).indices[: min(candidates, tokenizer.vocab_size)].tolist()
    after = torch.stack([stages(logits, sampling, ids)[-1] for sampling in chosen.values()])  # [S, V]
    texts = [streamer.text for streamer in streamers]
    return Comparison(
        settings=chosen,
        ids=best,
        tokens=[token_text(tokenizer, i) for i in best],
        probabilities=after.softmax(dim=-1)[:, best].T.numpy(),
        kept=(after > -torch.inf).sum(dim=1).tolist(),
        continuations=[texts[i : i + num_samples] for i in range(0, len(texts), num_samples)],
    )


def draw_comparison(comparison: Comparison, target: Path, title: str = "") -> None:
    """Draw one panel of bars for each setting, with the tokens in the same rows, and write it as PNG or SVG.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    R, S = comparison.probabilities.shape
    figure = new_figure(1.2 + 1.75 * S, 1.1 + 0.26 * R)
    panels = figure.subplots(1, S, sharey=True, squeeze=False)[0]
    for column, (axes, name) in enumerate(zip(panels, comparison.settings, strict=True)):
        shares = comparison.probabilities[:, column]
        axes.barh(range(R), shares, height=0.75, color=_KEPT)
        for row, share in enumerate(shares):
            text, colour = (f"{share:.1%}", "0.2") if share else ("dropped", _DROPPED)
            axes.annotate(text, (share, row), (3, 0), textcoords="offset points", va="center", fontsize=7, color=colour)
        rest = max(0.0, 1 - shares.sum())
        kept = comparison.kept[column]
        axes.set_title(f"{name}\n{kept:,} token{'' if kept == 1 else 's'} kept", fontsize=9)
        axes.set_xlabel(f"others {rest:.1%}", fontsize=8)
        axes.set(xlim=(0, 1.45 * comparison.probabilities.max()), ylim=(R - 0.5, -0.5), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    label_tokens(panels[0], rows=comparison.tokens)
    for axes in panels[1:]:
        axes.tick_params(length=0)
    if title:
        figure.suptitle(drawable(title), fontsize=10, parse_math=False)
    save_figure(figure, target)
