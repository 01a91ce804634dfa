"""What untrained models give, and outputs that are no logits; unusual but correct ones raise nothing."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from programs_for_checks import small
from torch import Tensor, nn

from glassgpt.doctor.freshness import looks_untrained
from glassgpt.doctor.models.learning.outputs import OUTPUTS_CHECKS
from glassgpt.doctor.report import run_checks
from glassgpt.doctor.subject import Subject

V, C = 67, 16


class LM(nn.Module):
    """A bag of the tokens so far, whose last step the programs below replace."""

    block_size = 12

    def __init__(self, last: Callable[[Tensor], Tensor] = lambda x: x, rows: int = V, std: float = 0.02):
        super().__init__()
        self.vocab_size, self.last = V, last
        self.tokens, self.fc = nn.Embedding(rows, C), nn.Linear(C, C)
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, rows)
        nn.init.normal_(self.head.weight, std=std)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.norm(F.gelu(self.fc(self.tokens(ids).cumsum(1))))

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.head(self.hidden(ids)))


class Probabilities(LM):
    """Probabilities, with a loss that takes their logarithm."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        p = self.head(self.hidden(ids)).softmax(-1)
        return p, None if targets is None else F.nll_loss(p.log().flatten(0, 1), targets.flatten())


class Hidden(LM):
    """Hidden states instead of logits."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.hidden(ids)


def tied_std_1() -> nn.Module:
    model = LM()
    model.head.weight = model.tokens.weight
    return model


def set_all(change: Callable[[Tensor], object], *names: str) -> nn.Module:
    model = LM()
    for name, parameter in model.named_parameters():
        if name in names:
            change(parameter.data)
    return model


def drawn_gains(model: nn.Module) -> nn.Module:
    """The same model whose norms begin with random gains."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.1)
    return model


def test_training_shows_in_the_matrices() -> None:
    torch.manual_seed(0)
    model = drawn_gains(small(width=32))
    assert looks_untrained(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    ids = (torch.randint(29, (8, 1)) + 2 * torch.arange(13)) % 29
    for _ in range(60):
        _, loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not looks_untrained(model)


def findings(model: nn.Module) -> set[tuple[str, str]]:
    outcomes = list(run_checks(OUTPUTS_CHECKS, Subject(model)))
    return {(o.result.status, o.result.finding) for o in outcomes if o.result.finding}


CORRECT = {
    "logits": LM, "soft cap": lambda: LM(lambda z: 30 * torch.tanh(z / 30)), "temperature": lambda: LM(lambda z: z * 2),
    "log-probabilities": lambda: LM(lambda z: z.log_softmax(-1)), "padded": lambda: LM(rows=128),
    "padded with -inf": lambda: LM(lambda z: z.index_fill(-1, torch.arange(V, 128), -math.inf), rows=128),
    "zero head": lambda: LM(std=0.0), "PyTorch's own initialisation": lambda: LM(std=C**-0.5),
    "probabilities with their own loss": Probabilities, "bfloat16": lambda: LM().to(torch.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_logits_in_any_form_raise_nothing(name: str) -> None:
    torch.manual_seed(0)
    assert findings(CORRECT[name]()) == set()


WRONG = {
    "softmax": ("output not logits", lambda: LM(lambda z: z.softmax(-1))),
    "softmax over time": ("output not logits", lambda: LM(lambda z: z.softmax(1))),
    "ReLU": ("output not logits", lambda: LM(F.relu)),
    "sigmoid": ("output not logits", lambda: LM(torch.sigmoid)),
    "one-hot": ("output not logits", lambda: LM(lambda z: F.one_hot(z.argmax(-1), V).float())),
    "hidden states": ("output not logits", Hidden),
    "a head tied to an embedding of standard deviation 1": ("init", tied_std_1),
    "a head that is too large": ("init", lambda: LM(std=1.0)),
    "a constant matrix": ("init", lambda: set_all(lambda p: p.fill_(0.1), "fc.weight")),
    "a constant embedding": ("init", lambda: set_all(lambda p: p.fill_(1.0), "tokens.weight")),
    "too large, with drawn gains": ("init", lambda: drawn_gains(LM(std=1.0))),
    "memory that was not filled": ("init", lambda: set_all(lambda p: p.fill_(3e20), "fc.weight")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_outputs_is_named(name: str) -> None:
    torch.manual_seed(0)
    finding, make = WRONG[name]
    assert ("FAIL", finding) in findings(make())
