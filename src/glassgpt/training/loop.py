"""The training loop, in the order in which things happen. It trains any :class:`~glassgpt.training.task.Task`.

A step: batch k, forward and backward over its micro-batches, clip, check, update. Now and then: validate, save,
sample. Everything that decides what is computed is a function of (configuration, step), so a run that is killed and
resumed writes the same numbers as one that was not. Several processes each take a share of every batch and end up
with the same gradients. All of them step, validate, sample and save together; rank 0 writes files and logs.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING

import torch

from glassgpt.config import RunConfig
from glassgpt.data.batch import Batch
from glassgpt.data.batches.loader import worker_error
from glassgpt.errors import TrainingStopped
from glassgpt.loss import Evaluation
from glassgpt.model import GPT
from glassgpt.processes import Processes
from glassgpt.runtime import Runtime
from glassgpt.seeds import derive_seed
from glassgpt.shapes import Shape, trace_shapes
from glassgpt.training import guard
from glassgpt.training.checkpoint import CheckpointWriter, Run, TrainState
from glassgpt.training.graphs import with_graphs
from glassgpt.training.metrics import COMPARED_AFTER, EvaluationEvent, MetricsLog, Reporter, SpeedCheck, StepEvent
from glassgpt.training.objective import ModelWithLoss
from glassgpt.training.optim import Optimizers, lr_multiplier
from glassgpt.training.precision import LossScale
from glassgpt.training.profiling import Profile
from glassgpt.training.step import StepResult, train_step
from glassgpt.training.task import Task
from glassgpt.training.trackers import open_trackers
from glassgpt.transforms.blocks import prepare_blocks
from glassgpt.transforms.lora import is_lora
from glassgpt.transforms.parallel import is_sharded, wrap_for_gradient_sync
from glassgpt.weights.loading import load_into
from glassgpt.weights.resolve import open_folder

if TYPE_CHECKING:
    from glassgpt.config.presets import Curve


@dataclass(frozen=True)
class Result:
    """How training ended: ``finished``, ``patience``, ``time`` or ``interrupted`` (then with the signal).

    ``final`` is the evaluation of the best weights on the full validation split.
    """

    run: Run
    reason: str
    step: int
    final: Evaluation | None = None
    interrupted_by: Signals | None = None
    is_main_process: bool = True


class Trainer:
    """Trains one model on one task, from the step in ``state`` to the end.

    Args:
        run, config: the folder to write to; the resolved configuration: steps and intervals are above zero.
        model, optimizers: with weights and state, on the runtime's device, computing in its dtype.
        task: the batches, the objective, the validation.
        runtime, state: where to compute; the position in training.
        reporter: receives everything that happens.
        deadline: a ``time.monotonic`` at which to stop and save; None for none.
        processes: the processes that train this model.
        predicted: tokens per second, to compare with the measured ones.
        refit: returns the configuration that fits the measured tokens per second after some steps; None to keep it.
        next_config: the configuration from a later step on, at which an earlier process of this run was refitted.
        profile, expected: a profiler, and the losses of the recipe that this run follows, if any.
    """

    def __init__(
        self,
        run: Run,
        config: RunConfig,
        model: GPT,
        optimizers: Optimizers,
        task: Task,
        runtime: Runtime,
        state: TrainState,
        *,
        reporter: Reporter | None = None,
        deadline: float | None = None,
        processes: Processes | None = None,
        predicted: float | None = None,
        refit: Callable[[int, float], RunConfig | None] | None = None,
        next_config: tuple[int, RunConfig] | None = None,
        profile: Profile | None = None,
        expected: "Curve | None" = None,
    ):
        self.run, self.config, self.model, self.optimizers = run, config, model, optimizers
        self.task, self.runtime, self.state = task, runtime, state
        self.processes = processes or Processes()
        self.reporter = reporter if reporter and self.processes.is_main else Reporter()
        self.loss_module: torch.nn.Module = ModelWithLoss(model, task.loss)
        self.deadline, self.profile, self.expected = deadline, profile, expected
        self.checkpoints = CheckpointWriter(
            run, model, optimizers, task.tokenizer, config.train, self.processes, config.tune
        )
        self.metrics = MetricsLog(None)
        if self.processes.is_main:
            self.metrics = MetricsLog(run.path / "metrics.jsonl", open_trackers(run.path, config, state.step))
        state.micro_batch_size = state.micro_batch_size or config.train.micro_batch_size or task.batch_size
        self.loss_scale = LossScale.for_dtype(runtime.dtype, state.loss_scale, state.growth_tracker)
        self.recovery = guard.Recovery(
            model, optimizers, state, self.loss_scale, task.rows_together, self.processes, self.reporter, self.metrics
        )
        self.saved_best_loss = run.best_loss() if self.processes.is_main else None
        self.next_batch: tuple[int, Batch | None] = (0, None)
        self.began = self.loop_began = time.monotonic()
        self.steps_timed, self.data_seconds = 0, 0.0
        self.speed_check = SpeedCheck(predicted)
        self.refit, self.next_config = refit, next_config
        self.refit_step = min(COMPARED_AFTER, config.train.steps // 2) if refit and state.step == 0 else 0

    def train(self) -> Result:
        """Train to the end, or until something stops it.

        Raises:
            TrainingStopped: after ``max_nonfinite`` non-finite gradients in a row, when a validation loss or a weight
                is not finite, or when a file cannot be written; ``last/`` is from before.
            DataError: if a process that reads batches has died.
        """
        try:
            return self._train()
        except RuntimeError as error:
            if user_error := worker_error(error):
                raise user_error from None
            raise
        except OSError as error:
            if error.filename is None:  # not of a file
                raise
            raise TrainingStopped(  # disk full, read-only, quota
                f"step {self.state.step}: {error.filename}: {error.strerror}; {guard.describe_kept(self.run.last)}"
            ) from None
        finally:
            self.task.close()
            if self.profile and (report := self.profile.close()):
                self.reporter.note(report)
            self.reporter.on_end()
            self.metrics.close()

    def _train(self) -> Result:
        state = self.state
        with guard.Interrupts() as interrupts:
            self._setup()
            self.loop_began = time.monotonic()
            while not (reason := self._reason_to_stop(interrupts)):
                self._step()
                train = self.config.train  # which a step may change
                done = state.step == train.steps
                if done or state.step % train.eval_interval == 0:
                    self._validate()
                if train.keep_every and (done or state.step % train.keep_every == 0):
                    self._save_kept()  # before last/, or else a run killed between the two would lack it
                if done or state.step % train.save_interval == 0:
                    self._save_last()
                if train.sample_tokens and state.step % train.sample_interval == 0:
                    self._sample()
            if reason == "time" and state.step % self.config.train.eval_interval:
                self._validate()
            if reason in ("time", "patience") and self.config.train.keep_every:
                self._save_kept()
            if reason != "finished":
                self._save_last()
            result = Result(self.run, reason, state.step, is_main_process=self.processes.is_main)
            if reason == "interrupted":
                return dataclasses.replace(result, interrupted_by=interrupts.received)
        return dataclasses.replace(result, final=self._final_evaluation())  # all is saved: Ctrl-C interrupts at once

    def _reason_to_stop(self, interrupts: guard.Interrupts) -> str:
        """Why to stop before the next step; empty to continue. All processes stop at the same step, as rank 0 says."""
        late = self.deadline is not None and time.monotonic() > self.deadline and self.steps_timed
        reasons = {
            "finished": self.state.step >= self.config.train.steps,
            "interrupted": interrupts.received is not None,
            "patience": 0 < self.config.train.patience <= self.state.evaluations_since_best,
            "time": bool(late),
        }
        return self.processes.broadcast_from_rank0(next((reason for reason, holds in reasons.items() if holds), ""))

    def _setup(self) -> None:
        """Trace the shapes, compile, wrap in DDP, report the start; at step 0 also validate."""
        self.saved_best_loss = self.processes.broadcast_from_rank0(self.saved_best_loss)
        best_is_lost = self.state.best_loss is not None and self.saved_best_loss is None
        self.refit_step = self.processes.broadcast_from_rank0(self.refit_step)
        with self._eager():
            shapes = self.recovery.retry(self._trace)
        prepare_blocks(
            self.model, self.config.train.activation_checkpointing, self.runtime.compile, self.runtime.attention
        )
        header = {"device": str(self.runtime.device), "dtype": self.runtime.resolved()["dtype"]}
        if self.processes.world_size > 1:
            self.loss_module = wrap_for_gradient_sync(self.loss_module)
            header["processes"] = str(self.processes.world_size)
        else:
            self.loss_module = with_graphs(self.loss_module, self.config, self.runtime, self.reporter.note)
        baselines = self.task.baselines()
        self.reporter.on_start(header, shapes, baselines, self.config.train.steps, self.state.step)
        self.checkpoints.delete_kept_after(self.state.step)
        if best_is_lost:
            self.reporter.warn(f"{self.run.best} is missing or damaged: the best weights from here on are kept")
            self.state.best_loss, self.state.evaluations_since_best = None, 0
            self._validate()
        if self.state.step > 0:
            return
        if self.config.train.keep_every:
            self._save_kept()
        if baselines is not None:
            values = dataclasses.asdict(baselines)
            self.metrics.append(0, {f"baseline/{name}": value for name, value in values.items()})
        if warning := self.task.initial_loss_warning(self._validate()):
            self.reporter.warn(warning)

    def _trace(self) -> list[Shape]:
        idx = self._batch(0).micro_batch(0, self.recovery.micro_batch_size, self.runtime.device).idx
        return trace_shapes(self.model, idx)

    def _step(self) -> None:
        """One optimiser step on batch ``state.step``."""
        state, train = self.state, self.config.train
        began, self.data_seconds = time.perf_counter(), 0.0
        multiplier = lr_multiplier(state.step, train.steps, self.config.optim)
        result = self.recovery.retry(lambda: self._train_step(multiplier))
        if result.is_finite:
            state.nonfinite_in_a_row = 0
        else:
            self.recovery.skip_nonfinite(train.max_nonfinite, self.run.last)
        self.loss_scale.update(result.is_finite)
        if self.loss_scale.active:
            state.loss_scale, state.growth_tracker = self.loss_scale.value, self.loss_scale.growth_tracker
        self.optimizers.zero_grad()
        state.step += 1
        if self.profile and (report := self.profile.step()):
            self.reporter.note(report)
        self._report_step(result, self.optimizers.learning_rates(multiplier), time.perf_counter() - began)
        self._change_config()

    def _train_step(self, multiplier: float) -> StepResult:
        """The step itself. Dropout is a function of (seed, step, rank), as the batch is: no random state is saved."""
        state, train = self.state, self.config.train
        batch = self._batch(state.step)
        torch.manual_seed(derive_seed(train.seed, "dropout", state.step, self.processes.rank))
        self.model.train()
        return train_step(
            self.loss_module, self.optimizers, batch, self.task.count(batch),
            micro_batch_size=self.recovery.micro_batch_size, lr_multiplier=multiplier, grad_clip=train.grad_clip,
            device=self.runtime.device, loss_scale=self.loss_scale, processes=self.processes,
            while_computing=self._read_ahead,
        )  # fmt: skip

    def _batch(self, k: int) -> Batch:
        """This process's rows of batch k, which may have been read ahead."""
        number, batch = self.next_batch
        return batch if batch is not None and number == k else self._read(k)

    def _read_ahead(self) -> None:
        self.next_batch = self.state.step + 1, self._read(self.state.step + 1)

    def _read(self, k: int) -> Batch:
        began = time.perf_counter()
        batch = self.task.batch(k)
        self.data_seconds += time.perf_counter() - began
        return batch

    def _report_step(self, result: StepResult, learning_rates: dict[str, float], seconds: float) -> None:
        """Write the metrics, show the step, and compare the speed with the prediction."""
        state, train = self.state, self.config.train
        self.steps_timed += 1
        speed = self.task.tokens_per_step / seconds
        if state.step % train.log_interval == 0 or state.step == train.steps:
            values = {"train/loss": result.loss, "opt/grad_norm": result.grad_norm, "perf/tok_per_s": round(speed)}
            values |= {f"opt/{name}_lr": rate for name, rate in learning_rates.items()}
            values |= {"perf/data_time_frac": round(self.data_seconds / seconds, 5)}
            self.metrics.append(state.step, values | self._elapsed())
        if note := self.speed_check.add(speed):
            self.reporter.note(note)
        left = (train.steps - state.step) * (time.monotonic() - self.loop_began) / self.steps_timed
        event = StepEvent(state.step, train.steps, result.loss, learning_rates, result.grad_norm, speed, left)
        self.reporter.on_step(event)

    def _change_config(self) -> None:
        """Refit the configuration, once, to the speed of the first steps; a resumed run does so at the same step."""
        step = self.state.step
        if step == self.refit_step:
            config = self.refit(step, self.speed_check.median()) if self.refit else None
            config = self.processes.broadcast_from_rank0(config)
            self.next_config = (step, config) if config else None
        if self.next_config and step == self.next_config[0]:
            self.config = self.next_config[1]
            self.checkpoints.config = self.config.train

    @contextlib.contextmanager
    def _eager(self) -> Iterator[None]:
        """Eval mode, without the compiled blocks: validation and samples have shapes of their own."""
        self.model.eval()
        with self.runtime.eager():
            yield

    def _evaluate(self, full: bool = False) -> Evaluation:
        """The task's validation; in smaller passes if memory has run out before."""
        halved = self.state.micro_batch_size < (self.config.train.micro_batch_size or self.task.batch_size)
        max_rows = self.recovery.micro_batch_size if halved else None
        with self._eager():
            found = self.task.validate(self.model, full=full, max_rows=max_rows)
        if not math.isfinite(found.loss):
            self.recovery.require_finite(self.run.last, found.loss)
        return found

    def _save_last(self) -> None:
        self.recovery.require_finite(self.run.last)
        self.checkpoints.save_last(self.state)

    def _save_kept(self) -> None:
        self.recovery.require_finite(self.run.last)
        self.checkpoints.save_kept(self.state)

    def _validate(self) -> float:
        """Evaluate the weights, and their average if there is one, on the validation subset.

        The better of the two is saved as ``best/`` if its loss is the lowest so far. Returns the loss of the weights.
        """
        state, average, found, ema_loss = self.state, self.optimizers.average, self._evaluate(), None
        if average and average.updates:
            with average.in_model():
                ema_loss = self._evaluate().loss
        loss = found.loss if ema_loss is None else min(found.loss, ema_loss)
        is_best = state.best_loss is None or loss < state.best_loss
        if is_best:
            state.best_loss, state.best_step, state.evaluations_since_best = loss, state.step, 0
            if self.saved_best_loss is None or loss < self.saved_best_loss:  # best/ may be newer than last/
                with average.in_model() if average and loss < found.loss else contextlib.nullcontext():
                    self.checkpoints.save_best(state)
                self.saved_best_loss = loss
        else:
            state.evaluations_since_best += 1
        values = {"val/loss": found.loss, "val/bpb": found.bits_per_byte}
        values |= {} if ema_loss is None else {"val/ema_loss": ema_loss}
        self.metrics.append(state.step, values | self._elapsed())
        expected = self.expected.band(state.step) if self.expected else None
        self.reporter.on_eval(EvaluationEvent(state.step, found, is_best, expected, ema_loss))
        return found.loss

    def _sample(self) -> None:
        with self._eager():
            text = self.task.sample(self.model, seed=self.state.step)
        self.reporter.on_sample(self.state.step, text)

    def _final_evaluation(self) -> Evaluation:
        """Evaluate the best weights, in float32 as they were saved, on the full validation split."""
        self.reporter.note("validating the best weights on the full validation split")
        if self.optimizers.weights.separate or is_sharded(self.model) or is_lora(self.model):
            self.model = GPT(self.model.config).to(self.runtime.device)
        load_into(self.model, open_folder(self.run.best))
        found = self._evaluate(full=True)
        values = {"final/val_loss": found.loss, "final/val_bpb": found.bits_per_byte}
        self.metrics.append(self.state.step, values | {"final/best_step": self.state.best_step} | self._elapsed())
        return found

    def _elapsed(self) -> dict[str, float]:
        return {"time/elapsed_s": round(time.monotonic() - self.began, 3)}
