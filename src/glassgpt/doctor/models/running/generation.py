"""A module's own `generate`: greedy tokens are those of the whole text, the prompt stays, the mode comes back."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glassgpt.doctor.models.probing import affordable_length, quiet_logits, rounding, sharpened, size_of
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed
from glassgpt.doctor.subject import Subject, fixed_random_state
from glassgpt.errors import first_line

LENGTHS = (
    "max_new_tokens", "max_new_toks", "new_tokens", "n_new", "num_tokens", "n_tokens", "max_tokens", "max_gen_len",
    "steps", "num_new_tokens", "gen_len", "n",
)  # fmt: skip
CONTEXTS = ("context_size", "block_size", "context_length", "max_context", "ctx_len")


class _Greedy(TorchFunctionMode):
    """Draws the most probable token instead of a random one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "multinomial":
            return args[0].argmax(-1, keepdim=True)
        return func(*args, **(kwargs or {}))


def _options(subject: Subject, module: nn.Module, new: int) -> dict[str, Any]:
    """Arguments for greedy generation of so many tokens, by the names that the function has."""
    generate: Any = module.generate
    arguments = inspect.signature(generate).parameters
    length = next((name for name in LENGTHS if name in arguments), None)
    hugging_face = "generation_config" in arguments
    if length is None and not hugging_face:
        raise NotRun(f"generate has no argument for the number of tokens: {', '.join(arguments)}")
    options: dict[str, Any] = {length or "max_new_tokens": new}
    if hugging_face:
        options |= {"do_sample": False, "pad_token_id": 0}
    known = {"do_sample": False, "temperature": 1.0, "top_k": 1, "device": "cpu"}
    options |= {name: value for name, value in known.items() if name in arguments}
    return options | {name: subject.context for name in CONTEXTS if name in arguments}


def _generate(subject: Subject, module: nn.Module, prompt: Tensor, new: int) -> Tensor:
    generate: Any = module.generate
    with fixed_random_state(), torch.no_grad(), _Greedy():
        out = generate(prompt.clone(), **_options(subject, module, new))
    out = out[0] if isinstance(out, tuple) else out
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(prompt):
        raise NotRun("generate does not return token ids [B, T]")
    return out


def check_generate(subject: Subject) -> Result:
    """Greedy tokens equal those that the whole text gives, also when the text fills the context."""
    module = sharpened(subject.copy(), subject)
    if not callable(getattr(module, "generate", None)):
        raise NotRun("the module has no generate")
    n, new = subject.context, 3
    lengths = [min(5, max(1, n - new))]
    if n <= 256 and n > 8 and affordable_length(subject, n * new):
        lengths.append(n - 2)  # the last of three tokens comes from exactly the whole context
    for number, length in enumerate(lengths):
        prompt = subject.ids(1, length, seed=30 + number)
        module.eval()
        passes: list[Any] = []
        hook = module.register_forward_hook(lambda _, __, raw, passes=passes: passes.append(raw))
        try:
            out = _generate(subject, module, prompt, new)
        except NotRun:
            raise
        except Exception as error:
            raise NotRun(f"generate ended with {type(error).__name__}: {first_line(error)}") from error
        finally:
            hook.remove()
        if any(part.training for part in module.modules()):
            return failed("mode", "generate leaves the model in training mode, though it was in evaluation mode")
        wrong = _first_wrong(subject, prompt, out, passes)
        if wrong:
            return wrong
    return passed(f"greedy tokens are those of the whole text, for prompts of {' and '.join(map(str, lengths))} tokens")


def _first_wrong(subject: Subject, prompt: Tensor, out: Tensor, passes: list[Any]) -> Result | None:
    T = prompt.size(1)
    if out.size(1) > T and not torch.equal(out[:, :T], prompt):
        return failed("cache", "generate returns a text that does not begin with its prompt")
    new = out[:, T:] if out.size(1) > T else out
    text = torch.cat([prompt, new], 1)
    for t in range(T, min(text.size(1), subject.context + 1)):
        seen = text[:, max(0, t - subject.context) : t]
        logits = quiet_logits(subject, sharpened(subject.copy(), subject), seen)[0, -1]
        gap = float(logits.max() - logits[text[0, t]])
        if gap > rounding(subject) * max(size_of(logits), 1e-30):
            message = f"greedy token {t - T} after a prompt of {T} is {int(text[0, t])}; the whole text gives"
            return failed("cache", f"{message} {int(logits.argmax())}", position=t, gap=gap, context=subject.context)
        own = _last_logits(subject, passes[t - T]) if len(passes) == new.size(1) else None
        apart = 0.0 if own is None else float((own - logits).abs().max()) / max(size_of(logits), 1e-30)
        if apart > rounding(subject):
            message = f"the pass for token {t - T} after a prompt of {T} gives other logits than the whole text"
            return failed("cache", f"{message}, by {apart:.1e}", position=t, relative=apart, context=subject.context)
    return None


def _last_logits(subject: Subject, raw: Any) -> Tensor | None:
    """The logits of the last position in what forward returned during generation."""
    parts = raw.values() if isinstance(raw, Mapping) else raw if isinstance(raw, (tuple, list)) else [raw]
    logits = getattr(raw, "logits", None)
    for part in [logits] if logits is not None else parts:
        if isinstance(part, Tensor) and part.dim() == 3 and len(part) == 1 and part.size(-1) == subject.outputs:
            return part[0, -1].float()
    return None


GENERATION_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "generate",
        "Generates greedily with the module's own generate, and compares with the most probable tokens of full passes.",
        "12 passes",
        "rounding: a token whose logit is within 1e-4 of the largest is as good",
        ("cache", "mode"),
        check_generate,
    ),
)
