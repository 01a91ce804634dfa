"""The training loop, in the order in which things happen.

A step: batch k, forward and backward over its micro-batches, clip, check, update. Now and then: validate, save,
sample. Everything that decides what is computed is a function of (configuration, step), so a run that is killed and
resumed writes the same numbers as one that was not. Several processes each take a share of every batch, and end up
with the same gradients; the first of them validates, saves and speaks.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import Signals
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from glassgpt.config import RunConfig
from glassgpt.config.presets import Curve
from glassgpt.data import Batch, Batches, Loader, TokenStream
from glassgpt.data.batches.loader import worker_error
from glassgpt.errors import TrainingStopped
from glassgpt.estimate import LOGITS_AT_A_TIME
from glassgpt.inference.decode import complete
from glassgpt.loss import Evaluation, counting_baselines, evaluate, subset
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime
from glassgpt.sampling import SamplingConfig
from glassgpt.seeds import derive_seed
from glassgpt.shapes import Shape, trace_shapes
from glassgpt.tokenizer import Tokenizer
from glassgpt.training import checkpoint, guard
from glassgpt.training.checkpoint import Run, TrainState
from glassgpt.training.metrics import EvaluationEvent, MetricsLog, Reporter, StepEvent
from glassgpt.training.objective import LossFn, ModelWithLoss, next_token_loss
from glassgpt.training.optim import Optimizers, lr_multiplier
from glassgpt.training.precision import LossScale
from glassgpt.training.profiling import Profile
from glassgpt.transforms.blocks import prepare_blocks
from glassgpt.weights.folder import load_weights

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """How training ended: ``finished``, ``patience``, ``time`` or ``interrupted`` (then with the signal)."""

    run: Run
    reason: str
    step: int
    final: Evaluation | None = None
    bits_per_byte: float | None = None
    interrupted_by: Signals | None = None
    speaks: bool = True  # not so for all but the first of several processes


class Trainer:
    """Trains one model on one stream, from wherever ``state`` stands to the end.

    Args:
        run: the folder to write to.
        config: resolved: steps and intervals are numbers above zero.
        model: with its weights, on the runtime's device, computing in its type.
        optimizers: of that model, with their state.
        stream: tokens and tokenizer.
        runtime: where to compute.
        state: where training stands.
        reporter: told of everything that happens.
        objective: the loss of each token of a batch.
        deadline: a ``time.monotonic`` at which to stop and save; None for none.
        processes: who else trains this model, and this process's place among them.
        predicted: tokens per second that were predicted, to be held against what is measured.
        profile: what to record of the steps; None for nothing.
        expected: the validation losses of the recipe that this run follows; None if it follows none.
    """

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        model: GPT,
        optimizers: Optimizers,
        stream: TokenStream,
        runtime: Runtime,
        state: TrainState,
        *,
        reporter: Reporter | None = None,
        objective: LossFn = next_token_loss,
        deadline: float | None = None,
        processes: Processes | None = None,
        predicted: float | None = None,
        profile: Profile | None = None,
        expected: Curve | None = None,
    ):
        self.run, self.config, self.model, self.optimizers = run, config, model, optimizers
        self.stream, self.runtime, self.state = stream, runtime, state
        self.processes = processes or Processes()
        self.reporter = reporter if reporter and self.processes.is_main else Reporter()
        self.network: torch.nn.Module = ModelWithLoss(model, objective)  # batch in, summed loss out
        self.deadline, self.predicted, self.profile, self.expected = deadline, predicted, profile, expected
        self.tokenizer: Tokenizer = stream.tokenizer
        train, block_size = config.train, model.config.block_size
        self.batches = Batches(stream.train, block_size, train.batch_size, train.seed, config.data.order)
        self.loader = Loader(
            self.batches, self.processes.share(train.batch_size), mask_documents=config.data.mask_documents,
            num_workers=config.runtime.num_workers, pin_memory=runtime.device.type == "cuda",
        )  # fmt: skip
        self.seconds_reading = 0.0  # of the step under way
        self.validation_windows = subset(stream.val, block_size, train.eval_tokens)
        events = run.path / "tensorboard" if train.tensorboard else None
        self.metrics = MetricsLog(run.path / "metrics.jsonl" if self.processes.is_main else None, events, state.step)
        self.native = train.format == "native"
        self.tokens_per_byte = stream.tokens_per_byte
        self.began = time.monotonic()
        self.loop_began, self.steps_timed = self.began, 0
        self.kept_loss = run.best_loss()
        state.micro_batch_size = state.micro_batch_size or train.micro_batch_size or train.batch_size
        self.loss_scale = LossScale.for_dtype(runtime.dtype, state.loss_scale, state.good_steps)
        self.speeds: list[float] = []  # of the first steps, in tokens/s
        self.next_batch: tuple[int, Batch | None] = (0, None)

    def train(self) -> Result:
        """Train to the end, or until told to stop.

        Raises:
            TrainingStopped: after ``max_nonfinite`` non-finite gradients in a row; ``last/`` is from before them.
            DataError: if a process that reads batches has died.
        """
        try:
            return self._train()
        except RuntimeError as error:
            if told := worker_error(error):
                self.loader.close()
                raise told from None
            raise
        finally:
            if self.profile and (report := self.profile.close()):
                self.reporter.note(report)
            self.loader.close()
            self.reporter.finished()
            self.metrics.close()

    def _train(self) -> Result:
        state, train = self.state, self.config.train
        with guard.Interrupts() as interrupts:
            self._begin()
            self.loop_began = time.monotonic()
            while not (reason := self._reason_to_end(interrupts)):
                self._step()
                done = state.step == train.steps
                if done or state.step % train.eval_interval == 0:
                    self._validate()
                if done or state.step % train.save_interval == 0:
                    self._save()
                if train.sample_tokens and state.step % train.sample_interval == 0:
                    self._sample()
            if reason == "time" and state.step % train.eval_interval:
                self._validate()
            if reason != "finished":
                self._save()
            if reason == "interrupted":
                speaks = self.processes.is_main
                return Result(self.run, reason, state.step, interrupted_by=interrupts.received, speaks=speaks)
        return self._finish(reason)  # everything is saved: here Ctrl-C interrupts at once

    def _reason_to_end(self, interrupts: guard.Interrupts) -> str:
        """Why no further step should be taken; empty while one should. All processes end at the same step."""
        return self.processes.broadcast_from_rank0(self._own_reason_to_end(interrupts))

    def _own_reason_to_end(self, interrupts: guard.Interrupts) -> str:
        if self.state.step >= self.config.train.steps:
            return "finished"
        if interrupts.received is not None:
            return "interrupted"
        if 0 < self.config.train.patience <= self.state.evaluations_since_best:
            return "patience"
        late = self.deadline is not None and time.monotonic() > self.deadline
        return "time" if late and self.steps_timed else ""

    def _begin(self) -> None:
        """Show what is about to happen; at step 0, the first validation too."""
        bounds = counting_baselines(self.stream.train, self.stream.val, self.model.config.vocab_size)
        with self._eager():
            shapes = self._within_memory(self._trace)
        recompute = self.config.train.activation_checkpointing
        prepare_blocks(self.model, recompute=recompute, compile=self.runtime.compile)
        if self.processes.world_size > 1:
            devices = [self.runtime.device] if self.runtime.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=devices)
        header = {"device": str(self.runtime.device), "dtype": self.runtime.resolved()["dtype"]}
        if self.processes.world_size > 1:
            header["processes"] = str(self.processes.world_size)
        self.reporter.started(header, shapes, bounds, self.config.train.steps, self.state.step)
        if self.state.step > 0:
            return
        values = {"uniform": bounds.uniform, "unigram": bounds.unigram, "bigram": bounds.bigram}
        self.metrics.append(0, {f"baseline/{name}": value for name, value in values.items()})
        loss = self._validate()
        if abs(loss / bounds.uniform - 1) > 0.05 and not self.config.train.init_from:
            self.reporter.warn(
                f"the initial loss is {loss:.3f}, and ln V is {bounds.uniform:.3f}: a fresh model should know nothing "
                "and be within 5 % of it. Below it, the targets leak; above it, the initial weights are too large"
            )

    def _step(self) -> None:
        """One optimiser step on batch ``state.step``."""
        state, train, optim = self.state, self.config.train, self.config.optim
        began, self.seconds_reading = time.perf_counter(), 0.0
        loss, grad_norm = self._gradients()
        scale = lr_multiplier(state.step, train.steps, optim)
        if math.isfinite(grad_norm):
            self.optimizers.step(scale)
            state.nonfinite_in_a_row = 0
        else:
            self._skip_nonfinite()
        self.loss_scale.update(math.isfinite(grad_norm))
        if self.loss_scale.active:
            state.loss_scale, state.good_steps = self.loss_scale.value, self.loss_scale.good_steps
        self.optimizers.zero_grad()
        state.step += 1
        if self.profile and (report := self.profile.step()):
            self.reporter.note(report)
        seconds = time.perf_counter() - began
        self.steps_timed += 1
        lr, speed = optim.adamw_learning_rate * scale, train.batch_size * self.batches.block_size / seconds
        if state.step % train.log_interval == 0 or state.step == train.steps:
            values = {
                "train/loss": loss,
                "opt/lr": lr,
                "opt/grad_norm": grad_norm,
                "perf/tok_per_s": round(speed),
                "perf/data_share": round(self.seconds_reading / seconds, 5),
            }
            self.metrics.append(state.step, values | self._clock())
        self._compare_with_prediction(speed)
        left = (train.steps - state.step) * (time.monotonic() - self.loop_began) / self.steps_timed
        self.reporter.stepped(StepEvent(state.step, train.steps, loss, lr, grad_norm, speed, left))

    def _compare_with_prediction(self, speed: float) -> None:
        """After 20 steps, say how fast they were, beside what was predicted."""
        if self.predicted is None or self.steps_timed > 20:
            return
        self.speeds.append(speed)
        if self.steps_timed == 20:
            measured = statistics.median(self.speeds)
            self.reporter.note(
                f"measured over 20 steps: {measured:,.0f} tokens/s; predicted: {self.predicted:,.0f} "
                f"({measured / self.predicted - 1:+.0%})"
            )

    def _trace(self) -> list[Shape]:
        return trace_shapes(
            self.model, self._batch(0).micro_batch(0, self.state.micro_batch_size, self.runtime.device).idx
        )

    def _within_memory(self, work: Callable[[], T]) -> T:
        """Do the work, with half the micro-batch for as long as memory runs out."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                alone = self.processes.world_size == 1  # others would wait for gradients that never come
                if not guard.is_out_of_memory(error) or self.state.micro_batch_size == 1 or not alone:
                    raise
            self._halve_micro_batch()  # here, where the error no longer holds on to the activations

    def _gradients(self) -> tuple[float, float]:
        """Gradients of the whole batch, clipped; the loss and the gradient norm before clipping.

        Where memory runs out, the micro-batch is halved and the batch begun again, which (without dropout) changes
        nothing but rounding. Where the compiler fails, the batch is begun again without it.
        """
        try:
            loss = self._within_memory(self._accumulate)
        except RuntimeError as error:
            if not guard.is_compile_failure(error):
                raise
            self._stop_compiling(error)
            loss = self._within_memory(self._accumulate)
        weights = self.optimizers.weights
        gradients = weights.gradients()
        if self.loss_scale.active:
            for gradient in gradients:
                gradient.mul_(1 / self.loss_scale.value)
        norm = torch.nn.utils.get_total_norm(gradients)
        size = float(norm)
        if self.config.train.grad_clip and math.isfinite(size):  # else leave the evidence as it is
            torch.nn.utils.clip_grads_with_norm_(weights.named.values(), self.config.train.grad_clip, norm)
        return loss, size

    def _accumulate(self) -> float:
        """Forward and backward over micro-batches; gradients add up to those of the mean over the whole batch."""
        batch, processes = self._batch(self.state.step), self.processes
        # Dropout is a function of (seed, step, rank), as the batch is, so no random state needs saving.
        torch.manual_seed(derive_seed(self.config.train.seed, "dropout", self.state.step, processes.rank))
        self.model.train()
        counted = int(processes.sum(torch.tensor(batch.num_loss_tokens())))
        # The processes' gradients are averaged, and their sum is wanted.
        weight = self.loss_scale.value * processes.world_size / counted
        total = torch.zeros((), device=self.runtime.device)
        starts = range(0, len(batch.idx), self.state.micro_batch_size)
        for start in starts:
            micro = batch.micro_batch(start, start + self.state.micro_batch_size, self.runtime.device)
            with self._exchange(start == starts[-1]):
                loss = self.network(micro)
                (loss * weight).backward()
            self.optimizers.weights.collect()
            total += loss.detach()
        self.next_batch = self.state.step + 1, self._read(self.state.step + 1)  # while a GPU still computes
        return float(processes.sum(total)) / counted

    def _exchange(self, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Exchange gradients with the other processes in this backward pass, or only add them up."""
        if not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        if not now:
            return self.network.no_sync()
        self.optimizers.weights.hand_back()
        return contextlib.nullcontext()

    def _batch(self, k: int) -> Batch:
        """This process's rows of batch k, which may have been read ahead."""
        number, batch = self.next_batch
        return batch if batch is not None and number == k else self._read(k)

    def _read(self, k: int) -> Batch:
        began = time.perf_counter()
        batch = self.loader.get(k)
        self.seconds_reading += time.perf_counter() - began
        return batch

    def _stop_compiling(self, error: RuntimeError) -> None:
        """Go on in eager mode: slower, and the same."""
        self.optimizers.zero_grad()
        for block in self.model.blocks:
            block._compiled_call_impl = None
        reason = str(error).strip().splitlines()[0][:200]
        self.reporter.warn(f"torch.compile does not work here ({reason}); going on without it")

    def _halve_micro_batch(self) -> None:
        self.optimizers.zero_grad()
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        self.state.micro_batch_size = (self.state.micro_batch_size + 1) // 2
        message = f"out of memory: the micro-batch is now {self.state.micro_batch_size}; the batch stays the same"
        self.reporter.warn(message)
        self.metrics.append(self.state.step, {"event": message})

    def _skip_nonfinite(self) -> None:
        """Leave the weights alone after a bad gradient; give up after too many in a row."""
        if self.loss_scale.mends:
            return  # float16 overflowed; the scale comes down
        state, limit = self.state, self.config.train.max_nonfinite
        name = (
            guard.first_nonfinite(self.optimizers.weights.named) or "none: finite by themselves, their norm overflows"
        )
        state.nonfinite_in_a_row += 1
        message = f"step {state.step + 1}: the gradient is not finite (first bad tensor: {name}); step skipped"
        self.reporter.warn(message)
        self.metrics.append(state.step + 1, {"event": message})
        if state.nonfinite_in_a_row >= limit:
            kept = f"{self.run.last} is from before" if self.run.last.exists() else "no checkpoint was due yet"
            raise TrainingStopped(
                f"the gradient was not finite {limit} times in a row; at step {state.step + 1}, first in {name}; "
                f"{kept}. "
                "Try a learning rate of one third, a longer warmup_steps, or dtype=float32"
            )

    @contextlib.contextmanager
    def _eager(self) -> Iterator[None]:
        """Without the compiled blocks, in eval mode: validation and samples come in shapes of their own."""
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):
            yield

    def _validate(self) -> float:
        """Loss on the fixed subset; keeps the weights as ``best/`` if it is the lowest so far."""
        state = self.state
        result = self.processes.broadcast_from_rank0(
            self._evaluate(self.validation_windows) if self.processes.is_main else None
        )
        bits = result.bits_per_byte(self.tokens_per_byte)
        is_best = state.best_loss is None or result.loss < state.best_loss
        if is_best:
            state.best_loss, state.best_step, state.evaluations_since_best = result.loss, state.step, 0
            better = self.kept_loss is None or result.loss < self.kept_loss  # best/ may be newer than the checkpoint
            if better and self.processes.is_main:
                checkpoint.save_best(self.run, self.optimizers, self.tokenizer, state, self.native)
                self.kept_loss = result.loss
        else:
            state.evaluations_since_best += 1
        self.metrics.append(state.step, {"val/loss": result.loss, "val/bpb": bits} | self._clock())
        expected = self.expected.band(state.step) if self.expected else None
        self.reporter.evaluated(EvaluationEvent(state.step, result, bits, is_best, expected))
        return result.loss

    def _evaluate(self, windows: np.ndarray | None) -> Evaluation:
        """Loss on some windows of the validation split, or on all of it.

        A pass is about 8,192 tokens, but no more rows than fit if memory has run out before.
        """
        train, block_size = self.config.train, self.batches.block_size
        rows = max(1, min(8192 // block_size, LOGITS_AT_A_TIME // (block_size * self.model.config.vocab_size)))
        if self.state.micro_batch_size < (train.micro_batch_size or train.batch_size):
            rows = min(rows, self.state.micro_batch_size)
        with self._eager():
            return evaluate(
                self.model, self.stream.val, block_size, self.runtime.device, starts=windows, batch_size=rows,
                mask_documents=self.config.data.mask_documents,
            )  # fmt: skip

    def _save(self) -> None:
        if self.processes.is_main:
            checkpoint.save_checkpoint(self.run.last, self.optimizers, self.tokenizer, self.state, self.native)
            if self.state.step % self.config.train.save_interval == 0 or self.state.step == self.config.train.steps:
                checkpoint.keep_numbered(self.run, self.state.step, self.config.train.keep_checkpoints)

    def _sample(self) -> None:
        if not self.processes.is_main:
            return
        with self._eager():
            text = complete(
                self.model, self.tokenizer, [""], self.config.train.sample_tokens,
                SamplingConfig(temperature=0.8), seed=self.state.step,
            )[0]  # fmt: skip
        self.reporter.sampled(self.state.step, text)

    def _finish(self, reason: str) -> Result:
        """Evaluate the best weights on the whole validation split."""
        if not self.processes.is_main:
            return Result(self.run, reason, self.state.step, speaks=False)
        self.reporter.note("validating the best weights on the whole validation split")
        if self.optimizers.weights.separate:  # what is published is float32
            self.model = GPT(self.model.config).to(self.runtime.device)
        load_weights(self.run.best, self.model)
        final = self._evaluate(None)
        bits = final.bits_per_byte(self.tokens_per_byte)
        values = {
            "final/val_loss": final.loss,
            "final/val_bpb": bits,
            "final/best_step": self.state.best_step,
        }
        self.metrics.append(self.state.step, values | self._clock())
        return Result(self.run, reason, self.state.step, final, bits)

    def _clock(self) -> dict[str, float]:
        return {"time/elapsed_s": round(time.monotonic() - self.began, 3)}
