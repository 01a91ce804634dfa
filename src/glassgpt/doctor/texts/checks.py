"""The checks of texts, and the functions that load what they examine."""

from glassgpt.doctor.texts.conversation_checks import CONVERSATION_CHECKS
from glassgpt.doctor.texts.conversation_subject import load_conversations
from glassgpt.doctor.texts.corpus_checks import CORPUS_CHECKS
from glassgpt.doctor.texts.corpus_subject import load_corpus
from glassgpt.doctor.texts.tokenizer_checks import TOKENIZER_CHECKS
from glassgpt.doctor.texts.tokenizer_loading import load_tokenizer_subject

__all__ = [
    "CONVERSATION_CHECKS", "CORPUS_CHECKS", "TOKENIZER_CHECKS", "load_conversations", "load_corpus",
    "load_tokenizer_subject",
]  # fmt: skip
