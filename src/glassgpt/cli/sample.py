"""``glassgpt sample``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION
from glassgpt.cli.printing.output import print_json, say
from glassgpt.cli.prompt import DEVICE_OPTION, RUN_ARGUMENT, load_model, open_run, read_prompt_text
from glassgpt.errors import ConfigError, GenerationError
from glassgpt.glass.tokens import quoted

if TYPE_CHECKING:
    from glassgpt.inference.decode import DecodeStep, Request
    from glassgpt.model import GPT
    from glassgpt.sampling import SamplingConfig
    from glassgpt.tokenizer import Tokenizer


def sample(
    run: str = RUN_ARGUMENT,
    prompt: str = typer.Option("", "--prompt", "-p", help="Text to continue; - reads standard input."),
    prompt_file: Path = typer.Option(None, "--prompt-file", help="File with the text to continue."),
    chat: bool = typer.Option(False, "--chat", help="The prompt is a user's message; apply the chat template."),
    max_new_tokens: int = typer.Option(300, "--max-new-tokens", "-n", min=1, help="Tokens to generate."),
    num_samples: int = typer.Option(1, "--num-samples", min=1, max=2**16, help="Continuations, as one batch."),
    temperature: float = typer.Option(0.8, "--temperature", help="Below 1 less random, above 1 more; 0 is greedy."),
    top_k: int = typer.Option(0, "--top-k", help="Keep the k most likely tokens; 0: all."),
    top_p: float = typer.Option(1.0, "--top-p", help="Keep the most likely tokens that make up this probability."),
    min_p: float = typer.Option(0.0, "--min-p", help="Drop tokens less likely than this times the most likely one."),
    repetition_penalty: float = typer.Option(1.0, "--repetition-penalty", help="Above 1: earlier tokens less likely."),
    greedy: bool = typer.Option(False, "--greedy", help="Always take the most likely token."),
    stop: list[str] = typer.Option([], "--stop", metavar="TEXT", help="End before this text; can be repeated."),
    end_token: list[str] = typer.Option([], "--end-token", metavar="TOKEN", help="End at this token; can be repeated."),
    min_new_tokens: int = typer.Option(0, "--min-new-tokens", min=0, help="No end token before as many tokens."),
    seed: int = typer.Option(0, "--seed", help="Seed of the random numbers."),
    explain: bool = typer.Option(False, "--explain", help="Show the candidates and the random number of every step."),
    candidates: int = typer.Option(6, "--candidates", min=1, help="Candidates shown by --explain."),
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Continue a text. The prompt is an option, a file, or piped in (without its last line end)."""
    from glassgpt.sampling import SamplingConfig

    text = read_prompt_text(prompt, prompt_file)
    sampling = SamplingConfig(0.0 if greedy else temperature, top_k, top_p, min_p, repetition_penalty)
    if explain and num_samples > 1:
        raise ConfigError("--explain shows one sample at a time; leave out --num-samples")
    source = open_run(run, runs)
    model, tokenizer = load_model(source, device)
    from glassgpt.inference.decode import Request
    from glassgpt.inference.stream import encode_prompt

    ids = _chat_ids(source.path, tokenizer, text) if chat else encode_prompt(tokenizer, text)
    if text and not chat and not tokenizer.encode(text):
        say("note: the prompt has no tokens; this is a continuation of an empty prompt")
    end_ids = [_token_id(tokenizer, name) for name in end_token]
    requests = [
        Request(ids, max_new_tokens, sampling, seed, index, stop, min_new_tokens, end_ids)
        for index in range(num_samples)
    ]
    prefix = "" if chat else text
    live = not json and num_samples == 1
    rows = _generate(model, tokenizer, requests, prefix, candidates=candidates if explain else 0, live=live)
    if json:
        print_json([{"prompt": text, **row} for row in rows])
    elif not live:
        print(f"\n{'-' * 40}\n".join(prefix + row["text"] for row in rows))


