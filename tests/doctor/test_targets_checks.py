"""The alignment of targets, read in the gradient of losses that are written in many ways."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.doctor.models.learning.short_training import LEARNING_CHECKS
from glassgpt.doctor.models.learning.targets import TARGETS_CHECKS
from glassgpt.doctor.report import run_checks
from glassgpt.doctor.subject import Subject

V, C = 131, 16
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ce(logits: Tensor, targets: Tensor, **options: float) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)


class LM(nn.Module):
    """A model with a loss of its own: of logits, targets and ids."""

    block_size = 12

    def __init__(self, loss: Loss, **attributes: int):
        super().__init__()
        self.tokens, self.fc, self.head = nn.Embedding(V, C), nn.Linear(C, C), nn.Linear(C, V)
        self.own = loss
        for name, value in attributes.items():
            setattr(self, name, value)

    def logits(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.fc(self.tokens(ids).cumsum(1))))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        z = self.logits(ids)
        return z, None if targets is None else self.own(z, targets, ids)


class Labels(LM):
    """The same with labels, as transformers names them."""

    def forward(
        self, input_ids: Tensor, attention_mask: None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        z = self.logits(input_ids)
        return {"logits": z} if labels is None else {"loss": self.own(z, labels, input_ids), "logits": z}


class Flattened(LM):
    """Logits flattened where there are targets, and of the last position only where there are none."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        z = self.logits(ids)
        if targets is None:
            return z[:, [-1]], None
        z = z.view(-1, V)
        return z, F.cross_entropy(z, targets.view(-1))


class Squashed(LM):
    """With targets, the logits are probabilities, and the loss takes them for logits."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        z = self.logits(ids)
        if targets is None:
            return z, None
        z = z.softmax(-1)
        return z, self.own(z, targets, ids)


def masked(z: Tensor, y: Tensor, _: Tensor) -> Tensor:
    mask = (y != -100).float()
    losses = -z.log_softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return (losses * mask).sum() / mask.sum()


def results(model: nn.Module, slow: bool = False) -> dict[str, tuple[str, str | None]]:
    outcomes = run_checks((*TARGETS_CHECKS, *(LEARNING_CHECKS if slow else ())), Subject(model))
    return {f"{o.check.name} {i}": (o.result.status, o.result.finding) for i, o in enumerate(outcomes)}


CORRECT = {
    "mean over all": lambda: LM(lambda z, y, _: ce(z, y)), "flattened": lambda: Flattened(lambda z, y, _: ce(z, y)),
    "vocabulary in the middle": lambda: LM(lambda z, y, _: F.cross_entropy(z.transpose(1, 2), y)),
    "smoothed, with z-loss": lambda: LM(
        lambda z, y, _: ce(z, y, label_smoothing=0.1) + 1e-3 * z.logsumexp(-1).square().mean()
    ),
    "masked by hand": lambda: LM(masked),
    "gathered": lambda: LM(lambda z, y, _: -z.log_softmax(-1).gather(-1, y[..., None]).mean()),
    "padding is ignored": lambda: LM(lambda z, y, _: ce(z, y, ignore_index=0), pad_token_id=0),
    "labels, shifted inside": lambda: Labels(lambda z, y, _: ce(z[:, :-1], y[:, 1:])),
    "targets, shifted inside": lambda: LM(lambda z, y, _: ce(z[:, :-1], y[:, 1:])),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_losses_written_in_any_way_pass(name: str) -> None:
    torch.manual_seed(0)
    assert set(results(CORRECT[name]()).values()) == {("PASS", None)}


WRONG = {
    "shifted twice": ("targets", lambda: LM(lambda z, y, _: ce(z[:, :-2], y[:, 2:]))),
    "shifted backwards": ("targets", lambda: LM(lambda z, y, _: ce(z[:, 1:], y[:, :-1]))),
    "labels not shifted": ("targets", lambda: Labels(lambda z, y, _: ce(z, y))),
    "the input is trained": ("targets", lambda: LM(lambda z, y, ids: ce(z, ids))),
    "rows are exchanged": ("targets", lambda: LM(lambda z, y, _: ce(z, y.roll(1, 0)))),
    "another order": ("targets", lambda: LM(lambda z, y, _: ce(z.transpose(0, 1), y))),
    "the last position only": ("targets", lambda: LM(lambda z, y, _: F.cross_entropy(z[:, -1], y[:, -1]))),
    "the wrong sign": ("targets", lambda: LM(lambda z, y, _: -ce(z, y))),
    "-100 is trained": ("targets", lambda: LM(lambda z, y, _: ce(z, y.clamp(min=0)))),
    "-100 counts in the mean": ("targets", lambda: LM(lambda z, y, _: ce(z, y, reduction="sum") / y.numel())),
    "softmax before cross entropy": ("output not logits", lambda: LM(lambda z, y, _: ce(z.softmax(-1), y))),
    "softmax, returned as logits": ("output not logits", lambda: Squashed(lambda z, y, _: ce(z, y))),
    "a sum over all tokens": ("targets", lambda: LM(lambda z, y, _: ce(z, y, reduction="sum"))),
    "a sum over time": ("targets", lambda: LM(lambda z, y, _: ce(z, y, reduction="sum") / len(y))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_targets_are_named(name: str) -> None:
    torch.manual_seed(0)
    finding, make = WRONG[name]
    assert ("FAIL", finding) in results(make()).values()


def test_an_undeclared_ignored_token_is_warned_of() -> None:
    torch.manual_seed(0)
    assert ("WARN", "targets") in results(LM(lambda z, y, _: ce(z, y, ignore_index=0))).values()


def test_a_short_training_learns_the_next_token() -> None:
    torch.manual_seed(0)
    found = results(LM(lambda z, y, _: ce(z, y)), slow=True)
    assert set(found.values()) == {("PASS", None)} and len(found) == 2


def test_a_module_without_a_loss_is_not_examined() -> None:
    class Plain(LM):
        def forward(self, ids: Tensor) -> Tensor:
            return self.logits(ids)

    assert set(results(Plain(masked)).values()) == {("NOT RUN", None)}
