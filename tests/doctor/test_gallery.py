"""The gallery: every bug can be put into its programs, which still run; the lessons made of them."""

import math
from pathlib import Path

import pytest
import torch
from gallery_matrix import Case, build

from glassgpt.doctor.gallery.bug import PROGRAMS, Bug, import_program, program_source
from glassgpt.doctor.gallery.correct import CORRECT, MODEL_PROGRAMS
from glassgpt.doctor.gallery.lessons import compare_training, load_quiz, make_quiz
from glassgpt.doctor.gallery.loop_bugs import LOOP_BUGS
from glassgpt.doctor.gallery.model_bugs import MODEL_BUGS
from glassgpt.doctor.report import threads_for
from glassgpt.errors import SubjectError

#: Bugs that stop a call which the right program would have answered: not silent, but among those that people make.
CRASHES = {"one-position-too-few"}


def combinations() -> list[tuple[Bug, str]]:
    return [(bug, program) for bug in MODEL_BUGS for program in bug.changes]


def test_there_are_enough_bugs_and_correct_programs_in_enough_styles() -> None:
    assert len(MODEL_BUGS) >= 100
    assert len({program for _, program in combinations()}) >= 8
    assert sum(len(bug.changes) >= 2 for bug in MODEL_BUGS) >= 0.8 * len(MODEL_BUGS)
    assert len(CORRECT) - len(MODEL_PROGRAMS) >= 40
    programs = {path.stem for path in PROGRAMS.glob("*.py") if not path.stem.startswith("loop_")}
    assert set(MODEL_PROGRAMS) <= programs


def test_names_are_unique_lower_case_words() -> None:
    for names in ([bug.name for bug in MODEL_BUGS], [model.name for model in CORRECT]):
        assert len(set(names)) == len(names)
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") for name in names)


def test_the_programs_differ_in_vocabulary_and_context() -> None:
    subjects = [build(Case(model.program, model, size=size)) for model in CORRECT[:9] for size in (1, 2)]
    assert len({subject.vocab for subject in subjects}) >= 8
    assert len({subject.context for subject in subjects}) >= 8
    assert all(16 <= subject.context <= 32 and 61 <= subject.vocab <= 97 for subject in subjects)


@pytest.mark.parametrize("bug", MODEL_BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_put_into_its_programs_which_still_run(bug: Bug) -> None:
    for program in bug.changes:
        subject = build(Case(program, bug))
        ids = subject.ids(2, 15 - (bug.name in CRASHES))
        with torch.random.fork_rng():
            module = import_program(program, bug).model()
            output = subject.forward(module, ids, ids.clone() if subject.computes_loss else None)
        assert output.logits.shape == (*ids.shape, subject.vocab)
        assert (output.loss is not None) == subject.computes_loss


@pytest.mark.slow
def test_a_correct_program_learns_a_batch() -> None:
    for model in CORRECT:
        subject = build(Case(model.program, model))
        ids = subject.ids(4, 12)
        module = subject.copy(train=True)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for _ in range(6):
            logits = subject.logits(module, ids[:, :-1].contiguous())
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert min(losses[1:]) < losses[0], model.name


def test_a_bug_beside_the_right_program_gives_the_losses_of_both(prose: str) -> None:
    bug = next(bug for bug in MODEL_BUGS if bug.name == "labels-not-shifted")
    (step,) = compare_training(bug, "llama_like", 0.0, prose)
    assert step.step == 10 and 0 < step.broken < step.right < 5
    with pytest.raises(SubjectError, match="llama_like"):
        next(compare_training(bug, "bigram", 0.0, prose))
    with pytest.raises(SubjectError, match="9 characters"):
        next(compare_training(bug, "llama_like", 0.0, "too short"))


def test_loops_train_by_their_own_step_and_a_bug_that_ends_one_gives_no_number() -> None:
    bugs = {bug.name: bug for bug in LOOP_BUGS}
    (step,) = compare_training(bugs["accumulation-not-divided"], "loop_script", 0.0, "")
    assert 0 < step.right < step.broken / 2
    (step,) = compare_training(bugs["id-out-of-range"], "loop_tuning", 0.0, "")
    assert step.right > 0 and math.isnan(step.broken)


def test_a_quiz_survives_its_process_and_does_not_show_the_answer(tmp_path: Path) -> None:
    for seed in range(20):
        quiz = make_quiz(seed, tmp_path / "quiz")
        assert load_quiz(tmp_path / "quiz") == quiz == make_quiz(seed, tmp_path / "quiz")
        assert quiz.path.read_text(encoding="utf-8") == program_source(quiz.program, quiz.bug)
        state = (tmp_path / "quiz" / "quiz.json").read_text(encoding="utf-8")
        assert quiz.bug.name not in state and quiz.bug.finding not in state
        assert quiz.difference().startswith("--- right\n+++ broken\n@@")


def test_a_quiz_accepts_the_finding_and_the_name_however_they_are_written(tmp_path: Path) -> None:
    quiz = make_quiz(3, tmp_path)
    for guess in (quiz.bug.name, quiz.bug.finding, quiz.bug.name.replace("-", " ").upper(), f" {quiz.bug.finding} "):
        assert quiz.check(guess).right
    other = next(bug for bug in MODEL_BUGS if bug.finding != quiz.bug.finding)
    assert not quiz.check(other.name).right and quiz.check(other.name).known
    assert quiz.check("laek").similar[0] == "leak" and not quiz.check("laek").known


def test_a_damaged_or_missing_quiz_is_said(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="no quiz"):
        load_quiz(tmp_path)
    for content in ("{", "[]", "{}", '{"seed": 1, "program": "lecture", "answer": "0"}'):
        (tmp_path / "quiz.json").write_text(content, encoding="utf-8")
        with pytest.raises(SubjectError, match="start a new quiz"):
            load_quiz(tmp_path)


def test_small_models_are_examined_with_one_thread_and_large_ones_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module = torch.nn.Linear(3, 3)
        with threads_for(module):
            assert torch.get_num_threads() == 1
        monkeypatch.setattr("glassgpt.doctor.report.MANY_PARAMETERS", 12)
        with threads_for(module):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