def _generate(
    model: "GPT", tokenizer: "Tokenizer", requests: list["Request"], prefix: str, *, candidates: int, live: bool
) -> list[dict[str, Any]]:
    """Generate the text and tokens of every row; if live, print those of the first row as they come.

    With ``candidates``, explain every step of the first row by that many.
    """
    from glassgpt.inference.decode import generate_text

    first = requests[0]
    steps: list[dict[str, Any]] = []
    printed = ""
    if live and not candidates:
        print(prefix, end="", flush=True)
    try:
        for step, streamers in generate_text(model, tokenizer, requests):
            if candidates:
                previous_ids = [*first.prompt, *streamers[0].tokens[: len(steps)]]
                steps.append(_explain(step, first.sampling, previous_ids, tokenizer, candidates))
                if live:
                    _print_step(len(steps), steps[-1], prefix + printed, first.sampling, tokenizer)
            elif live:
                print(streamers[0].text[len(printed) :], end="", flush=True)
            printed = streamers[0].text
    except GenerationError:
        if live:
            print()  # the message begins on a line of its own
        raise
    if live:
        print(f"\n{prefix}{printed}" if candidates else "")
    extra = {"steps": steps} if candidates else {}
    return [{"text": streamer.text, "tokens": streamer.tokens} | extra for streamer in streamers]


def _explain(
    step: "DecodeStep", sampling: "SamplingConfig", previous_ids: list[int], tokenizer: "Tokenizer", count: int
) -> dict[str, Any]:
    """Return the token chosen in the first row, its random number, and the most likely candidates."""
    from glassgpt.sampling import explain

    chosen = step.tokens[0]
    shown = explain(step.logits[0], sampling, min(count, tokenizer.vocab_size), previous_ids, chosen)
    unused = tokenizer.unused_ids()
    described = [{"text": None if c.token in unused else tokenizer.decode([c.token]), **vars(c)} for c in shown]
    return {"chosen": chosen, "draw": float(step.uniform[0]), "candidates": described}


def _print_step(
    number: int, step: dict[str, Any], text: str, sampling: "SamplingConfig", tokenizer: "Tokenizer"
) -> None:
    """Print the candidates of a step as a table."""
    columns = [("logit", "logit", 9, 3)]  # heading, key, width, decimals
    columns += [("penalized", "penalized_logit", 10, 3)] * (sampling.repetition_penalty != 1)
    columns += [("temperature", "after_temperature", 12, 4), ("top-k", "after_top_k", 8, 4)]
    columns += [("top-p", "after_top_p", 8, 4)] + [("min-p", "after_min_p", 8, 4)] * (sampling.min_p > 0)
    draw = "greedy: no draw" if sampling.temperature == 0 else f"draw {step['draw']:.4f}"
    print(f"step {number}  after {text[-24:]!r}  {draw}")
    print(f"    {'token':<10} " + " ".join(f"{heading:>{width}}" for heading, _, width, _ in columns))
    for candidate in step["candidates"]:
        mark = ">" if candidate["token"] == step["chosen"] else " "
        numbers = " ".join(f"{candidate[key]:>{width}.{decimals}f}" for _, key, width, decimals in columns)
        token = candidate["token"]
        shown = f"(no id {token})" if candidate["text"] is None else quoted(tokenizer.token_bytes(token))
        print(f"  {mark} {shown:<10} {numbers}")


def _chat_ids(path: Path, tokenizer: "Tokenizer", text: str) -> list[int]:
    """Apply the model's chat template to the prompt as a user's message; return the token ids."""
    from glassgpt.tokenizer import chat

    template = tokenizer.published.chat_templates.get("default")
    if template is None:
        raise ConfigError(f"{path} has no chat template; leave out --chat to continue the text")
    ids = chat.encode(tokenizer, template, [{"role": "user", "content": text}])
    if not ids:
        raise ConfigError(f"the chat template of {path} makes no tokens of this prompt; leave out --chat")
    return ids


def _token_id(tokenizer: "Tokenizer", text: str) -> int:
    """Return the id of the special token with this name, or of the one token that this text is.

    Raises:
        ConfigError: if the text is not exactly one token.
    """
    special = tokenizer.special_ids()
    ids = [special[text]] if text in special else tokenizer.encode(text, allow_special=True)
    if len(ids) != 1:
        names = ", ".join(special) or "none"
        raise ConfigError(
            f"--end-token: {text!r} is {len(ids)} tokens, not one; the special tokens are: {names}. "
            "--stop ends at any text"
        )
    return ids[0]
