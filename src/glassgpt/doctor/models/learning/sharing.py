"""Layers that are one object by mistake, and embeddings that should be the head's weight and are not."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.doctor.models.learning.constants import source, trace_forward
from glassgpt.doctor.report import Check, NotRun, Result, failed, passed, warned
from glassgpt.doctor.subject import HOLDERS, Subject, cross_entropy, fixed_random_state
from glassgpt.doctor.trace import Trace

SHARING_WORDS = re.compile(r"shar|repeat|recur|loop|universal|albert|cycle|reuse|n_unique|group_layers", re.IGNORECASE)
TYING_WORDS = re.compile(
    r"^(tie|tied|tying|weight_ty(ing|ed)|(tie|tied|share|shared)_?(word_?|in_?out(put)?_?|input_output_?)?"
    r"(embed\w*|emb|weights?|head|lm_head|output\w*))$",
    re.IGNORECASE,
)


def _own_parameters(module: nn.Module, tables: set[int]) -> dict[int, nn.Parameter]:
    """The parameters of a module by identity, without lookup tables and what has a dimension of the vocabulary."""
    lookups = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return {
        id(p): p for p in module.parameters() if id(p) not in lookups and not (p.dim() >= 2 and tables & set(p.shape))
    }


def _declared(module: nn.Module, words: re.Pattern[str]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Settings whose names match: the module that holds them, name, value."""
    for part in module.modules():
        for holder in (part, *(getattr(part, name, None) for name in HOLDERS)):
            if holder is not part and _foreign_config(part, holder):
                continue
            items = holder.items() if isinstance(holder, Mapping) else vars(holder).items() if _has_vars(holder) else ()
            for name, value in items:
                if isinstance(name, str) and words.search(name) and isinstance(value, (bool, int)):
                    yield part, name, value


def _has_vars(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type)


def _foreign_config(part: nn.Module, holder: Any) -> bool:
    """A configuration of transformers on a module that is none of transformers: its defaults mean nothing there."""
    from_hub = any(base.__name__ in ("PretrainedConfig", "PreTrainedConfig") for base in type(holder).__mro__)
    return from_hub and not any(base.__name__ == "PreTrainedModel" for base in type(part).__mro__)


