"""The end of ``glassgpt tune``: the same questions to the model before and after, and the next commands."""

from typing import TYPE_CHECKING, Any

from glassgpt.cli.printing.endings import how_it_ended, print_next
from glassgpt.cli.printing.output import ProgressLine, print_json, print_table, print_text, say
from glassgpt.errors import shell_command

if TYPE_CHECKING:
    from glassgpt.config import RunConfig
    from glassgpt.evaluation.questions import Question
    from glassgpt.evaluation.report import Evaluated
    from glassgpt.training.checkpoint import Run
    from glassgpt.training.loop import Result
    from glassgpt.weights.sources import WeightSource

#: Tokens of an answer at most.
MAX_NEW_TOKENS = 96


def print_ending(result: "Result", resume: str, json: bool) -> None:
    """Ask the held-out questions of the model before and after, print both, and write RUN/report.md."""
    from glassgpt.evaluation.report import compare, summarize, write_report

    assert result.final is not None
    run, config = result.run, result.run.config()
    before, after = _evaluate_both(run, config)
    report = run.path / "report.md"
    write_report(report, before, after, f"{run.name}: {config.train.init_from}, before and after tuning")
    if json:
        from dataclasses import asdict

        validation = {"loss": result.final.loss, "stderr": result.final.stderr, "tokens": result.final.tokens}
        ending: dict[str, Any] = {"run": str(run.path), "reason": result.reason, "step": result.step}
        ending |= {"validation": validation, "report": str(report)}
        answers = {"before": before.answers, "after": after.answers}
        ending |= {name: [answer.text for answer in given] for name, given in answers.items()}
        ending["questions"] = [question.text for question in before.questions]
        print_json(ending | {"summary": {"before": asdict(summarize(before)), "after": asdict(summarize(after))}})
        return
    print_text(f"\n{how_it_ended(result, resume)}")
    final = result.final
    print_text(
        f"validation loss {final.loss:.4f} nats per trained token, over the {final.tokens:,} of the validation split"
    )
    shown = range(len(before.questions)) if len(before.questions) <= 3 else []
    for number in shown:
        print_text(f"\n> {before.questions[number].text}")
        for name, model in (("before", before), ("after ", after)):
            answer = model.answers[number]
            print_text(f"  {name}  {answer.text}{'' if answer.ended else ' ...'}")
    print()
    rows = [list(row) for row in compare(before, after)]
    print_table(["held-out questions", "before", "after", "change"], rows, right=(1, 2, 3))
    print_text(f"\nevery question with its answers: {report}\n")
    merging = ", with LoRA merged" if config.tune.method == "lora" else ""
    print_next(
        {
            shell_command("chat", run.path): "talk with it",
            shell_command("sample", run.path, "--chat", "--prompt", "..."): "ask one question",
            shell_command("tune", "show", config.data.source, run.path): "see which tokens were trained",
            shell_command("export", run.path, "--to", "gguf"): f"write it for llama.cpp{merging}",
        }
    )


def _evaluate_both(run: "Run", config: "RunConfig") -> "tuple[Evaluated, Evaluated]":
    """What the model that the run began with, and the best one, answer. The first is kept in the run."""
    from glassgpt.evaluation.report import read_evaluated, save_evaluated
    from glassgpt.planning.tuning import base_source
    from glassgpt.weights.resolve import open_folder

    questions, text = held_out(run, config)
    kept = run.path / "before.json"
    before = read_evaluated(kept, questions, max_new_tokens=MAX_NEW_TOKENS)
    if before is None:
        say("asking the held-out questions before tuning")
        before = _evaluate(base_source(run, config), config, questions, text)
        save_evaluated(kept, before)
    say("asking the held-out questions after tuning")
    return before, _evaluate(open_folder(run.best), config, questions, text)


def held_out(run: "Run", config: "RunConfig") -> "tuple[list[Question], str]":
    """The questions to ask, and a general text: the tutor's, or questions of the validation split and no text."""
    from glassgpt.evaluation.questions import first_questions, read_questions
    from glassgpt.planning.tuning import load_data

    if config.data.source == "tutor":
        from glassgpt.assets import tutor

        return read_questions(tutor.questions_path()), tutor.general_path().read_text(encoding="utf-8")
    chats = load_data(run, config)
    return first_questions([chats.conversations[row.line].messages for row in chats.val]), ""


def _evaluate(source: "WeightSource", config: "RunConfig", questions: "list[Question]", text: str) -> "Evaluated":
    from glassgpt import api
    from glassgpt.evaluation.report import evaluate_model

    runtime = config.runtime
    model, tokenizer = api.load_from_source(source, device=runtime.device, dtype=runtime.dtype)
    with ProgressLine() as progress:
        return evaluate_model(
            model, tokenizer, questions, text, max_new_tokens=MAX_NEW_TOKENS, progress=progress
        )  # fmt: skip
