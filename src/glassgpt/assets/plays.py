"""Convert the carrier's Markdown of Shakespeare's plays to one plain text.

Ours, because a Markdown library reads the broken markup as it stands: names of speakers would be in the speeches.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

# Corrections of the carrier's Markdown: (pattern, replacement), with ^ and $ at each line.
_CORRECTIONS = (
    # the first half of a name is in the speech before it, or after it
    (r"^(RICHARD|COUNTESS|BISHOP|CARDINAL|LADY|DON ADRIANO DE|Ghosts?|Varro's) *\n\s*\*\*", r"\n**\1 "),
    (r"^\*\*ANTIPHOLUS(\*\* *\n.*\n)OF EPHESUS *\n", r"**ANTIPHOLUS OF EPHESUS\1"),
    # a name with a hyphen, an apostrophe or a comma is marked as the start of a line
    (
        r"^(?:Both *\n)?(Lord Chief-Justice|Master-Gunner|Senators, & C|(?:Isidore's|Lucilius'|Varro's) Servants?"
        r"|(?:(?:First|Second|Third|ALL) )?(?i:Serving-m[ae]n)|(?:First|Second) 'Prentice) (?=[A-Z'])",
        r"\n**\1**\n",
    ),
    (r"(?:,| &) & C\*\*", "**"),
    # the start of a line is marked as a name
    (r"^\*\*(Here stand I|This way will I|As long as you or I)\*\* *\n", r"\1 "),
    # a speaker is named only in a heading or a stage direction
    (r"^(?:### )?(EPILOGUE|Prologue)\s*\n(?='Tis ten to one|I come no more)", r"**\1**\n"),
    (
        r"^(?:EPILOGUE *\nSPOKEN BY (PROSPERO)|_Spoken by a (Dancer)_|_(Boy|ARIEL) sings.*_"
        r"|(ARIEL)'S song\.|_Enter (TIMON), from the cave_) *$",
        r"**\1\2\3\4\5**",
    ),
    # headings, stage directions and songs are not marked
    (r"^\*\*(Scene [IVX]+)\*\* *\n", r"### \1. "),
    (r"^(EPILOGUE|CYMBELINE|LOVE'S LABOURS LOST|SCENE [IVX]+:.*)$", r"### \1"),
    (r"^(?:THE )?(?:SONG|DUMB SHOW|Enter FLAMINIUS)\. *$", ""),
    (r"^1\\\. A lively flourish[\s\S]*?(?=^_They pass over)", ""),
    # verse is marked as a stage direction; words were supplied by editors; the text has gaps
    (r"^_(From women) ('s eyes.*); (They.*)\n(the academes) (From.*)_$", r"\1\2;\n\3 \4\n\5."),
    (r" _\\\[(Censorinus,|by the people chosen)\]_ *\n", r" \1 "),
    (r" __?\\\[ \]_ *\n", " "),
    (r"&(?:amp;)? c\b", "&c"),
)
# Stage directions: whole lines between underscores or single asterisks.
_DIRECTION = r"^ *(?:_{1,2}(?!\s)(?:[^_\n]|_\\\[|\n(?! *\n))+_|\*(?![*\s])(?:[^*\n]|\n(?! *\n))+\*) *$"
# Inside a line: stage directions in brackets, emphasis, escapes.
_INLINE = (
    (r"__?\\?\[[^\]\n]*\]_?|\\?\[[^\]\n]*\]_", ""),
    (r"(?<![\\\w])(\*{1,2}|_{1,2})(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2"),
    (r"\\([^\w\s])", r"\1"),
)


def shakespeare_text(plays: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    r"""Convert Markdown plays, by path, to one plain text: each speech is ``NAME:\nlines\n\n``, plays in path order.

    Headings, stage directions and empty speeches are removed, and Markdown escapes and emphasis are undone.

    >>> shakespeare_text({"a.md": "# A\n\n_Enter B_\n\n**B**  \n_\\[Aside]_  \nWho's *there*?  \n\\--Speak!\n"})
    "B:\nWho's there?\n--Speak!\n\n"
    """
    pairs = plays.items() if isinstance(plays, Mapping) else plays
    return "".join(speech for _, markdown in sorted(pairs) for speech in _speeches(markdown))


def _speeches(markdown: str) -> Iterator[str]:
    text = markdown.replace("\r\n", "\n").replace("\r", "\n")
    for pattern, replacement in (*_CORRECTIONS, (_DIRECTION, "")):
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    name, lines = "", list[str]()
    for line in [*text.split("\n"), "#"]:
        speaker = re.fullmatch(r"\*\*(.+?)\*\* *", line)
        if speaker or line.startswith("#"):
            if name and lines:
                yield f"{name}:\n" + "\n".join(lines) + "\n\n"
            name = _plain(speaker[1]).replace(":", "") if speaker else ""
            lines = []
        elif plain := _plain(line):  # before a scene's first name: the rest of its heading, dropped
            lines.append(plain)


def _plain(line: str) -> str:
    if re.search(r"[*_\\\[]", line):
        for pattern, replacement in _INLINE:
            line = re.sub(pattern, replacement, line)
    return " ".join(line.split())
