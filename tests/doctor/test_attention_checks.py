"""The softmax axis, the scale and grouped queries, in several styles, right and wrong."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_programs import C, D, H, Model, alarms, examine, fused, masked, plain
from torch import Tensor, nn

from glassgpt.config import ModelConfig
from glassgpt.doctor.models.wiring.attention import ATTENTION_CHECKS
from glassgpt.doctor.models.wiring.groups import GROUP_CHECKS
from glassgpt.doctor.models.wiring.norms import NORM_CHECKS
from glassgpt.doctor.models.wiring.positions import POSITION_CHECKS
from glassgpt.doctor.models.wiring.residual import RESIDUAL_CHECKS
from glassgpt.doctor.models.wiring.rotations import ROTATION_CHECKS
from glassgpt.model import GPT

CHECKS = (*ATTENTION_CHECKS, *GROUP_CHECKS)


def scaled(factor: float, dim: int = -1, value: float = float("-inf")):
    return lambda q, k, v: F.softmax(masked(q @ k.transpose(-2, -1) * factor, value), dim=dim) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = masked(torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(D)).softmax(-1)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = masked(q @ k.transpose(-2, -1) / math.sqrt(D))
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True) @ v


def with_sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = masked(q @ k.transpose(-2, -1) / math.sqrt(D))
    return torch.cat([scores, torch.zeros_like(scores[..., :1])], -1).softmax(-1)[..., :-1] @ v


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return masked(10 * q @ k.transpose(-2, -1)).softmax(-1) @ v


def masked_after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return masked((q @ k.transpose(-2, -1) / math.sqrt(D)).softmax(-1), 0.0) @ v


@pytest.mark.parametrize("attend", [plain, fused, einsum, by_hand, with_sink, normalised, scaled(1 / D)])
def test_right_attention_raises_nothing(attend):
    assert alarms(CHECKS, Model(attend)) == set()


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_softmax_over_another_axis_is_found(dim):
    assert alarms(CHECKS, Model(scaled(D**-0.5, dim, -1e9))) == {"softmax axis"}


def test_a_mask_after_the_softmax_is_a_leak_of_this_module():
    failures = [o.result for o in examine(CHECKS, Model(masked_after)) if o.result.status == "FAIL"]
    assert [(f.finding, f.module) for f in failures] == [("leak", "blocks.0.attention")]


@pytest.mark.parametrize("factor", [1.0, D**0.5, (H * D) ** -0.5, -(D**-0.5)])
def test_a_wrong_scale_is_found(factor):
    assert alarms(CHECKS, Model(scaled(factor))) == {"scale"}


def test_a_scale_by_the_width_is_no_more_than_a_warning():
    outcomes = examine(CHECKS, Model(scaled((H * D) ** -0.5)))
    assert {o.result.finding for o in outcomes if o.result.status == "WARN"} == {"scale"}
    assert not [o for o in outcomes if o.result.status == "FAIL"]


class Adapted(nn.Module):
    """A matrix with a low-rank change."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(C, 2, bias=False), nn.Linear(2, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_the_scale_of_queries_that_are_a_sum_is_not_measured():
    model = Model(scaled(D**-0.5))
    for block in model.blocks:
        block.attention.q = Adapted(block.attention.q)
    assert alarms(CHECKS, model) == set()


def test_a_scale_applied_before_fused_attention_is_one_too_many():
    assert alarms(CHECKS, Model(lambda q, k, v: fused(q / math.sqrt(D), k, v))) == {"scale"}


def grouped(repeat_k: bool, repeat_v: bool):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (
            x.repeat(1, 2, 1, 1) if wrong else x.repeat_interleave(2, 1) for x, wrong in ((k, repeat_k), (v, repeat_v))
        )
        return plain(q, k, v)

    return attend


def five_dimensions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    B, _, T, _ = q.shape
    scores = torch.einsum("bgrtd,bgsd->bgrts", q.view(B, 2, 2, T, D), k) / math.sqrt(D)
    return torch.einsum("bgrts,bgsd->bgrtd", masked(scores).softmax(-1), v).reshape(B, H, T, D)


@pytest.mark.parametrize("attend", [grouped(False, False), five_dimensions])
def test_consecutive_groups_pass(attend):
    assert alarms(CHECKS, Model(attend, kv_heads=2)) == set()


@pytest.mark.parametrize("wrong", [(True, True), (True, False), (False, True)])
def test_interleaved_groups_are_found(wrong):
    assert alarms(CHECKS, Model(grouped(*wrong), kv_heads=2)) == {"grouped queries"}


def test_our_own_model_raises_nothing_and_everything_is_measured():
    config = ModelConfig(vocab_size=61, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    model = GPT(config)
    model.init_weights(0)
    assert {o.result.status for o in examine(CHECKS, model)} == {"PASS"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT2", "Llama", "Gemma3", "Qwen3", "GPTNeoX", "Bloom", "Falcon", "Mixtral", "OPT"])
def test_published_architectures_raise_nothing(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name in ("Llama", "Gemma3", "Qwen3", "Mixtral"):
        sizes |= {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
    kind = "Gemma3Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    suffix = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{name}{suffix}")(config)
    every = (*CHECKS, *ROTATION_CHECKS, *POSITION_CHECKS, *NORM_CHECKS, *RESIDUAL_CHECKS)
    assert alarms(every, model) == set()
