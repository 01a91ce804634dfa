"""``glassgpt chat``."""

from pathlib import Path

import typer

from glassgpt.cli.arguments import RUNS_OPTION, SOURCE_HELP, check_out, decode_argument
from glassgpt.cli.prompt import (
    DECODE_OPTION,
    DEVICE_OPTION,
    DTYPE_OPTION,
    SPECULATE_OPTION,
    Decode,
    Dtype,
    add_speculation,
    load_decoder,
    load_model,
    open_run,
    say_speculation,
)
from glassgpt.cli.sampling.requests import check_modes, given_options

#: Answers for whose tokens loading the kernels, or compiling them, should pay.
ANSWERS = 4


def chat(
    context: typer.Context,
    model: str = typer.Argument("", metavar="MODEL", help=f"{SOURCE_HELP} By default the newest run."),
    system: str = typer.Option(None, "--system", metavar="TEXT", help="System message: how the model should answer."),
    max_new_tokens: int = typer.Option(256, "--max-new-tokens", "-n", min=1, help="Tokens of an answer at most."),
    temperature: float = typer.Option(0.7, "--temperature", help="Below 1 less random, above 1 more; 0 is greedy."),
    top_k: int = typer.Option(0, "--top-k", help="Keep the k most likely tokens; 0: all."),
    top_p: float = typer.Option(0.9, "--top-p", help="Keep the most likely tokens that make up this probability."),
    min_p: float = typer.Option(0.0, "--min-p", help="Drop tokens less likely than this times the most likely one."),
    repetition_penalty: float = typer.Option(1.0, "--repetition-penalty", help="Above 1: earlier tokens less likely."),
    greedy: bool = typer.Option(False, "--greedy", help="Always take the most likely token."),
    seed: int = typer.Option(0, "--seed", help="Seed of the random numbers."),
    history: Path = typer.Option(
        None, "--history", metavar="FILE.jsonl", help="Keep the conversation in this file, and continue the one in it."
    ),
    decode: Decode = DECODE_OPTION,
    speculate: str = SPECULATE_OPTION,
    dtype: Dtype = DTYPE_OPTION,
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = typer.Option(
        False, "--json", help="Each line of standard input is a message; answers are JSON lines."
    ),
) -> None:
    """Talk with a model in the terminal. Piped in, each line is a message.

    The conversation is in the model's chat template, as in `sample --chat`. The settings are the options below, not
    those of the model's generation_config.json. Ctrl-C stops an answer and keeps it so far; /help lists the commands.
    """
    check_modes(given_options(context), num_samples=1)
    check_out(history, "--history")
    from glassgpt.sampling import SamplingConfig

    sampling = SamplingConfig(0.0 if greedy else temperature, top_k, top_p, min_p, repetition_penalty)
    source = open_run(model, runs)
    loaded, tokenizer = load_model(source, device, dtype, decode)
    from glassgpt.cli.chatting import loop
    from glassgpt.inference.conversation import ChatSession
    from glassgpt.inference.decode import Request

    settings = Request((), max_new_tokens, sampling, seed)
    decoder = load_decoder(
        loaded, decode, rows=1, context=loaded.config.block_size // 2, new_tokens=ANSWERS * max_new_tokens, json=json
    )
    decoder = add_speculation(decoder, speculate, loaded, tokenizer, rows=1, device=device, dtype=dtype, runs=runs)
    session = ChatSession(loaded, tokenizer, settings, model or str(source.path), decoder)
    if history and history.exists() and history.stat().st_size:
        session.load(history)
    if system is not None:
        session.system = decode_argument("--system", system)
    code = loop.run(session, history, json)
    if not json:
        say_speculation(decoder, speculate)
    raise typer.Exit(code)
