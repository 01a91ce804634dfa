"""A ledger: everything that decided each token of a sample, in a JSON file that a person and a program can read.

For every step it holds the logits before the stages (float32, exact), the random number, the interval of cumulative
probability in which it fell, what each stage dropped, and the most likely candidates, with their logits and
probabilities after each stage. Those of all other tokens follow exactly by :func:`glassgpt.sampling.stages`.
"""

import base64
import dataclasses
import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassgpt import __version__
from glassgpt.errors import ConfigError, DataError
from glassgpt.files import has_type, is_unicode, read_json_object, write_text
from glassgpt.glass.choices.step import describe_step
from glassgpt.inference.decode import DecodeStep, Request, generate_text
from glassgpt.inference.stream import encode_prompt
from glassgpt.model import GPT
from glassgpt.sampling import STAGES, SamplingConfig, stages
from glassgpt.tokenizer import Tokenizer
from glassgpt.tokenizer.specs import identity_of

FORMAT, VERSION = "glassgpt ledger", 1
#: Candidates that are listed for each step, at most, and the chosen one.
LISTED = 20
_ABOUT = (
    "Each step has the logits before the stages (repetition penalty, temperature, top-k, top-p, min-p), as base64 of "
    f"vocab_size little-endian float32; cuts: what each stage dropped; candidates: the {LISTED} most likely tokens and "
    "the chosen one, each with its logit and probability after each stage (a dropped one: null and 0). Those of the "
    "other tokens follow from the logits, the sampling settings and the ids before, as glassgpt.sampling.stages has "
    "them. The draw, times the sum of the probabilities after the last stage, is in the interval [from, to)"
)
_FIELDS = {
    "model": str, "model_id": str, "tokenizer_id": str, "made_with": dict[str, Any], "prompt": str, "chat": bool,
    "prompt_ids": list[int], "sampling": dict[str, Any], "seed": Any, "sample_index": int, "max_new_tokens": int,
    "min_new_tokens": int, "stop": list[str], "end_token_ids": list[int], "text": str, "complete": bool,
    "steps": list[dict[str, Any]],
}  # fmt: skip
_STEP_FIELDS = {
    "chosen": int, "draw": float, "interval": list[Any], "cuts": list[Any], "candidates": list[Any], "logits": str,
}  # fmt: skip


@dataclass
class Ledger:
    """The choices of one sample.

    Attributes:
        request: prompt ids and settings, with the end tokens of the tokenizer.
        model: name of the model, for people.
        model_id: a hash of its configuration and weights, as they were in memory.
        tokenizer_id: a hash of its tokenizer.
        made_with: versions, device, dtype and threads.
        prompt: its text.
        chat: whether the prompt ids are that text in the model's chat template.
        steps: each as :func:`glassgpt.glass.choices.step.describe_step` gives it, with ``logits``.
        text: what was generated.
        complete: whether the text ended by itself; False after an interruption or an error.
    """

    request: Request
    model: str = ""
    model_id: str = ""
    tokenizer_id: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    chat: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    complete: bool = False

    def previous_ids(self, number: int) -> list[int]:
        """Return the ids before step ``number`` (the first is 0): the prompt and the tokens chosen so far."""
        return [*self.request.prompt, *(step["chosen"] for step in self.steps[:number])]

    def logits(self, number: int) -> Tensor:
        """Return the logits of a step before all stages: ``[V]``, float32."""
        return torch.from_numpy(np.frombuffer(base64.b64decode(self.steps[number]["logits"]), "<f4").astype(np.float32))

    def stages(self, number: int) -> dict[str, Tensor]:
        """Return the logits of a step after each stage, by its name: ``[V]``, float64."""
        after = stages(self.logits(number), self.request.sampling, self.previous_ids(number))
        return dict(zip(STAGES, after, strict=True))

    def add(self, step: DecodeStep, tokenizer: Tokenizer, text: str) -> None:
        """Add the first row of a step, after which the text is ``text``."""
        described = describe(step, self.request.sampling, self.previous_ids(len(self.steps)), tokenizer)
        packed = step.logits[0].numpy().astype("<f4").tobytes()
        self.steps.append(described | {"logits": base64.b64encode(packed).decode("ascii")})
        self.text = text

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            OSError: if it cannot be written.
        """
        request = self.request
        sampling = {k: int(v) if k == "top_k" else float(v) for k, v in vars(request.sampling).items()}  # not numpy's
        content = {
            "format": FORMAT, "version": VERSION, "about": _ABOUT, "model": self.model, "model_id": self.model_id,
            "tokenizer_id": self.tokenizer_id, "made_with": self.made_with, "prompt": self.prompt, "chat": self.chat,
            "prompt_ids": list(request.prompt), "sampling": sampling, "seed": request.seed,
            "sample_index": request.sample_index, "max_new_tokens": request.max_new_tokens,
            "min_new_tokens": request.min_new_tokens, "stop": list(request.stop),
            "end_token_ids": list(request.end_token_ids), "text": self.text, "complete": self.complete,
            "steps": self.steps,
        }  # fmt: skip
        write_text(path, _layout(content) + "\n")


def describe(
    step: DecodeStep, sampling: SamplingConfig, previous_ids: Sequence[int], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Describe the first row of a step as a ledger does: candidates have their logits after each stage, too.

    ``penalized_logit`` is that after the repetition penalty. A logit of minus infinity, which JSON lacks, is None.
    """
    described = describe_step(step, sampling, previous_ids, tokenizer, LISTED)
    after = dict(zip(STAGES, stages(step.logits[0], sampling, previous_ids), strict=True))
    for candidate in described["candidates"]:
        for name in STAGES[1:]:
            candidate[f"logit_after_{name.replace('-', '_')}"] = float(after[name][candidate["token"]])
        candidate |= {key: None for key, value in candidate.items() if value == -math.inf}
    return described


