"""``glassgpt sample --replay``."""

from pathlib import Path

from glassgpt.cli.printing.output import ProgressLine, pluralize, print_json, say
from glassgpt.cli.prompt import load_model, open_run


def replay_ledger(run: str, path: Path, device: str, runs: Path, json: bool) -> bool:
    """Generate the text of a ledger again, print it, and say what differs; return whether nothing does."""
    from glassgpt.glass.choices import ledger as ledgers
    from glassgpt.glass.choices.replay import replay

    ledger = ledgers.load(path)
    model, tokenizer = load_model(open_run(run, runs), device)
    with ProgressLine() as progress:
        result = replay(model, tokenizer, ledger, progress=progress)
    for note in result.notes:
        say(f"note: {note}")
    if json:
        print_json({"prompt": ledger.prompt, **vars(result)})
    else:
        print(("" if ledger.chat else ledger.prompt) + result.text)
        say(_summary(result.steps, result.difference, result.largest, result.largest_at))
    return not result.difference


def _summary(steps: int, difference: str, largest: float, largest_at: str) -> str:
    if difference:
        return f"replayed {pluralize(steps, 'equal step')}, then a difference: {difference}"
    if largest:
        return (
            f"replayed {pluralize(steps, 'step')}: all tokens and random numbers equal; the logits differ by rounding, "
            f"at most {largest:.3g} ({largest_at})"
        )
    return f"replayed {pluralize(steps, 'step')}: all equal"
