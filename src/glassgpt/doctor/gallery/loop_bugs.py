"""Bugs of training loops, as changes of the loop programs."""

from glassgpt.doctor.gallery.bug import Bug

#: The correct loop programs of the gallery. Each has `loop(seed=0, size=1, dtype="float32")`.
LOOP_PROGRAMS: tuple[str, ...] = ("loop_script", "loop_lecture", "loop_trainer", "loop_tuning")

_SCRIPT_STEP = "        optimizer.step()\n        optimizer.zero_grad(set_to_none=True)\n"
_SCRIPT_CLIP = "        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)\n"
_TRAINER_CLIP = "        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)\n"
_TUNING_CLIP = "        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)\n"

LOOP_BUGS: tuple[Bug, ...] = (
    Bug(
        "no-zero-grad",
        "gradients not cleared",
        "The gradients are never cleared, so each step adds to all the steps before.",
        {
            "loop_script": ((_SCRIPT_STEP, "        optimizer.step()\n"),),
            "loop_lecture": (("        optimizer.zero_grad(set_to_none=True)\n", ""),),
            "loop_trainer": (("        self.optimizer.zero_grad()\n", ""),),
            "loop_tuning": (("        self.optimizer.zero_grad(set_to_none=False)\n", ""),),
        },
    ),
    Bug(
        "zero-grad-before-step",
        "no update",
        "The gradients are cleared between backward and the optimiser's step.",
        {
            "loop_lecture": (
                (
                    "        optimizer.zero_grad(set_to_none=True)\n        loss.backward()\n",
                    "        loss.backward()\n        optimizer.zero_grad()\n",
                ),
            ),
            "loop_script": (
                (_SCRIPT_STEP, "        optimizer.zero_grad(set_to_none=False)\n        optimizer.step()\n"),
            ),
        },
    ),
    Bug(
        "accumulation-not-divided",
        "accumulation",
        "The losses of the micro-batches are added without dividing by their number.",
        {
            "loop_script": (("part = loss(x, y) / accum", "part = loss(x, y)"),),
            "loop_trainer": (("self.scaler.scale(loss / len(batches))", "self.scaler.scale(loss)"),),
        },
    ),
    Bug(
        "accumulation-divided-twice",
        "accumulation",
        "The loss is divided by the number of micro-batches, and so is the gradient.",
        {
            "loop_script": (
                (_SCRIPT_CLIP, "        for p in model.parameters():\n            p.grad /= accum\n" + _SCRIPT_CLIP),
            ),
            "loop_tuning": (("(total / trained).backward()", "(total / trained / self.accum).backward()"),),
        },
    ),
    Bug(
        "mean-of-means",
        "accumulation",
        "Each micro-batch is averaged by itself, though they train different numbers of tokens.",
        {
            "loop_tuning": (
                (
                    "total, _ = self.summed_loss(x, y)\n            (total / trained)",
                    "total, own = self.summed_loss(x, y)\n            (total / own / self.accum)",
                ),
            )
        },
    ),
    Bug(
        "only-the-last-micro-batch",
        "accumulation",
        "The gradients are cleared inside the loop over micro-batches: only the last one counts.",
        {
            "loop_script": (
                (
                    "            part = loss(x, y) / accum\n",
                    "            optimizer.zero_grad()\n            part = loss(x, y) / accum\n",
                ),
            ),
            "loop_tuning": (
                (
                    "        for x, y in micro:\n",
                    "        for x, y in micro:\n            self.optimizer.zero_grad()\n",
                ),
                ("        self.optimizer.zero_grad(set_to_none=False)\n", ""),
            ),
            "loop_trainer": (
                (
                    "        for x, y in batches:\n            loss = self.loss(x, y)\n",
                    "        for x, y in batches:\n"
                    "            self.model.zero_grad()\n"
                    "            loss = self.loss(x, y)\n",
                ),
            ),
        },
    ),
    Bug(
        "backward-outside-the-loop",
        "accumulation",
        "backward() is indented one level too little, and runs for the last micro-batch alone.",
        {
            "loop_script": (("            part.backward()\n", "        part.backward()\n"),),
            "loop_tuning": (
                (
                    "            (total / trained).backward()\n            report += float(total.detach() / trained)\n",
                    "            report += float(total.detach() / trained)\n        (total / trained).backward()\n",
                ),
            ),
        },
    ),
    Bug(
        "step-per-micro-batch",
        "accumulation",
        "The optimiser steps after each micro-batch.",
        {
            "loop_script": (
                (
                    "            part.backward()\n" + _SCRIPT_CLIP + _SCRIPT_STEP,
                    "            part.backward()\n"
                    "    " + _SCRIPT_CLIP + "            optimizer.step()\n"
                    "            optimizer.zero_grad()\n",
                ),
            )
        },
    ),
    Bug(
        "one-batch-drawn-for-all",
        "accumulation",
        "The batch is drawn once, before the loop over micro-batches.",
        {
            "loop_script": (
                (
                    "        total = 0.0\n        for i in range(accum):\n",
                    '        total = 0.0\n        drawn = get_batch("train")\n        for i in range(accum):\n',
                ),
                ('micro[i] if micro else get_batch("train")', "micro[i] if micro else drawn"),
            )
        },
    ),
    Bug(
        "loss-detached",
        "no update",
        "The loss goes through a number and becomes a leaf: no gradient reaches the model.",
        {
            "loop_lecture": (
                ("        loss.backward()\n", "        torch.tensor(loss.item(), requires_grad=True).backward()\n"),
            ),
            "loop_tuning": (
                ("(total / trained).backward()", "(total.detach() / trained).requires_grad_().backward()"),
            ),
        },
    ),
    Bug(
        "no-step",
        "no update",
        "The optimiser never steps.",
        {
            "loop_lecture": (("        optimizer.step()\n", ""),),
            "loop_tuning": (("        self.optimizer.step()\n", ""),),
            "loop_script": ((_SCRIPT_STEP, "        optimizer.zero_grad(set_to_none=True)\n"),),
        },
    ),
    Bug(
        "ascends",
        "no update",
        "The sign is wrong: training raises the loss.",
        {
            "loop_lecture": (("loss.backward()", "(-loss).backward()"),),
            "loop_script": (
                ("torch.optim.AdamW(groups, lr=rate,", "torch.optim.AdamW(groups, lr=rate, maximize=True,"),
            ),
            "loop_trainer": (
                ("torch.optim.AdamW(groups, lr=rate)", "torch.optim.SGD(groups, lr=rate, maximize=True)"),
            ),
        },
    ),
    Bug(
        "optimizer-of-another-model",
        "optimizer coverage",
        "The optimiser was made for a model that was replaced afterwards.",
        {
            "loop_lecture": (
                (
                    "    def train_step(micro=None):\n",
                    "    model = LanguageModel(n_embd=32 * size, n_head=4, n_layer=1 + size)\n"
                    "\n"
                    "    def train_step(micro=None):\n",
                ),
            ),
            "loop_tuning": (
                (
                    "torch.optim.AdamW(model.parameters(),",
                    'torch.optim.AdamW(__import__("copy").deepcopy(model).parameters(),',
                ),
            ),
        },
    ),
    Bug(
        "parameters-left-out",
        "optimizer coverage",
        "Some parameters are given to no optimiser.",
        {
            "loop_script": (
                ("others = [p for p in params if p.dim() < 2]", "others = [p for p in params if p.dim() == 0]"),
            ),
            "loop_lecture": (
                ("torch.optim.AdamW(model.parameters(),", "torch.optim.AdamW(model.blocks.parameters(),"),
            ),
            "loop_trainer": (("            (rest if name", '            if "head" not in name: (rest if name'),),
        },
    ),
    Bug(
        "parameters-twice",
        "optimizer coverage",
        "A parameter is in two optimisers, so it is updated twice.",
        {
            "loop_lecture": (
                (
                    "lr=learning_rate)\n",
                    "lr=learning_rate)\n    second = torch.optim.AdamW(model.lm_head.parameters(), lr=learning_rate)\n",
                ),
                ("        optimizer.step()\n", "        optimizer.step()\n        second.step()\n"),
                ("optimizer=optimizer,", "optimizer=[optimizer, second],"),
            )
        },
    ),
    Bug(
        "clip-after-step",
        "clipping",
        "The gradients are clipped after the update.",
        {
            "loop_script": (
                (_SCRIPT_CLIP + "        optimizer.step()\n", "        optimizer.step()\n" + _SCRIPT_CLIP),
            ),
            "loop_tuning": (
                (_TUNING_CLIP + "        self.optimizer.step()\n", "        self.optimizer.step()\n" + _TUNING_CLIP),
            ),
        },
    ),
    Bug(
        "clip-before-unscale",
        "clipping",
        "The scaled gradients are clipped, and unscaled afterwards: almost nothing is left.",
        {
            "loop_trainer": (
                (
                    "        self.scaler.unscale_(self.optimizer)\n" + _TRAINER_CLIP,
                    _TRAINER_CLIP + "        self.scaler.unscale_(self.optimizer)\n",
                ),
            )
        },
    ),
    Bug(
        "clip-a-part",
        "clipping",
        "Only some of the parameters are clipped.",
        {
            "loop_script": ((_SCRIPT_CLIP, _SCRIPT_CLIP.replace("model.parameters()", "model.h.parameters()")),),
            "loop_trainer": (
                (_TRAINER_CLIP, _TRAINER_CLIP.replace("self.model.parameters()", "self.model.head.parameters()")),
            ),
        },
    ),
    Bug(
        "clip-per-micro-batch",
        "clipping",
        "The sum is clipped after each micro-batch, so the first ones shrink again and again.",
        {
            "loop_script": (
                ("            part.backward()\n" + _SCRIPT_CLIP, "            part.backward()\n    " + _SCRIPT_CLIP),
            ),
            "loop_tuning": (
                (
                    "            (total / trained).backward()\n",
                    "            (total / trained).backward()\n    " + _TUNING_CLIP,
                ),
                (_TUNING_CLIP + "        self.optimizer.step()", "        self.optimizer.step()"),
            ),
        },
    ),
    Bug(
        "schedule-per-micro-batch",
        "schedule",
        "The scheduler steps once per micro-batch: the rate falls too fast.",
        {
            "loop_trainer": (
                (
                    "            running += loss.detach().item()\n",
                    "            running += loss.detach().item()\n            self.scheduler.step()\n",
                ),
                ("        self.scaler.update()\n        self.scheduler.step()\n", "        self.scaler.update()\n"),
            ),
            "loop_tuning": (
                ("            report +=", "            self.scheduler.step()\n            report +="),
                ("        self.optimizer.step()\n        self.scheduler.step()\n", "        self.optimizer.step()\n"),
            ),
        },
    ),
    Bug(
        "schedule-forgotten",
        "schedule",
        "The scheduler never steps: the rate stays where the warm-up begins.",
        {
            "loop_trainer": (
                ("        self.scaler.update()\n        self.scheduler.step()\n", "        self.scaler.update()\n"),
            ),
            "loop_tuning": (("        self.scheduler.step()\n", ""),),
        },
    ),
    Bug(
        "schedule-before-step",
        "schedule",
        "The scheduler steps before the optimiser: the first rate is never used.",
        {
            "loop_trainer": (
                (
                    "        self.scaler.step(self.optimizer)\n"
                    "        self.scaler.update()\n"
                    "        self.scheduler.step()\n",
                    "        self.scheduler.step()\n"
                    "        self.scaler.step(self.optimizer)\n"
                    "        self.scaler.update()\n",
                ),
            ),
            "loop_tuning": (
                (
                    "        self.optimizer.step()\n        self.scheduler.step()\n",
                    "        self.scheduler.step()\n        self.optimizer.step()\n",
                ),
            ),
        },
    ),
    Bug(
        "schedule-returns-the-rate",
        "schedule",
        "The schedule returns a rate where a multiple of the rate is wanted: the rate is squared.",
        {"loop_tuning": (("lambda step: min(1.0, (step + 1) / 4)", "lambda step: rate * min(1.0, (step + 1) / 4)"),)},
    ),
    Bug(
        "rate-too-high",
        "schedule",
        "The learning rate is hundreds of times too high.",
        {
            "loop_script": (
                (
                    "max_rate, min_rate, warmup, steps = 3e-3, 3e-4, 10, 500",
                    "max_rate, min_rate, warmup, steps = 3.0, 0.3, 10, 500",
                ),
            ),
            "loop_lecture": (
                ("learning_rate, eval_iters = 24, 8, 0.2, 1e-3, 4", "learning_rate, eval_iters = 24, 8, 0.2, 1.0, 4"),
            ),
            "loop_tuning": (("rate=1e-3)", "rate=1.0)"),),
        },
    ),
    Bug(
        "decay-exchanged",
        "weight decay",
        "The two groups are exchanged: norms and biases decay, matrices do not.",
        {
            "loop_script": (
                ("p.dim() >= 2]", "p.dim() < 2]"),
                ("others = [p for p in params if p.dim() < 2]", "others = [p for p in params if p.dim() > 1]"),
            ),
            "loop_trainer": (
                ("(rest if name.endswith", "(decayed if name.endswith"),
                ("in name else decayed)", "in name else rest)"),
            ),
        },
    ),
    Bug(
        "norms-decay",
        "weight decay",
        "The groups are made by name, and the norms have another name.",
        {"loop_trainer": (('or "norm" in name', 'or "ln" in name'),)},
    ),
    Bug(
        "sixteen-bit-weights",
        "precision",
        "The weights are in bfloat16 and the rate is low: most updates round to nothing.",
        {
            "loop_lecture": (
                ("getattr(torch, dtype)", "torch.bfloat16"),
                ("learning_rate, eval_iters = 24, 8, 0.2, 1e-3, 4", "learning_rate, eval_iters = 24, 8, 0.2, 3e-5, 4"),
            ),
            "loop_tuning": (("getattr(torch, dtype)", "torch.bfloat16"), ("rate=1e-3)", "rate=2e-5)")),
        },
    ),
    Bug(
        "losses-kept-with-graphs",
        "memory",
        "The losses are kept in a list with their graphs.",
        {
            "loop_trainer": (
                (
                    "            running += loss.detach().item()\n",
                    "            running += loss.detach().item()\n"
                    '            self.__dict__.setdefault("history", []).append(loss)\n',
                ),
            ),
            "loop_script": (
                (
                    "            total += part.item()\n",
                    '            total += part.item()\n            state["sum"] = state.get("sum", 0) + part\n',
                ),
            ),
        },
    ),
    Bug(
        "returns-the-graph",
        "memory",
        "train_step returns the loss tensor with its graph.",
        {"loop_lecture": (("        return loss.item()\n", "        return loss\n"),)},
    ),
    Bug(
        "evaluates-with-gradients",
        "memory",
        "The evaluation builds graphs.",
        {
            "loop_script": (("    @torch.no_grad()\n", ""),),
            "loop_lecture": (("    @torch.no_grad()\n", ""),),
            "loop_tuning": (("        with torch.no_grad():\n", "        if True:\n"),),
        },
    ),
    Bug(
        "no-eval-mode",
        "mode",
        "The evaluation runs with dropout.",
        {
            "loop_script": (("        model.eval()\n", ""),),
            "loop_lecture": (("        model.eval()\n", ""),),
            "loop_trainer": (("        self.model.eval()\n", ""),),
            "loop_tuning": (("        self.model.eval()\n", ""),),
        },
    ),
    Bug(
        "no-train-mode",
        "mode",
        "After the first evaluation the model stays in eval mode.",
        {
            "loop_script": (("        model.train()\n", ""),),
            "loop_lecture": (("        model.train()\n", ""),),
        },
    ),
    Bug(
        "evaluation-trains",
        "state",
        "The evaluation calls the training step.",
        {
            "loop_trainer": (
                ("    @torch.inference_mode()\n", ""),
                ("            total += float(self.loss(x, y))\n", "            total += self.train_step([(x, y)])\n"),
            ),
        },
    ),
    Bug(
        "targets-not-shifted",
        "targets",
        "y is x, and nobody shifts: each position learns to copy the token that it sees.",
        {
            "loop_script": (("data[i + 1 : i + 1 + context]", "data[i : i + context]"),),
            "loop_lecture": (("source[i + 1 : i + block_size + 1]", "source[i : i + block_size]"),),
            "loop_tuning": (
                (')["logits"][:, :-1].float()\n        labels = y[:, 1:]', ')["logits"].float()\n        labels = y'),
            ),
        },
    ),
    Bug(
        "targets-shifted-twice",
        "targets",
        "The batches are shifted, and the loss shifts again.",
        {
            "loop_trainer": (
                (
                    "        return F.cross_entropy(logits.transpose(1, 2).float(), y)",
                    "        return F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), y[:, 1:])",
                ),
            ),
            "loop_script": (("data[i + 1 : i + 1 + context]", "data[i + 2 : i + 2 + context]"),),
        },
    ),
    Bug(
        "targets-rolled",
        "targets",
        "The targets are rolled: the last position is trained on the first token.",
        {
            "loop_script": (
                ("y = torch.stack([data[i + 1 : i + 1 + context] for i in starts])", "y = x.roll(-1, dims=1)"),
            ),
            "loop_lecture": (
                ("y = torch.stack([source[i + 1 : i + block_size + 1] for i in ix])", "y = torch.roll(x, -1, 1)"),
            ),
        },
    ),
    Bug(
        "masked-positions-trained",
        "targets",
        "The value that masks targets is replaced before the loss sees it: prompts and padding are trained.",
        {"loop_tuning": (("        labels = y[:, 1:]\n", "        labels = torch.where(y == IGNORE, x, y)[:, 1:]\n"),)},
    ),
    Bug(
        "validation-in-training",
        "data leak",
        "The training data is the whole text, validation text included.",
        {
            "loop_script": (("ids[:split_at], ids[split_at:]", "ids, ids[split_at:]"),),
            "loop_lecture": (("train_data = data[:n]", "train_data = data"),),
            "loop_trainer": (("Windows(tokens[:border], length)", "Windows(tokens, length)"),),
            "loop_tuning": (("make_examples(80, seed=2)", "make_examples(80, seed=1)"),),
        },
    ),
    Bug(
        "evaluates-on-training-data",
        "data leak",
        "The evaluation draws from the training split.",
        {
            "loop_script": (('loss(*get_batch("val"))', 'loss(*get_batch("train"))'),),
            "loop_trainer": (('self.get_batch("val")', 'self.get_batch("train")'),),
            "loop_tuning": (('self.get_batch("val")', 'self.get_batch("train")'),),
        },
    ),
    Bug(
        "id-out-of-range",
        "tokenizer",
        "The data uses more tokens than the model has.",
        {"loop_tuning": (("TinyLM(5 + len(LETTERS)", "TinyLM(len(LETTERS) - 8"),)},
    ),
)

#: Factories in `loop_unusual` that are correct, and look odd.
UNUSUAL_LOOPS: tuple[str, ...] = (
    "two_optimizers", "one_backward", "with_closure", "own_optimizer", "adapters", "script_of_globals", "compensated",
)  # fmt: skip
