"""Print the steps of `sample --explain`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glassgpt.cli.printing.output import pluralize
from glassgpt.glass.tokens import quoted

if TYPE_CHECKING:
    from glassgpt.sampling import SamplingConfig
    from glassgpt.tokenizer import Tokenizer


def print_step(
    number: int, step: Mapping[str, Any], text: str, sampling: "SamplingConfig", tokenizer: "Tokenizer"
) -> None:
    """Print the candidates of a step as a table; ``step`` is from :func:`glassgpt.glass.choices.step.describe_step`."""
    columns = [("logit", "logit", 9, 3)]  # heading, key, width, decimals
    columns += [("penalized", "penalized_logit", 10, 3)] * (sampling.repetition_penalty != 1)
    columns += [("temperature", "after_temperature", 12, 4), ("top-k", "after_top_k", 8, 4)]
    columns += [("top-p", "after_top_p", 8, 4)] + [("min-p", "after_min_p", 8, 4)] * (sampling.min_p > 0)
    begin, end = step["interval"]
    draw = f"draw {step['draw']:.4f}, in [{begin:.4f}, {end:.4f}) of the chosen token"
    print(f"step {number}  after {text[-24:]!r}  {'greedy: no draw' if sampling.temperature == 0 else draw}")
    print(f"    {'token':<10} " + " ".join(f"{heading:>{width}}" for heading, _, width, _ in columns))
    for candidate in step["candidates"]:
        mark = ">" if candidate["token"] == step["chosen"] else " "
        numbers = " ".join(f"{candidate[key]:>{width}.{decimals}f}" for _, key, width, decimals in columns)
        token = candidate["token"]
        shown = f"(no id {token})" if candidate["text"] is None else quoted(tokenizer.token_bytes(token))
        print(f"  {mark} {shown:<10} {numbers}")
    dropped = [cut for cut in step["cuts"] if cut["dropped"] and cut["stage"] != "temperature"]
    if dropped and sampling.temperature > 0:
        listed = (f"{cut['stage']} {pluralize(cut['dropped'], 'token')} ({cut['mass']:.2%})" for cut in dropped)
        print(f"    dropped: {', '.join(listed)}; {pluralize(step['cuts'][-1]['kept'], 'token')} left")
