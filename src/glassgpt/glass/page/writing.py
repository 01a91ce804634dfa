"""Write the page: the recorded tensors, what describes them, and the page's HTML, CSS and JavaScript in one file."""

import dataclasses
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from glassgpt import recording
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.inside.prompt import Prompt, read_prompt, token_text
from glassgpt.glass.page.encoding import encode_bytes, encode_floats, encode_json
from glassgpt.glass.page.progress import SUMMARIZED, summarize
from glassgpt.glass.page.tensors import PER_TENSOR, RECORDED, as_float32, longest_prompt, page_tensors, required_bytes
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.loading import load_source
from glassgpt.weights.resolve import open_folder

#: Bytes of a page, at most: of a model with fewer parameters than this and a short prompt, and of others.
SMALL_PAGE, LARGE_PAGE, LARGE_MODEL = 3_000_000, 15_000_000, 10_000_000
#: The files of the page, in order.
STYLES = ("style.css", "next_token.css")
SCRIPTS = (
    "format.js",
    "data.js",
    "formulas.js",
    "tensors.js",
    "explaining.js",
    "rules.js",
    "state.js",
    "heatmap.js",
    "views.js",
    "inspector.js",
    "attention.js",
    "block.js",
    "sampling.js",
    "next_token.js",
    "sections.js",
    "overview.js",
    "page.js",
)


@dataclass(frozen=True)
class Page:
    """A finished page.

    Attributes:
        html: the whole file.
        not_kept: the tensors that did not fit: ``up of block 3``. With several checkpoints, those of the last.
    """

    html: str
    not_kept: list[str]


def default_limit(model: GPT, T: int) -> int:
    """Return the size of a page in bytes, at most, if none is given: the small one if T tokens fill at most half."""
    small = model.num_parameters() < LARGE_MODEL and required_bytes(model.config, T) <= SMALL_PAGE // 2
    return SMALL_PAGE if small else LARGE_PAGE


def glass_page(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    name: str = "model",
    limit: int | None = None,
    checkpoints: Mapping[int, Path] | None = None,
) -> Page:
    """Follow a prompt through a model, in one HTML file that loads nothing from the network.

    Args:
        model: any model; the pass uses explicit attention.
        tokenizer: the model's.
        prompt: the text.
        name: of the model, for the heading.
        limit: bytes of the page, at most; by default :func:`default_limit`. What does not fit is left out, in the
            order of :func:`page_tensors`.
        checkpoints: model folders of a run by their step; a slider shows them in place of ``model``.

    Raises:
        TokenizerError: if the text has characters that the tokenizer does not know.
        ConfigError: if the prompt does not fit the context, or the page.
        GenerationError: if the model does not have one of its tokens, or its logits are not finite.
        CheckpointError: if a checkpoint is damaged.
    """
    read = read_prompt(model, tokenizer, prompt)
    limit = default_limit(model, len(read.ids)) if limit is None else limit
    name = name.encode("utf-8", errors="replace").decode("utf-8")  # the name of a file can be any bytes
    vocabulary = [token_text(tokenizer, i) for i in range(model.config.vocab_size)]
    blocks = {"vocabulary": encode_bytes(json.dumps(vocabulary).encode())}
    steps: list[int | None] = [*checkpoints] if checkpoints else [None]
    title, about = f"{name}: {prompt[:60]}", _describe(model, tokenizer, read, prompt, name) | {"limit": limit}
    around = len(_assemble(title, about, blocks).encode())
    room = (limit - around) // len(steps)
    fitting = longest_prompt(model.config, room)
    if len(read.ids) > fitting:
        raise ConfigError(_too_long(len(read.ids), fitting, limit, len(steps)))
    frames, not_kept = list[dict[str, Any]](), list[str]()
    for number, step in enumerate(steps):
        if checkpoints and step is not None:
            model, _ = load_source(open_folder(checkpoints[step]), device=model.device)
        recorded = recording.record(model, read.idx(model), {*RECORDED, *SUMMARIZED})
        if not recorded.logits.isfinite().all():
            at = "" if step is None else f" at step {step:,}"
            raise GenerationError(f"the logits{at} are not all finite numbers; the model's weights are damaged")
        frame = {"step": step} | summarize(model, recorded)
        kept, not_kept = _keep(model, recorded, room - len(encode_json(frame)), f"tensor-{number}-", blocks)
        frames.append(frame | {"tensors": kept})
    return Page(_assemble(title, about | {"frames": frames}, blocks), not_kept)


def _too_long(tokens: int, fitting: int, limit: int, checkpoints: int) -> str:
    several = f" with {checkpoints} checkpoints" if checkpoints > 1 else ""
    size = f"{limit / 1e6:g} MB"
    if fitting == 0:
        return f"not one token of this model fits a page of {size}{several}; give a larger --max-mb"
    return (
        f"the prompt has {tokens:,} tokens; a page of {size}{several} has room for {fitting:,} of this model. "
        "Give a shorter prompt, or a larger --max-mb"
    )


def _keep(
    model: GPT, recorded: recording.Recording, room: int, prefix: str, blocks: dict[str, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Encode the tensors that fit, add them to ``blocks``; return where each is, and the names of those that do not."""
    kept, not_kept, used = list[dict[str, Any]](), list[str](), 0
    for tensor in page_tensors(model, recorded):
        # Even compressed, random numbers take more than this; do not spend time on encoding what cannot fit.
        fits = tensor.required or used + 4 * tensor.values.numel() <= room
        text = encode_floats(as_float32(tensor.values).numpy()) if fits else ""
        size = len(text) + PER_TENSOR
        if not fits or (used + size > room and not tensor.required):
            not_kept.append(str(tensor))
            continue
        used += size
        where = f"{prefix}{len(kept)}"
        blocks[where] = text
        shape = list(tensor.values.shape)
        kept.append({"name": tensor.name, "layer": tensor.layer, "shape": shape, "block": where})
    return kept, not_kept


def _describe(model: GPT, tokenizer: Tokenizer, prompt: Prompt, text: str, name: str) -> dict[str, Any]:
    """Describe the model and the prompt as JSON values."""
    config = model.config
    return {
        "name": name,
        "text": text,
        "ids": prompt.ids,
        "tokens": prompt.tokens,
        "token_bytes": [tokenizer.token_bytes(i).hex() if i < tokenizer.vocab_size else "" for i in prompt.ids],
        "tokenizer": tokenizer.kind,
        "config": dataclasses.asdict(config),
        "windows": list(config.windows),
        "parameters": model.num_parameters(),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "axes": {key: [a for a in recording.axes_of(key, config) if a != "B"] for key in recording.AXES},
    }


def _assemble(title: str, about: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """Put everything into the page's HTML."""
    static = resources.files("glassgpt.glass.page") / "static"

    def read(file: str) -> str:
        return (static / file).read_text(encoding="utf-8")

    data = [f'<script type="application/json" id="about">{encode_json(about)}</script>']
    data += [f'<script type="text/plain" id="{key}">{text}</script>' for key, text in blocks.items()]
    parts = {
        "title": html.escape(title),
        "style": "".join(f"<style>\n{read(file)}</style>\n" for file in STYLES),
        "data": "\n".join(data),
        "scripts": "".join(f"<script>\n{read(file)}</script>\n" for file in SCRIPTS),
    }
    before, *rest = read("page.html").split("<!-- put ")
    return before + "".join(parts[key] + text for key, _, text in (part.partition(" -->") for part in rest))
