"""The checks of conversations: what is trained, what ends a turn, whether training and sampling see the same."""

from glassgpt.doctor.report import Check
from glassgpt.doctor.texts.conversation_subject import Conversations
from glassgpt.doctor.texts.mask_checks import check_answers, check_end, check_prompts, check_trained
from glassgpt.doctor.texts.message_checks import check_messages
from glassgpt.doctor.texts.template_checks import MANY, check_begin, check_length, check_roles, check_template

CONVERSATION_CHECKS: tuple[Check[Conversations], ...] = (
    Check(
        "trained tokens", "Counts the labels of each row; looks for rows without any, and for padding that is trained.",
        "one look at each row", "less than 1 % of the rows may train nothing (long prompts that were cut)",
        ("mask", "targets"), check_trained,
    ),
    Check(
        "prompts are not trained", "Looks for the text of user and system messages among the trained tokens.",
        "decodes each row", "a message of which more than half is trained, in more than 2 % of the rows",
        ("mask",), check_prompts,
    ),
    Check(
        "answers are trained", "Looks for the last answer of each conversation, token by token, among the trained "
                               "ones.",
        "decodes each row", "all tokens of the answer, in 98 % of the rows; answers cut by the context do not count",
        ("mask",), check_answers,
    ),
    Check(
        "end of turn is trained", "Looks at what follows the last answer: one end token, which is trained.",
        "decodes each row", "98 % of the rows", ("mask", "tokenizer"), check_end,
    ),
    Check(
        "begin token", "Looks for rows that begin with two begin tokens.", "one look at each row",
        "more than half of the rows: then a program does it, not padding", ("template",), check_begin,
    ),
    Check(
        "template", "Compares the text before each answer with the prompt that is rendered at sampling.",
        "renders and decodes each row", "equal but for a begin token of rows and for text that the model itself writes",
        ("template",), check_template,
    ),
    Check(
        "messages and tokens", "Encodes and decodes the messages; looks for control tokens inside them.",
        "encodes up to 200 messages", "equal, character by character, but for what the tokenizer declares",
        ("tokenizer",), check_messages,
    ),
    Check(
        "roles", "Looks at the order of turns and for empty ones.", "one look at each message",
        f"{MANY:.0%} of the conversations: fewer are bad rows of the data, which are only warned of",
        ("mask", "template"), check_roles,
    ),
    Check(
        "length of rows", "Compares the longest row with the context, and ids with the vocabulary size.",
        "one look at each row", "the context, and one token more, which is only a target",
        ("max length", "tokenizer", "targets"), check_length,
    ),
)  # fmt: skip
