"""The exercises of lesson 29."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from glassgpt.learn.exercises import Exercise, Wrong


class _Model(nn.Module):
    """An embedding with a head, and one of several habits."""

    def __init__(self, habit: str):
        super().__init__()
        self.habit, self.embedding, self.dropout = habit, nn.Embedding(9, 8), nn.Dropout(0.5)
        self.last = torch.zeros(8)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embedding(idx)  # [B, T, 8]
        if self.habit == "noise in both modes":
            x = nn.functional.dropout(x, 0.5)
        if self.habit == "dropout in training mode":
            x = self.dropout(x)
        if self.habit == "the last text is added":
            x, self.last = x + self.last, x.detach().mean((0, 1))
        return x @ self.embedding.weight.T


def check_repeatable(answer: Callable[[nn.Module, Tensor], bool]) -> None:
    """Try it on models that are repeatable and on some that are not, in both modes."""
    idx = torch.tensor([[1, 5, 2, 8], [0, 3, 3, 7]])
    for habit, right in (
        ("none", True),
        ("dropout in training mode", True),
        ("noise in both modes", False),
        ("the last text is added", False),
    ):
        for training in (True, False):
            model = _Model(habit).train(training)
            if habit == "the last text is added":
                model(idx)  # so the first two passes of the answer are equal, unless another text comes between
            found = answer(model, idx.clone())
            mode = "training" if training else "evaluation"
            if bool(found) != right:
                raise Wrong(f"a model in {mode} mode (habit: {habit}): it should say {right}, and says {found!r}")
            if model.training != training or model.dropout.training != training:
                raise Wrong(f"the model was in {mode} mode before, and is not any more")


def check_first_leak(answer: Callable[[Callable[[Tensor], Tensor], int, int], int | None]) -> None:
    """Try it on functions that leak from a certain position on, over a certain distance."""
    T, V = 8, 6
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(V, V, generator=generator)

    def leaking(first: int, distance: int) -> Callable[[Tensor], Tensor]:
        def logits_of(idx: Tensor) -> Tensor:
            rows = table[idx].cumsum(1)
            for t in range(first, T - distance):
                rows[:, t] = rows[:, t] + table[idx[:, t + distance]]
            return rows

        return logits_of

    for first, distance, what in (
        (0, 1, "sees the next token"),
        (3, 1, "sees the next token, from position 3 on"),
        (0, 7, "sees the last token from position 0"),
        (2, 3, "sees 3 tokens ahead, from position 2 on"),
    ):
        found = answer(leaking(first, distance), T, V)
        if found != first or isinstance(found, bool):
            raise Wrong(f"a model of T = {T} that {what}: it should be {first}, and is {found!r}")
    if (found := answer(leaking(T, 1), T, V)) is not None:
        raise Wrong(f"a causal model: it should be None, and is {found!r}")


EXERCISES = (
    Exercise("repeatable", "Whether the same text always gives the same logits.", check_repeatable,
             "Three passes, and the second is about something else. Note the mode before you change it."),
    Exercise("first_leak", "The first position that depends on a later token.", check_first_leak,
             "A leak may reach one token far or many. Which tokens have to be changed to see them all?"),
)  # fmt: skip
