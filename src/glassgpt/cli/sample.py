"""``glassgpt sample``."""

from pathlib import Path

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, check_out
from glassgpt.cli.prompt import (
    DECODE_OPTION,
    DEVICE_OPTION,
    DTYPE_OPTION,
    RUN_ARGUMENT,
    SPECULATE_OPTION,
    Decode,
    Dtype,
    add_speculation,
    check_picture,
    load_decoder,
    load_model,
    open_run,
    read_prompt_text,
    say_speculation,
)
from glassgpt.cli.sampling.compare import NEW_TOKENS, compared_settings, print_comparison
from glassgpt.cli.sampling.generate import print_samples
from glassgpt.cli.sampling.replay import replay_ledger
from glassgpt.cli.sampling.requests import check_modes, given_options, prompt_ids, token_id


def sample(
    context: typer.Context,
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
    candidates: int = typer.Option(6, "--candidates", min=1, help="Candidates shown by --explain and --compare."),
    ledger: Path = typer.Option(None, "--ledger", metavar="FILE.json", help="Write all that decided every token."),
    replay: Path = typer.Option(None, "--replay", metavar="FILE.json", help="Generate a ledger again, and compare."),
    compare: bool = typer.Option(False, "--compare", help="Compare temperatures, top-k and top-p on the next token."),
    out: Path = typer.Option(None, "--out", "-o", metavar="FILE", help="Draw --compare as FILE.png or FILE.svg."),
    decode: Decode = DECODE_OPTION,
    speculate: str = SPECULATE_OPTION,
    dtype: Dtype = DTYPE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Continue a text. The prompt is an option, a file, or piped in (without its last line end)."""
    given = given_options(context)
    check_modes(given, num_samples)
    if replay:
        raise typer.Exit(0 if replay_ledger(run, replay, device, runs, json) else 1)
    check_out(ledger, "--ledger", suffix=".json")
    check_picture(out)
    from glassgpt.sampling import SamplingConfig

    text = read_prompt_text(prompt, prompt_file)
    sampling = SamplingConfig(0.0 if greedy else temperature, top_k, top_p, min_p, repetition_penalty)
    source = open_run(run, runs)
    exact = compare or ledger is not None  # the reference: eager, in float32
    decode = "eager" if exact else decode
    model, tokenizer = load_model(source, device, "float32" if exact and dtype == "auto" else dtype, decode)
    from glassgpt.inference.decode import Request

    ids = prompt_ids(source.path, tokenizer, text, chat)
    count = NEW_TOKENS if compare and "max_new_tokens" not in given else max_new_tokens
    end_ids = [token_id(tokenizer, name) for name in end_token]
    request = Request(ids, count, sampling, seed, 0, stop, min_new_tokens, end_ids)
    if compare:
        print_comparison(
            model, tokenizer, request, compared_settings(sampling, given),
            prompt=text, candidates=candidates, num_samples=num_samples, out=out, json=json,
        )  # fmt: skip
        return
    decoder = load_decoder(model, decode, rows=num_samples, context=len(ids), new_tokens=count, json=json or exact)
    decoder = add_speculation(
        decoder, "off" if exact else speculate, model, tokenizer,
        rows=num_samples, device=device, dtype=dtype, runs=runs,
    )  # fmt: skip
    print_samples(
        model, tokenizer, request, num_samples, candidates=candidates if explain else 0,
        prompt=text, chat=chat, name=str(source.path), ledger=ledger, json=json, decoder=decoder,
    )  # fmt: skip
    if not json:
        say_speculation(decoder, speculate)
