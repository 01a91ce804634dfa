"""``glassgpt sample``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.common import (
    JSON_OPTION,
    RUNS_OPTION,
    SOURCE_HELP,
    ProgressLine,
    print_json,
    say,
    something_piped_in,
)
from glassgpt.cli.tokens import quoted
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.inference.decode import Step
    from glassgpt.sampling import SamplingConfig
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.weights.sources import WeightSource


def sample(
    run: str = typer.Argument("", metavar="RUN", help=f"{SOURCE_HELP} By default the newest run."),
    prompt: str = typer.Option("", "--prompt", "-p", help="Text to continue; - reads standard input."),
    prompt_file: Path = typer.Option(None, "--prompt-file", help="File with the text to continue."),
    chat: bool = typer.Option(False, "--chat", help="The prompt is a user's message; put it as the model expects it."),
    max_new_tokens: int = typer.Option(300, "--max-new-tokens", "-n", min=1, help="Tokens to generate."),
    num_samples: int = typer.Option(1, "--num-samples", min=1, help="Continuations, made as one batch."),
    temperature: float = typer.Option(0.8, "--temperature", help="Below 1 safer, above 1 wilder; 0 is greedy."),
    top_k: int = typer.Option(0, "--top-k", help="Draw from the k likeliest tokens; 0: all."),
    top_p: float = typer.Option(1.0, "--top-p", help="Draw from the likeliest tokens that make up this probability."),
    greedy: bool = typer.Option(False, "--greedy", help="Always take the likeliest token."),
    seed: int = typer.Option(0, "--seed", help="Seed of the draws."),
    explain: bool = typer.Option(False, "--explain", help="Show the candidates of every step, and the draw."),
    candidates: int = typer.Option(6, "--candidates", min=1, help="Candidates shown by --explain."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:N or mps."),
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Let a model continue a text. The prompt is an option, a file, or what is piped in (less its last line end)."""
    from glassgpt import api
    from glassgpt.sampling import SamplingConfig

    loading = ProgressLine({"loading": "parameters"})
    text = _read_prompt(prompt, prompt_file)
    config = SamplingConfig(temperature=0.0 if greedy else temperature, top_k=top_k, top_p=top_p)
    if explain and num_samples > 1:
        raise ConfigError("--explain shows one sample at a time; leave out --num-samples")
    if not run:
        known = api.list_runs(runs)
        if not known:
            raise ConfigError(f"there is no run in {runs}/ to sample from; `glassgpt quickstart` makes one")
        run = str(known[-1].path)
    source = api.open_source(run, runs=runs)
    for note in source.notes:
        say(f"note: {note}")
    model, tokenizer = api.load_opened(source, device=device, progress=loading)
    loading.clear()
    from glassgpt.inference.decode import generate, start_ids

    ids = _chat_ids(source, tokenizer, text) if chat else start_ids(tokenizer, text)
    limits = {"eos_token_id": tokenizer.eos_token_id, "vocab_size": tokenizer.vocab_size}
    steps = generate(model, [ids] * num_samples, max_new_tokens, config, seed=seed, **limits)
    shown = Printer(
        tokenizer,
        config,
        "" if chat else text,
        candidates=candidates,
        explain=explain,
        live=not json and num_samples == 1,
    )
    texts = shown.run(steps, num_samples)
    if json:
        print_json([{"prompt": text, "text": made, **extra} for made, extra in zip(texts, shown.extras, strict=True)])
    elif num_samples > 1:
        print(f"\n{'-' * 40}\n".join(("" if chat else text) + made for made in texts))


class Printer:
    """Collects the rows of a generation, and shows the first one as it comes if ``live``."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        config: "SamplingConfig",
        prompt: str,
        *,
        candidates: int,
        explain: bool,
        live: bool,
    ):
        self.tokenizer, self.config, self.prompt = tokenizer, config, prompt
        self.candidates, self.explain, self.live = candidates, explain, live
        self.extras: list[dict[str, Any]] = []

    def run(self, steps: Any, rows: int) -> list[str]:
        """Take every step; the texts of all rows."""
        from glassgpt.inference.decode import TextStream

        streams = [TextStream(self.tokenizer) for _ in range(rows)]
        texts = [""] * rows
        tokens: list[list[int]] = [[] for _ in range(rows)]
        explained: list[dict[str, Any]] = []
        if self.live and not self.explain:
            print(self.prompt, end="", flush=True)
        for number, step in enumerate(steps, 1):
            if self.explain:
                explained.append(self._explain(number, step, texts[0]))
            for row in range(rows):
                if step.active[row] and step.tokens[row] != self.tokenizer.eos_token_id:
                    tokens[row].append(step.tokens[row])
                    piece = streams[row].push(step.tokens[row])
                    texts[row] += piece
                    if self.live and not self.explain:
                        print(piece, end="", flush=True)
        rests = [stream.finish() for stream in streams]
        texts = [text + rest for text, rest in zip(texts, rests, strict=True)]
        if self.live:
            print(f"\n{self.prompt}{texts[0]}" if self.explain else rests[0])
        self.extras = [{"tokens": row} | ({"steps": explained} if self.explain else {}) for row in tokens]
        return texts

    def _explain(self, number: int, step: "Step", so_far: str) -> dict[str, Any]:
        """The candidates of one step, shown as a table if live."""
        from glassgpt import sampling

        chosen, uniform = step.tokens[0], float(step.uniform[0])
        shown = sampling.explain(step.logits[0], self.config, self.tokenizer.vocab_size)
        shown = [c for rank, c in enumerate(shown) if rank < self.candidates or c.token == chosen]
        if self.live:
            how = "greedy: no draw" if self.config.temperature == 0 else f"draw {uniform:.4f}"
            print(f"step {number}  after {(self.prompt + so_far)[-24:]!r}  {how}")
            print(f"    {'token':<10} {'logit':>9} {'temperature':>12} {'top-k':>8} {'top-p':>8}")
            for c in shown:
                mark = ">" if c.token == chosen else " "
                name = quoted(self.tokenizer.token_bytes(c.token))
                numbers = f"{c.after_temperature:>12.4f} {c.after_top_k:>8.4f} {c.after_top_p:>8.4f}"
                print(f"  {mark} {name:<10} {c.logit:>9.3f} {numbers}")
        candidates = [{"text": self.tokenizer.decode([c.token]), **vars(c)} for c in shown]
        return {"chosen": chosen, "draw": uniform, "candidates": candidates}


def _chat_ids(source: "WeightSource", tokenizer: "Tokenizer", text: str) -> list[int]:
    """The prompt as a user's message, in the model's own form."""
    from glassgpt.tokenizer import chat
    from glassgpt.weights.transfer import chat_template

    template = chat_template(source)
    if template is None:
        raise ConfigError(f"{source.path} has no chat template: it continues texts; leave out --chat")
    return chat.encode(tokenizer, template, [{"role": "user", "content": text}])


def _read_prompt(prompt: str, prompt_file: Path | None) -> str:
    """The prompt, from the one place it was given in."""
    if prompt and prompt_file:
        raise ConfigError("give --prompt or --prompt-file, not both")
    if prompt_file:
        try:
            return prompt_file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prompt-file {prompt_file} cannot be read: {error}") from None
    if prompt == "-" or (not prompt and something_piped_in()):
        return sys.stdin.buffer.read().decode("utf-8", errors="replace").removesuffix("\n")
    return prompt