def begin(
    model: GPT, tokenizer: Tokenizer, request: Request, *, name: str = "", prompt: str = "", chat: bool = False
) -> Ledger:
    """Begin the ledger of a request that is about to be generated; arguments as the attributes of :class:`Ledger`.

    Raises:
        ConfigError: if a stop string is not valid Unicode, which JSON cannot hold.
    """
    if wrong := [text for text in _as_list(request.stop) if not is_unicode(text)]:
        raise ConfigError(f"stop: {wrong[0]!r} is not valid Unicode; a ledger cannot hold it")
    ends = list(dict.fromkeys((*tokenizer.end_token_ids, *request.end_token_ids)))
    made_with = {
        "glassgpt": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    shown = os.fsencode(name).decode("utf-8", errors="replace")
    request = dataclasses.replace(
        request, prompt=[int(i) for i in request.prompt], seed=int(request.seed), stop=_as_list(request.stop),
        end_token_ids=[int(i) for i in ends],
    )  # fmt: skip
    return Ledger(request, shown, model_id(model), identity_of(tokenizer), made_with, prompt, chat)


def record_choices(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    name: str = "",
    **settings: Any,
) -> Ledger:
    """Continue a prompt, a text or token ids, and keep the ledger.

    Args:
        model: any model.
        tokenizer: its tokenizer.
        prompt: the text to continue, or its ids.
        max_new_tokens: tokens to generate at most.
        sampling: how they are chosen.
        name: of the model, for people.
        settings: ``seed``, ``sample_index``, ``stop``, ``min_new_tokens``, ``end_token_ids``: as :class:`Request`.

    Raises:
        GlassError: as :func:`begin`, and as :func:`glassgpt.inference.decode.generate_text`.
    """
    text = prompt if isinstance(prompt, str) else ""
    ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt
    request = Request(ids, max_new_tokens, sampling, **settings)
    ledger = begin(model, tokenizer, request, name=name, prompt=text)
    for step, streamers in generate_text(model, tokenizer, [request]):
        ledger.add(step, tokenizer, streamers[0].text)
    ledger.complete = True
    return ledger


def model_id(model: GPT) -> str:
    """Hash the configuration and the weights of a model: two models with one id compute the same."""
    digest = hashlib.sha256(json.dumps(vars(model.config), sort_keys=True, default=str).encode())
    for name, weights in model.named_parameters():  # tied weights once
        digest.update(f"{name} {weights.dtype} {list(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256 {digest.hexdigest()}"


def load(path: Path) -> Ledger:
    """Read a ledger.

    Raises:
        DataError: if it cannot be read, is damaged, or is not a ledger.
    """
    try:
        content = read_json_object(path)
        if content.get("format") != FORMAT:
            raise DataError(f"{path} is not a ledger; `glassgpt sample --ledger FILE.json` writes one")
        if not has_type(version := content.get("version"), int) or version != VERSION:
            raise DataError(f"{path} is a ledger of version {version!r}; this program reads {VERSION}")
        for name, kind in _FIELDS.items():
            if name not in content or not has_type(content[name], kind):
                raise ValueError(f"its {name!r} is missing or of a wrong type")
        steps = [_check_step(number, step) for number, step in enumerate(content["steps"], start=1)]
        return Ledger(
            _request(content), content["model"], content["model_id"], content["tokenizer_id"], content["made_with"],
            content["prompt"], content["chat"], steps, content["text"], content["complete"],
        )  # fmt: skip
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, ConfigError) as error:
        raise DataError(f"{path} is not a ledger, or is damaged: {error}") from None


def _request(content: dict[str, Any]) -> Request:
    """Return the request of a ledger; raise if a setting is out of range."""
    names = ("max_new_tokens", "seed", "sample_index", "stop", "min_new_tokens", "end_token_ids")
    if not content["prompt_ids"]:
        raise ValueError("its 'prompt_ids' are empty")
    if content["sampling"].keys() != {setting.name for setting in dataclasses.fields(SamplingConfig)}:
        raise ValueError("its 'sampling' does not have the five settings")
    others = {name: value for name, value in content["sampling"].items() if name != "top_k"}  # which has no limit
    if not all(has_type(value, float) or has_type(value, int) for value in others.values()):
        raise ValueError("a setting in its 'sampling' is not a number, or too large")
    settings = SamplingConfig(**content["sampling"])
    return Request(content["prompt_ids"], sampling=settings, **{name: content[name] for name in names})


def _check_step(number: int, step: dict[str, Any]) -> dict[str, Any]:
    """Return a step of a file; raise a ValueError if it is damaged."""
    for name, kind in _STEP_FIELDS.items():
        if not has_type(step.get(name), kind):
            raise ValueError(f"{name!r} of its step {number} is missing or of a wrong type")
    if len(base64.b64decode(step["logits"], validate=True)) % 4:
        raise ValueError(f"the logits of its step {number} are cut off")
    return step


def _as_list(stop: str | Sequence[str]) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop)


def _layout(value: Any, depth: int = 0) -> str:
    """Write JSON with each innermost object and list on a line of its own."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(child, dict | list) for child in children):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, dict):
        brackets, items = "{}", [f"{json.dumps(key)}: {_layout(child, depth + 1)}" for key, child in value.items()]
    else:
        brackets, items = "[]", [_layout(child, depth + 1) for child in value]
    line = "\n" + "  " * (depth + 1)
    return brackets[0] + line + f",{line}".join(items) + "\n" + "  " * depth + brackets[1]
