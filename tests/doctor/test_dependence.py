"""The checks by experiment: each bug has its finding and no other, correct programs have none."""

import pytest
import torch
from programs_for_checks import small
from torch import nn

from glassgpt.config import ModelConfig
from glassgpt.doctor.loading import subject_of
from glassgpt.doctor.models.running.behaviour import BEHAVIOUR_CHECKS
from glassgpt.doctor.models.running.caches import CACHE_CHECKS
from glassgpt.doctor.models.running.device import DEVICE_CHECKS
from glassgpt.doctor.models.running.generation import GENERATION_CHECKS
from glassgpt.doctor.models.running.longest import LENGTH_CHECKS
from glassgpt.doctor.models.running.numbers import NUMBER_CHECKS
from glassgpt.doctor.models.running.padding import PADDING_CHECKS
from glassgpt.doctor.models.wiring.dependence import DEPENDENCE_CHECKS
from glassgpt.doctor.report import Result, run_checks
from glassgpt.doctor.subject import Subject
from glassgpt.model import GPT

CHECKS = (
    *DEPENDENCE_CHECKS, *BEHAVIOUR_CHECKS, *NUMBER_CHECKS, *LENGTH_CHECKS, *CACHE_CHECKS, *GENERATION_CHECKS,
    *PADDING_CHECKS, *DEVICE_CHECKS,
)  # fmt: skip


def findings(subject: Subject) -> list[Result]:
    """What is not PASS, and what broke inside a check."""
    results = [outcome.result for outcome in run_checks(CHECKS, subject)]
    return [r for r in results if r.status in ("WARN", "FAIL") or "the check ended with" in r.message]


@pytest.mark.parametrize(
    ("does", "finding"),
    [
        ("next token", "leak"),
        ("queries", "leak"),
        ("like the last", "leak"),
        ("leak in training", "leak"),
        ("targets seen", "leak"),
        ("window", "reach"),
        ("rows", "batch mixing"),
        ("batch norm", "batch mixing"),
        ("from the end", "position"),
        ("scaled by length", "scale"),
        ("dropout always", "mode"),
        ("no dropout in training", "mode"),
        ("memory", "state"),
        ("seeded", "state"),
        ("wrapped", "max length"),
        ("ids changed", "in-place"),
        ("first blind", "non-finite"),
        ("naive softmax", "overflow"),
        ("huge", "overflow"),
        ("arange", "device"),
        ("plain mask", "device"),
    ],
)
def test_each_bug_has_its_finding_and_no_other(does: str, finding: str) -> None:
    found = findings(Subject(small(does)))
    others = {"max length"} if does == "like the last" else set()  # the same token further on looks like a clamp
    assert {finding} <= {r.finding for r in found if r.status == "FAIL"} <= {finding} | others, found


@pytest.mark.parametrize("does", ["clamped", "cut"])
def test_a_text_beyond_the_context_is_not_cut_or_given_old_positions(does: str) -> None:
    model = small(does)
    model.mask = torch.ones(40, 40).tril().bool()
    found = findings(Subject(model, context=16))
    assert [r.finding for r in found] == ["max length"], found


@pytest.mark.parametrize("does", [(), ("zero",), ("noise in training",), ("experts",)])
def test_correct_programs_are_silent_in_every_type(does: tuple[str, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert findings(Subject(small(*does).to(dtype))) == []


def test_a_leak_and_zero_weights_are_seen_together_and_the_module_is_named() -> None:
    found = findings(Subject(small("zero", "next token")))
    assert [r.finding for r in found] == ["leak"]
    subject = Subject(small("batch norm"))
    rows = next(r for r in findings(subject) if r.finding == "batch mixing")
    assert rows.module == "batch_norm"


def test_a_window_that_is_declared_is_not_missing() -> None:
    model = small("window", layers=1)
    (missing,) = findings(Subject(model))
    assert missing.finding == "reach" and "--window 3" in missing.message
    assert findings(Subject(model, window=3)) == []


def test_a_context_that_does_not_work_is_named_with_what_works() -> None:
    (found,) = findings(Subject(small(), context=20))
    assert found.finding == "max length" and found.evidence["works"] == 16


class Recurrent(nn.Module):
    """A GRU that takes and returns its state; `forget` makes it ignore the state."""

    def __init__(self, forget: bool = False):
        super().__init__()
        self.table, self.gru, self.head = nn.Embedding(29, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, 29)
        self.forget = forget

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        x, hidden = self.gru(self.table(ids), None if self.forget else hidden)
        return self.head(x), hidden


def test_a_hidden_state_is_a_cache() -> None:
    torch.manual_seed(0)
    assert findings(Subject(Recurrent())) == []
    assert [r.finding for r in findings(Subject(Recurrent(forget=True)))] == ["cache"]


class Sampler(nn.Module):
    """Keeps keys and values itself, and generates; `wrong` names what it does wrong."""

    def __init__(self, wrong: str = ""):
        super().__init__()
        self.model, self.wrong, self.block_size = small(layers=1), wrong, 16
        self.kept: torch.Tensor | None = None

    def reset_cache(self) -> None:
        if self.wrong != "reset":
            self.kept = None

    def forward(self, ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        if not use_cache:
            return self.model(ids)[0]
        old = self.kept
        self.kept = ids if old is None or self.wrong == "forgets" else torch.cat([old, ids], 1)
        return self.model(self.kept)[0][:, -ids.size(1) :]

    @torch.no_grad()
    def generate(self, ids: torch.Tensor, max_new_tokens: int, temperature: float = 1.0) -> torch.Tensor:
        if self.wrong == "mode":
            self.train()
        for _ in range(max_new_tokens):
            seen = ids[:, -15:] if self.wrong == "crop" else ids[:, -16:]
            logits = self(seen)[:, 0 if self.wrong == "place" else -1] / temperature
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
        return ids


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [("", None), ("reset", "cache"), ("forgets", "cache"), ("place", "cache"), ("crop", "cache"), ("mode", "mode")],
)
def test_caches_inside_a_module_and_its_own_generation(wrong: str, finding: str | None) -> None:
    found = findings(Subject(Sampler(wrong)))
    assert {r.finding for r in found} == ({finding} if finding else set()), found


@pytest.mark.parametrize(
    "options",
    [
        {"position": "learned"},
        {"position": "rope", "n_kv_head": 2, "norm": "rmsnorm", "norm_bias": False, "mlp": "swiglu"},
        {"position": "rope", "sliding_window": 4},
    ],
)
def test_our_own_model_is_silent(options: dict[str, object]) -> None:
    config = ModelConfig(vocab_size=37, block_size=16, n_layer=2, n_head=4, n_embd=32, **options)
    model = GPT(config)
    model.init_weights(0)
    assert findings(subject_of(model, "ours")) == []


def test_the_subject_and_the_random_state_stay_as_they_were() -> None:
    model = small("batch norm").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(run_checks(CHECKS, Subject(model)))
    assert torch.equal(torch.rand(1), expected) and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
