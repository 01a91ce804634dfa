"""Open the model and the prompt that a verb is given; the options are the same for every verb that has them."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from glassgpt.cli.arguments import PICTURES, SOURCE_HELP, check_out, stdin_is_piped
from glassgpt.cli.printing.output import ProgressLine, say
from glassgpt.errors import CheckpointError, ConfigError
from glassgpt.glass.pictures import require_matplotlib

if TYPE_CHECKING:
    from glassgpt.inference.decoders import Decoder
    from glassgpt.model import GPT
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.training.checkpoint import Run
    from glassgpt.weights.sources import WeightSource

RUN_ARGUMENT = typer.Argument("", metavar="RUN", help=f"{SOURCE_HELP} By default the newest run.")
PROMPT_OPTION = typer.Option("", "--prompt", "-p", help="The text that the model reads; - reads standard input.")
PROMPT_FILE_OPTION = typer.Option(None, "--prompt-file", help="File with that text.")
DEVICE_OPTION = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:N or mps.")
DTYPE_OPTION = typer.Option(
    "auto", "--dtype", help="Type of the weights; auto: bfloat16 if stored so, or quantised, and faster here."
)
DECODE_OPTION = typer.Option(
    "auto",
    "--decode",
    help="How to compute each token: eager (PyTorch), kernels (numba, on a CPU) or compiled (torch.compile, for CUDA); "
    "auto: the faster of eager and kernels, measured.",
)
SPECULATE_OPTION = typer.Option(
    "auto",
    "--speculate",
    metavar="off|auto|lookup|MODEL",
    help="Guess the next tokens, and check them in one pass: lookup (repeat what followed the same tokens before) or a "
    "smaller MODEL with the same tokenizer. The text is the same but for rounding. auto: lookup, with kernels only, "
    "and while it is faster.",
)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Decode = Literal["auto", "eager", "kernels", "compiled"]
PICTURE_OPTION = typer.Option(None, "--out", "-o", metavar="FILE", help="Also draw it, as FILE.png or FILE.svg.")


def check_picture(out: Path | None) -> None:
    """Check, before anything takes long, that the picture of -o can be drawn and written.

    Raises:
        GlassError: if it cannot.
    """
    if out:
        require_matplotlib()
        check_out(out, "-o", suffix=PICTURES)


def open_run(run: str, runs: Path) -> "WeightSource":
    """Find the model of that name, or of the newest run, and print its notes; no weight is read.

    Raises:
        GlassError: if it is not found, or damaged.
    """
    from glassgpt import api

    source = api.open_source(run or newest_run(runs).path, runs=runs)
    for note in source.notes:
        say(f"note: {note}")
    return source


def newest_run(runs: Path) -> "Run":
    """Return the newest run.

    Raises:
        ConfigError: if there is none.
    """
    from glassgpt import api

    if not (found := api.list_runs(runs)):
        raise ConfigError(f"there is no run in {runs}/; `glassgpt quickstart` makes one")
    return found[-1]


def load_model(
    source: "WeightSource", device: str, dtype: Dtype = "float32", decode: Decode = "eager"
) -> "tuple[GPT, Tokenizer]":
    """Load what :func:`open_run` found, with a progress line; say why an "auto" dtype is not float32.

    Quantised weights stay so where ``decode`` reads them as they are; else they are dequantised.

    Raises:
        GlassError: if it cannot be loaded.
    """
    from glassgpt import api

    keep = api.runs_quantized(device, decode)
    name, why = api.resolve_dtype(source, device=device, dtype=dtype, keep_quantized=keep)
    if why:
        say(why)
    with ProgressLine() as progress:
        return api.load_from_source(source, device=device, dtype=name, keep_quantized=keep, progress=progress)


def load_decoder(model: "GPT", decode: Decode, *, rows: int, context: int, new_tokens: int, json: bool) -> "Decoder":
    """Choose how to compute each token, and say so unless ``json``; other arguments as those of ``choose_decoder``.

    Raises:
        ConfigError: if ``decode`` cannot run this model here.
    """
    from glassgpt.inference.decoders import choose_decoder

    decoder, why = choose_decoder(
        model, decode, rows=rows, context=context, new_tokens=new_tokens, notify=None if json else say
    )
    if why and not json:
        say(why)
    return decoder


def add_speculation(
    decoder: "Decoder", speculate: str, model: "GPT", tokenizer: "Tokenizer", *,
    rows: int, device: str, dtype: Dtype, runs: Path,
) -> "Decoder":  # fmt: skip
    """Let a decoder speculate as --speculate says; only one row can.

    Raises:
        GlassError: if the draft model cannot be loaded, or has other tokens.
    """
    from glassgpt.inference import speculative

    if rows > 1:
        if speculate not in ("off", "auto"):
            say(f"note: {rows} samples at a time are generated without speculation; leave out --num-samples for it")
        return decoder
    if speculate in speculative.SPECULATE:
        return speculative.add_speculation(decoder, speculate, model, tokenizer)
    if not speculate:
        raise ConfigError("--speculate is empty; give off, auto, lookup or a model")
    try:
        draft = load_model(open_run(speculate, runs), device, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"--speculate takes off, auto, lookup or a model: {error}") from None
    return speculative.add_speculation(decoder, draft, model, tokenizer, speculate)


def say_speculation(decoder: "Decoder", speculate: str) -> None:
    """Print what speculation gave; not for "auto" that gained nothing."""
    from glassgpt.inference.speculative import SpeculativeDecoder

    if not isinstance(decoder, SpeculativeDecoder) or (speculate == "auto" and decoder.tokens < 1.05 * decoder.passes):
        return
    if line := decoder.summary():
        say(line)


def read_prompt_text(prompt: str, prompt_file: Path | None) -> str:
    """Return the prompt from --prompt, --prompt-file or standard input. The same bytes give the same text.

    Of bytes, a byte-order mark and the last line end are left out, and other line ends are kept as they are.

    Raises:
        ConfigError: if the prompt cannot be read, or is not UTF-8.
    """
    if prompt and prompt_file:
        raise ConfigError("give --prompt or --prompt-file, not both")
    from_stdin = prompt == "-" or (not prompt and not prompt_file and stdin_is_piped())
    where = f"--prompt-file {prompt_file}" if prompt_file else "standard input" if from_stdin else "--prompt"
    try:
        if not prompt_file and not from_stdin:
            return os.fsencode(prompt).decode("utf-8")
        content = prompt_file.read_bytes() if prompt_file else sys.stdin.buffer.read()
        return re.sub(r"\r?\n\Z", "", content.decode("utf-8").removeprefix("\ufeff"))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    except UnicodeError as error:
        raise ConfigError(f"{where} is not UTF-8: {error}") from None
