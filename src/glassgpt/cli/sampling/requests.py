"""From the options of ``glassgpt sample`` to a request: which options go together, the prompt ids, the end tokens."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glassgpt.cli.printing.output import say
from glassgpt.errors import ConfigError

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer

#: With --replay, everything else is read from the file.
_BESIDE_REPLAY = {"run", "replay", "device", "runs", "json"}
#: Options that --compare sets itself, or that show one sample.
_NOT_BESIDE_COMPARE = ("explain", "ledger", "temperature", "greedy", "decode", "speculate")


def given_options(context: typer.Context) -> set[str]:
    """Return the names of the parameters that the command line gives, in contrast to their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def check_modes(given: set[str], num_samples: int) -> None:
    """Check that the options go together.

    Raises:
        ConfigError: with every conflict.
    """
    if "replay" in given and (extra := sorted(given - _BESIDE_REPLAY)):
        names = ", ".join(map(_option, extra))
        raise ConfigError(f"--replay takes the prompt and every setting from its file; leave out {names}")
    if "compare" in given:
        wrong = [_option(name) for name in _NOT_BESIDE_COMPARE if name in given]
        problems = [f"--compare and {name} do not go together; leave one out" for name in wrong]
    else:
        problems = ["-o draws a comparison of settings; add --compare"] if "out" in given else []
        shown = [name for name in ("explain", "ledger") if name in given and num_samples > 1]
        problems += [f"--{name} shows one sample at a time; leave out --num-samples" for name in shown]
        if "ledger" in given:
            problems += [
                f"a ledger is of eager PyTorch in float32, which a replay repeats; leave out --{name}"
                for name in ("decode", "dtype", "speculate")
                if name in given
            ]
        problems += ["--greedy is a temperature of 0; leave out --temperature"] * ({"greedy", "temperature"} <= given)
    if problems:
        raise ConfigError(problems)


def _option(name: str) -> str:
    return "-o" if name == "out" else f"--{name.replace('_', '-')}"


def prompt_ids(path: Path, tokenizer: "Tokenizer", text: str, chat: bool) -> list[int]:
    """Encode the prompt; with ``chat``, as a user's message in the chat template of the model at this path.

    Raises:
        GlassError: if it cannot be encoded, or there is no template.
    """
    from glassgpt.inference.conversation import encode_messages
    from glassgpt.inference.stream import encode_prompt

    if not chat:
        if text and not tokenizer.encode(text):
            say("note: the prompt has no tokens; this is a continuation of an empty prompt")
        return encode_prompt(tokenizer, text)
    return encode_messages(tokenizer, [{"role": "user", "content": text}], str(path))


def token_id(tokenizer: "Tokenizer", text: str) -> int:
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
