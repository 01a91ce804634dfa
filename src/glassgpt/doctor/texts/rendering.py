"""What a program's `render` gives, against a training row.

Some functions give the prompt of the next answer, with its header; others the messages as they are, and the header
comes from elsewhere. The answer, rendered too, tells them apart: does it stand right behind what was there before?
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from glassgpt.doctor.report import NotRun
from glassgpt.doctor.texts.alignment import Place, clean, text_of
from glassgpt.doctor.texts.conversation_subject import ExaminedRow
from glassgpt.doctor.texts.nasty import first_difference
from glassgpt.doctor.texts.tokenizer_subject import TokenizerSubject

#: Arguments with which functions add the header of the next answer.
_HEADER_ARGUMENTS = ("add_generation_prompt", "generation_prompt", "add_generation", "for_generation", "prompt")


class Rendering:
    """Compare rows with what `render` returns, text or ids.

    Args:
        tokenizer: of the rows.
        render: messages to a text, or to ids.
        gives_prompts: whether `render` is sure to give the header of the next answer.
    """

    def __init__(self, tokenizer: TokenizerSubject, render: Callable[..., Any], gives_prompts: bool):
        self.tokenizer, self.render, self.begin = tokenizer, render, tokenizer.roles.get("bos")
        self.ends = {i for role in ("bos", "eos") if (i := tokenizer.roles.get(role)) is not None}
        self.silent = [name for name, i in tokenizer.special.items() if not text_of(tokenizer, [i])]
        try:
            arguments = list(inspect.signature(render).parameters)
        except (TypeError, ValueError):  # a builtin
            arguments = []
        self.header = {name: True for name in _HEADER_ARGUMENTS if name in arguments}
        self.gives_prompts = gives_prompts or bool(self.header)

    def problem(self, row: ExaminedRow, trained: Sequence[bool], places: Sequence[Place]) -> str:
        """How a row differs from what its messages are rendered to, or nothing; the last one is the answer.

        Raises:
            NotRun: `render` raises.
        """
        answer, messages = places[-1], [place.message for place in places]
        try:
            before = self.render(messages[:-1], **self.header)
            after = None if self.gives_prompts else self.render(messages)
        except Exception as error:  # of somebody's code
            raise NotRun(f"render failed: {type(error).__name__}: {error}") from None
        if self._begins(before) and answer.row_starts is not None and not self._row_begins(row, answer.row_starts):
            return "the sampling prompt begins with the begin token, and the row does not"
        whole, prompt = self._texts(row, before, answer, answer.first or 0)
        problem = self._before(row, trained, whole, prompt, answer)
        if problem and after is not None:
            through, rendered = self._texts(row, after, answer, answer.end)
            rest = rendered.removeprefix(prompt).lstrip()
            header_apart = rendered.startswith(prompt) and not rest.startswith(answer.text)
            if header_apart:
                fits = rendered.startswith(through)
                return "" if fits else f"rendered against training, {first_difference(rendered, through)}"
        return problem

    def _begins(self, rendered: Any) -> bool:
        """Whether what was rendered begins with the begin token."""
        if self.begin is None or not isinstance(rendered, str):
            return self.begin is not None and self.begin in _ids(rendered)[:1]
        name = text_of(self.tokenizer, [self.begin])
        return bool(name) and rendered.startswith(name)

    def _row_begins(self, row: ExaminedRow, start: int) -> bool:
        return self.begin in row.ids[max(0, start - 1) : start + 1]  # padding may be the begin token

    def _before(self, row: ExaminedRow, trained: Sequence[bool], whole: str, prompt: str, answer: Place) -> str:
        """How the prompt at sampling differs from a row before its answer."""
        if whole == prompt:
            return ""
        first = answer.first or 0
        if whole.startswith(prompt):
            gap = whole.removeprefix(prompt)
            tails = ((n, row.ids[n:first]) for n in range(first, -1, -1))
            at = next((n for n, ids in tails if gap in (text_of(self.tokenizer, ids), self._marked(ids))), None)
            if at is not None and all(trained[at:first]):
                return ""  # the model itself writes what is between
            return f"before each answer, training has {gap!r} that the sampling prompt lacks, and it is not trained"
        if prompt.startswith(whole) and not prompt.removeprefix(whole).strip(" "):
            end = prompt.removeprefix(whole)
            return f"the sampling prompt ends with {end!r}, which is part of the answer's first token in training"
        return f"sampling against training, {first_difference(prompt, whole)}"

    def _texts(self, row: ExaminedRow, rendered: Any, answer: Place, end: int) -> tuple[str, str]:
        """A row up to a token, and what was rendered, both without begin tokens, in the same form."""
        ids = self._without_begin(row.ids[answer.row_starts or 0 : end])
        if isinstance(rendered, str):
            for name in self.silent:  # tokens that decode to nothing
                rendered = rendered.replace(name, "")
            while name := next((text for i in self.ends if (text := text_of(self.tokenizer, [i]))
                                and rendered.startswith(text)), ""):  # fmt: skip
                rendered = rendered.removeprefix(name)
            whole, text = text_of(self.tokenizer, ids), clean(self.tokenizer, rendered)
        else:
            whole, text = self._marked(ids), self._marked(self._without_begin(_ids(rendered)))
        if answer.row_starts is None:  # packed: other conversations are before it
            whole = whole[max(whole.rfind(text[:16]), 0) :]
        return whole, text

    def _without_begin(self, ids: list[int]) -> list[int]:
        first = next((n for n, i in enumerate(ids) if i not in self.ends), len(ids))
        return ids[first:]

    def _marked(self, ids: Sequence[int]) -> str:
        """The text of ids in which each begin and end token is seen, though the tokenizer may decode it to nothing."""
        parts, last = list[str](), 0
        for n, i in enumerate(ids):
            if i in self.ends and not text_of(self.tokenizer, [i]):
                parts += [text_of(self.tokenizer, ids[last:n]), f"<{i}>"]
                last = n + 1
        return "".join([*parts, text_of(self.tokenizer, ids[last:])])


def _ids(prompt: Any) -> list[int]:
    prompt = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
    prompt = prompt.flatten().tolist() if hasattr(prompt, "flatten") else prompt
    return [int(i) for i in prompt]
