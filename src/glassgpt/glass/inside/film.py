"""The same prompt at every checkpoint of a run: text, loss, logit lens, attention, and the statistics of every head."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import RuntimeConfig
from glassgpt.files import Progress
from glassgpt.glass.inside.heads import head_name
from glassgpt.glass.inside.lens import lens
from glassgpt.glass.inside.prompt import Prompt, read_prompt
from glassgpt.glass.inside.repeated import Repeated, measure_repeated
from glassgpt.inference.decode import complete
from glassgpt.model import GPT
from glassgpt.recording import evaluation_mode, watch
from glassgpt.runtime import resolve
from glassgpt.sampling import SamplingConfig
from glassgpt.tokenizer import Tokenizer
from glassgpt.training.checkpoint import Run
from glassgpt.weights.loading import load_source
from glassgpt.weights.resolve import open_folder

#: A head is an induction head if its score is more than this share of the way from chance to 1. That is more than a
#: head that looks back by a fixed distance can have.
INDUCTION_SHARE = 0.25


@dataclass(frozen=True)
class Frame:
    """A checkpoint of a model with L layers of H heads, and a prompt of T tokens.

    Attributes:
        step: its training step.
        text: the continuation that it writes.
        loss: of the prompt, in nats per token; NaN for a prompt of one token.
        lens_tokens, lens_probability: the most likely token after the prompt by the logit lens, and its probability,
            ``[L + 1]``: after the embeddings and after each block. The last is what the model predicts.
        lens_texts: ``lens_tokens`` as printable texts.
        attention: the weights from the last position of the prompt, ``[L, H, T]``.
        repeated: every head, and the loss, on random tokens that are repeated.
    """

    step: int
    text: str
    loss: float
    lens_tokens: np.ndarray
    lens_probability: np.ndarray
    lens_texts: list[str]
    attention: np.ndarray
    repeated: Repeated

    @property
    def decided_in(self) -> int:
        """The first row of the lens from which on all predict what the model predicts: 0 is the embeddings."""
        other = np.flatnonzero(self.lens_tokens != self.lens_tokens[-1])
        return int(other[-1]) + 1 if len(other) else 0

    def best_head(self, statistic: str) -> tuple[int, int]:
        """Return the layer and head with the largest value of a statistic on repeated tokens; the smallest entropy."""
        values = self.repeated.statistics[statistic]
        layer, head = divmod(int(values.argmin() if statistic == "entropy" else values.argmax()), values.shape[1])
        return layer, head

    def best(self, statistic: str) -> float:
        """Return the value of that head."""
        return float(self.repeated.statistics[statistic][self.best_head(statistic)])


@dataclass(frozen=True)
class Film:
    """A prompt at the checkpoints of a run, by step."""

    run: Run
    prompt: Prompt
    frames: list[Frame]

    @property
    def steps(self) -> list[int]:
        """The training steps of the checkpoints, ascending."""
        return [frame.step for frame in self.frames]

    @property
    def chance(self) -> float:
        """The induction score of a head that attends to all positions alike."""
        return self.frames[0].repeated.chance

    @property
    def threshold(self) -> float:
        """The induction score above which a head counts as an induction head."""
        return self.chance + INDUCTION_SHARE * (1 - self.chance)

    @property
    def induction(self) -> int | None:
        """The index of the first frame with an induction head; None if there is none."""
        return next((i for i, frame in enumerate(self.frames) if frame.best("induction") > self.threshold), None)

    def curve(self, statistic: str) -> np.ndarray:
        """Return a statistic of every head at every step, ``[S, L, H]``."""
        return np.stack([frame.repeated.statistics[statistic] for frame in self.frames])


def film(
    run: Run | str | Path,
    prompt: str,
    *,
    steps: Sequence[int] = (),
    every: int = 0,
    max_new_tokens: int = 40,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Film:
    """Show one prompt to the checkpoints of a run. One model at a time is in memory.

    Args:
        run: the run, or its folder.
        prompt: the text that the models read.
        steps: of the checkpoints; by default all that the run has.
        every: only steps that it divides, and the last one; 0: all.
        max_new_tokens: tokens that each writes, at most.
        sampling: how they are chosen; temperature 0.8 by default.
        seed: of the sampled texts, and of the repeated random tokens.
        device: as in RuntimeConfig.
        progress: called with a label, the checkpoints done, and their number.

    Raises:
        CheckpointError: if the run, or a checkpoint of it, is not found or is damaged.
        GlassError: if a model cannot read the prompt, or its numbers are not finite.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    folders, where = _folders(run, steps, every), resolve(RuntimeConfig(device=device)).device
    read, frames = Prompt([], []), list[Frame]()
    for step, folder in folders.items():
        if progress:
            progress("filming", len(frames), len(folders))
        model, tokenizer = load_source(open_folder(folder), device=where)
        read = read_prompt(model, tokenizer, prompt)
        text = complete(model, tokenizer, [prompt], max_new_tokens, sampling or SamplingConfig(0.8), seed=seed)[0]
        frames.append(_examine(model, tokenizer, prompt, read, step, text, seed))
        del model  # before the next one is loaded
    return Film(run, read, frames)