def shared_layers(subject: Subject) -> Iterator[Result]:
    """Sibling layers have parameters of their own."""
    module = subject.module
    tables = {subject.vocab, subject.outputs} - {1}
    switched_on = next(
        (name for _, name, value in _declared(module, SHARING_WORDS) if value and value is not None), None
    )
    problems: list[Result] = []
    notes: list[str] = []
    for path, parent in module.named_modules():
        listed = isinstance(parent, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        children = [(key, child) for key, child in parent._modules.items() if child is not None]
        for kind in dict.fromkeys(type(child) for _, child in children):
            siblings = [(key, child) for key, child in children if type(child) is kind]
            share, names, some = _overlap(siblings, tables)
            if not share:
                continue
            where = f"{path}.{names[0]}" if path else names[0]
            text = (
                f"{', '.join(names[:6])}{' ...' if len(names) > 6 else ''} of {path or 'the model'} share "
                f"{share:.0%} of their parameters ({kind.__name__})"
            )
            evidence = {"shared": names[:50], "share": round(share, 3)}
            if switched_on:
                notes.append(f"{text}, as {switched_on!r} says")
            elif share == 1 or (share >= 0.2 and (listed or len(siblings) > 2)):
                problems.append(failed("shared layers", text, where, **evidence))
            elif _multiplies(some):
                problems.append(warned("shared layers", text, where, **evidence))
            else:
                notes.append(text)
    if problems:
        yield from sorted(problems, key=lambda result: result.status)[:5]
    else:
        yield passed("; ".join(["no layer is used in the place of another one", *notes[:2]]))


def _overlap(siblings: list[tuple[str, nn.Module]], tables: set[int]) -> tuple[float, list[str], nn.Parameter | None]:
    """The largest share of its parameters that a sibling has in common with an earlier one, and with which."""
    owned = [(key, _own_parameters(child, tables)) for key, child in siblings]
    owned = [(key, parameters) for key, parameters in owned if parameters]
    owner: dict[int, str] = {}
    names: dict[str, None] = {}
    largest, example = 0.0, None
    for key, parameters in owned:
        common = [p for p in parameters if p in owner]
        if common:
            total = sum(p.numel() for p in parameters.values())
            largest = max(largest, sum(parameters[p].numel() for p in common) / total)
            example = max((parameters[p] for p in common), key=lambda p: p.numel())
            names.update(dict.fromkeys([owner[common[0]], key]))
        for p in parameters:
            owner.setdefault(p, key)
    return largest, list(names), example


def _multiplies(parameter: nn.Parameter | None) -> bool:
    """Whether a shared parameter is a weight or the gain of a norm, rather than a small table."""
    return parameter is not None and (parameter.dim() == 1 or min(parameter.shape[-2:]) > 8)


def embedding_and_head(seen: Trace) -> tuple[str | None, str | None]:
    """Names of the parameters that ids are looked up in, and that the logits are computed with."""
    ids = {value for value, (origin, _) in seen.origins.items() if origin == "input"}
    from_ids = set(ids)
    embedding = head = None
    for op in seen.ops:
        indexes = any(value in from_ids for value in op.inputs[1:])
        if embedding is None and op.name in ("aten.embedding", "aten.index", "aten.index_select") and indexes:
            embedding = source(seen, op.inputs[0])
        if op.name in ("aten.view", "aten.t", "aten.transpose", "aten._to_copy", "aten.clone", "aten.alias"):
            from_ids.update(op.outputs if op.inputs[0] in from_ids else ())
        if op.name in ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"):
            named = [name for value in op.inputs if (name := source(seen, value)) is not None]
            head = named[-1] if named else head
    return embedding, head


def tying(subject: Subject) -> Iterator[Result]:
    """Embedding and head are one parameter, or two; never two on one memory, or two with the same numbers."""
    module = subject.module
    parameters = dict(module.named_parameters())
    problems = [*_overlapping(parameters)]
    twin = subject.copy()
    seen = trace_forward(subject, twin, subject.ids(1, subject.few))
    embedding, head = embedding_and_head(seen)
    table, weight = parameters.get(embedding or ""), parameters.get(head or "")
    apart = table is not None and weight is not None and subject.vocab in table.shape and table is not weight
    if apart and not problems and table is not None and weight is not None and _same_numbers(table, weight):
        text = f"{head} and {embedding} hold the same numbers, but are two parameters: a step parts them"
        holder = (head or "").rpartition(".")[0] or None
        problems.append(failed("tying", text, holder, embedding=embedding, head=head))
    declared = [
        (name, bool(value)) for part, name, value in _declared(module, TYING_WORDS) if _holds(part, table, weight)
    ]
    if table is not None and weight is not None and declared and not problems:
        name, wanted = declared[0]
        if wanted != (table is weight):
            text = f"{name} is {wanted}, but {embedding} and {head} are {'one parameter' if table is weight else 'two'}"
            result = failed if wanted else warned
            problems.append(
                result("tying", text, (head or "").rpartition(".")[0] or None, embedding=embedding, head=head)
            )
    if not problems and table is weight and embedding and _read_detached(subject, embedding):
        text = f"the head reads {embedding} detached: rows of tokens that are not in the input get no gradient"
        problems.append(failed("tying", text, embedding.rpartition(".")[0] or None, embedding=embedding))
    if problems:
        yield from problems[:3]
    elif table is None or weight is None:
        raise NotRun("the embedding and the head were not found among the parameters")
    else:
        yield passed(f"{embedding} and {head} are {'tied: one parameter' if table is weight else 'two parameters'}")


def _read_detached(subject: Subject, table: str) -> bool:
    """Whether a table that the logits are computed with gets a gradient as an embedding only."""
    module, idx = subject.copy(), subject.ids(1, subject.few)
    weight = dict(module.named_parameters())[table]
    with fixed_random_state():
        logits = subject.logits(module, idx)
        if not weight.requires_grad or not logits.requires_grad or weight.size(0) != subject.vocab:
            return False
        loss = cross_entropy(logits, idx % subject.outputs)
        (gradient,) = torch.autograd.grad(loss, [weight], allow_unused=True, materialize_grads=True)
    used = torch.zeros(subject.vocab, dtype=torch.bool).index_fill(0, idx.flatten(), True)
    size = gradient.detach().flatten(1).abs().amax(1)
    return bool(size[used].max() > 0) and not bool(size[~used].any()) and not bool(used.all())


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices are equal, or one is the other transposed; constant ones say nothing."""
    if a.shape != b.shape:
        b = b.t() if b.dim() == 2 else b
    return a.shape == b.shape and torch.equal(a, b) and not bool((a == a.flatten()[0]).all())


def _holds(part: nn.Module, *wanted: Tensor | None) -> bool:
    """Whether a module holds all of these parameters."""
    own = {id(p) for p in part.parameters()}
    return all(p is not None and id(p) in own for p in wanted)


def _overlapping(parameters: Mapping[str, nn.Parameter]) -> Iterator[Result]:
    """Two Parameter objects on one piece of memory: an optimiser steps it twice."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, p in parameters.items():
        if p.numel() and p.layout == torch.strided and p.device.type != "meta":
            end = int(p.storage_offset()) + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)) + 1
            spans.setdefault(p.untyped_storage().data_ptr(), []).append((int(p.storage_offset()), int(end), name))
    for found in spans.values():
        for (_, end, first), (start, _, second) in itertools.pairwise(sorted(found)):
            if start < end and first != second:
                yield failed(
                    "tying", f"{first} and {second} are two parameters on the same memory: an optimiser steps it twice",
                    second.rpartition(".")[0] or None, parameters=[first, second],
                )  # fmt: skip


SHARING_CHECKS: tuple[Check[Subject], ...] = (
    Check(
        "shared layers",
        "Looks for layers side by side that are one object, or hold the same parameters.",
        "none",
        "a fifth of a layer's parameters: a small table, such as a bias by distance, is often shared on purpose",
        ("shared layers",),
        shared_layers,
    ),
    Check(
        "tying",
        "Finds the embedding and the head, and tells whether they are one parameter, two, or neither rightly.",
        "1 forward pass",
        "bitwise equality: two random or trained tables are never equal by chance",
        ("tying",),
        tying,
    ),
)