def _folders(run: Run, steps: Sequence[int], every: int) -> dict[int, Path]:
    """Return the checkpoints to load, by step.

    Raises:
        CheckpointError: if the run has none, or not those.
    """
    run.config()  # or a message that this is not a run
    if steps:
        return {step: run.at_step(step) for step in sorted(set(steps))}
    found = run.models_by_step() or {0: run.best_or_last()}  # which says that there is none
    return {step: folder for step, folder in found.items() if not every or step % every == 0 or step == max(found)}


def _examine(model: GPT, tokenizer: Tokenizer, prompt: str, read: Prompt, step: int, text: str, seed: int) -> Frame:
    seen = lens(model, tokenizer, prompt)
    return Frame(
        step=step,
        text=text,
        loss=_loss(model, read),
        lens_tokens=seen.tokens[:, -1],
        lens_probability=seen.probability[:, -1],
        lens_texts=[row[-1] for row in seen.texts],
        attention=_last_attention(model, read),
        repeated=measure_repeated(model, tokenizer, seed),
    )


@torch.no_grad()
def _last_attention(model: GPT, prompt: Prompt) -> np.ndarray:
    """Return the attention weights from the last position, ``[L, H, T]``; one layer's whole weights are in memory."""
    rows: list[np.ndarray] = []

    def see(name: str, layer: int | None, tensor: Tensor) -> None:
        if name == "attention weights":
            rows.append(tensor[0, :, -1].float().cpu().numpy().copy())

    with evaluation_mode(model), watch(model, see):
        model(prompt.idx(model), apply_head=False)
    return np.stack(rows)


@torch.no_grad()
def _loss(model: GPT, prompt: Prompt) -> float:
    idx = prompt.idx(model)
    return float(F.cross_entropy(model(idx)[0, :-1].double(), idx[0, 1:]))


def describe_induction(film: Film) -> str:
    """Say in a sentence between which checkpoints induction appears, and in which head."""
    index = film.induction
    frame = max(film.frames, key=lambda frame: frame.best("induction")) if index is None else film.frames[index]
    head, score = head_name(frame.best_head("induction")), f"{frame.best('induction'):.3f}"
    rule = f"(an induction head has more than {film.threshold:.3f}; chance is {film.chance:.3f})"
    if index is None:
        return f"no induction head up to step {film.steps[-1]:,}; the largest score is {score}, of head {head} {rule}"
    if index == 0:
        return f"head {head} is an induction head at step {frame.step:,}, the first shown: score {score} {rule}"
    before = film.frames[index - 1]
    return (
        f"induction appears between step {before.step:,} and {frame.step:,} in head {head}: the largest score rises "
        f"from {before.best('induction'):.3f} to {score} {rule}"
    )


def spread(count: int, at_most: int) -> list[int]:
    """Choose so many of the indices below ``count``, evenly spread, with the first and the last."""
    return sorted(set(np.linspace(0, count - 1, min(count, at_most)).round().astype(int).tolist()))
