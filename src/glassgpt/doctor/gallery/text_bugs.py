"""Bugs of data, tokenizers and conversations, put into the programs that prepare them."""

from collections.abc import Iterator

from glassgpt.doctor.gallery.bug import Bug, import_program
from glassgpt.doctor.report import Outcome, run_checks
from glassgpt.doctor.texts.conversation_checks import CONVERSATION_CHECKS
from glassgpt.doctor.texts.conversation_subject import conversations_of
from glassgpt.doctor.texts.corpus_checks import CORPUS_CHECKS
from glassgpt.doctor.texts.corpus_subject import corpus_of
from glassgpt.doctor.texts.foreign_tokenizer import adapt_tokenizer
from glassgpt.doctor.texts.tokenizer_checks import TOKENIZER_CHECKS

#: The correct programs, by name: what each makes, and the name of its factory.
TEXT_PROGRAMS: dict[str, tuple[str, str]] = {
    "sft_rows": ("conversations", "make"),
    "alpaca_rows": ("conversations", "make"),
    "packed_rows": ("conversations", "make"),
    "last_answer": ("conversations", "make"),
    "byte_bpe": ("tokenizer", "make"),
    "text_split": ("corpus", "make"),
}


def examine_text(program: str, bug: Bug | None = None) -> Iterator[Outcome]:
    """Run the checks on what a program makes, with a bug in it."""
    kind, factory = TEXT_PROGRAMS[program]
    made = getattr(import_program(program, bug), factory)()
    if kind == "tokenizer":
        return run_checks(TOKENIZER_CHECKS, adapt_tokenizer(made, program))
    if kind == "corpus":
        return run_checks(CORPUS_CHECKS, corpus_of(made, program))
    return run_checks(CONVERSATION_CHECKS, conversations_of(made, program))


TEXT_BUGS: tuple[Bug, ...] = (
    Bug(
        "prompts-trained", "mask", "The labels are a copy of the ids: the user's messages are trained, too.",
        {
            "sft_rows": (("            labels += [IGNORE] * len(tokens)", "            labels += tokens"),),
            "alpaca_rows": (("    targets[: len(head) - 1] = -100\n", ""),),
            "packed_rows": (("[0] * len(head) + [1]", "[1] * len(head) + [1]"),),
            "last_answer": (("[-100] * (len(ids) + 1) + answer[1:]", "ids + answer"),
                            ("    ids = ids + answer\n    left", "    ids = ids + answer\n    labels = list(ids)\n  "
                                                                 "  left")),
        },
    ),
    Bug(
        "end-not-trained", "mask", "The token that ends the answer is left out of the loss.",
        {
            "sft_rows": (("tokens[skip:-1] + [IGNORE]", "tokens[skip:-2] + [IGNORE] * 2"),),
            "alpaca_rows": (("    return inputs, targets", "    targets[-1] = -100\n    return inputs, targets"),),
            "packed_rows": (("for token, on in zip(y", "and token != enc.eot_token else -100 for token, on in zip(y"),
                            ("token if on else -100 and", "token if on and")),
            "last_answer": (("+ answer[1:]", "+ answer[1:-1] + [-100]"),),
        },
    ),
    Bug(
        "no-end-token", "mask", "No end token is put behind the answer.",
        {
            "alpaca_rows": (("head + body + [tokenizer.eos_id]", "head + body"),),
            "packed_rows": ((' {answer}") + [enc.eot_token]', ' {answer}\\n")'),),
        },
    ),
    Bug(
        "first-answer-token-masked", "mask", "The mask is one token too long: the first token of the answer is not "
                                             "trained.",
        {
            "alpaca_rows": (("targets[: len(head) - 1]", "targets[: len(head) + 1]"),),
            "sft_rows": (('skip = 1 + len(tokenizer.encode("assistant\\n"))', 'skip = 2 + '
                'len(tokenizer.encode("assistant\\n"))'),),
            "last_answer": (("(len(ids) + 1) + answer[1:]", "(len(ids) + 2) + answer[2:]"),),
        },
    ),
    Bug(
        "rows-cut-before-the-answer", "mask", "Rows are cut to a length at which the answers are gone.",
        {
            "sft_rows": (("ids, labels = ids[:MAX_LENGTH], labels[:MAX_LENGTH]", "ids, labels = ids[:90], "
                "labels[:90]"),),
            "alpaca_rows": (("    return inputs, targets", "    return inputs[:12], targets[:12]"),),
        },
    ),
    Bug(
        "padding-trained", "mask", "The labels of the padding are the padding token.",
        {
            "sft_rows": (("labels + [IGNORE] * room", "labels + [tokenizer.pad_token_id] * room"),),
            "packed_rows": (("y + [-100] * pad", "y + [enc.eot_token] * pad"),),
        },
    ),
    Bug(
        "begin-token-twice", "template", "The template begins with the begin token, and the tokenizer adds another.",
        {"last_answer": (("def row(chat):\n    ids = [BOS]", "def row(chat):\n    ids = [BOS, BOS]"),)},
    ),
    Bug(
        "another-template-at-sampling", "template", "Sampling writes the turns in another form than the training rows.",
        {
            "sft_rows": (('"<|im_start|>{m[\'role\']}\\n{m[\'content\']}<|im_end|>\\n"', '"{m[\'role\']}: '
                '{m[\'content\']}\\n"'),),
            "alpaca_rows": (('prompt(messages[-1]["content"])', '"### Instruction:\\n" + messages[-1]["content"] + '
                                                                '"\\n\\n### Answer:\\n"'),),
            "packed_rows": (('f"User: {m[\'content\']}\\nAssistant:" if', 'f"User: '
                '{m[\'content\']}\\n\\nAssistant:" if'),),
        },
    ),
    Bug(
        "no-generation-prompt", "template", "At sampling, the start of the assistant's turn is missing.",
        {
            "sft_rows": (('    return text + "<|im_start|>assistant\\n"', "    return text"),),
            "last_answer": (("[[*ids, BOT]]", "[ids]"),),
        },
    ),
    Bug(
        "roles-swapped", "template", "The roles of user and assistant are exchanged.",
        {
            "sft_rows": (
                ("def make():\n", "def make():\n    names = {'user': 'assistant', 'assistant': 'user', 'system': "
                                  "'system'}\n"
                 "    for chat in CONVERSATIONS:\n        for m in chat:\n            m['role'] = names[m['role']]\n"),
            ),
            "packed_rows": (('{"role": "user", "content": q}, {"role": "assistant", "content": a}',
                             '{"role": "assistant", "content": q}, {"role": "user", "content": a}'),),
        },
    ),
    Bug(
        "end-of-turn-in-pieces", "tokenizer", "The token that ends a turn is written as text, and encoded in pieces.",
        {"sft_rows": (("content), end, *tokenizer.encode(\"\\n\")]", "content + \"<|im_end|>\\n\")]"),
                      ("tokens[skip:-1] + [IGNORE]", "tokens[skip:]"))},
    ),
    Bug(
        "answers-empty", "mask", "A key is misspelt, and the answers are empty.",
        {
            "alpaca_rows": (("    body = tokenizer.encode(answer)", "    body = []"),
                            ('{"role": "assistant", "content": answer}', '{"role": "assistant", "content": ""}')),
            "packed_rows": (('{"role": "assistant", "content": a}', '{"role": "assistant", "content": ""}'),
                            ('(f" {answer}")', '("")')),
        },
    ),
    Bug(
        "labels-shifted-twice", "targets", "The labels are two tokens ahead.",
        {"alpaca_rows": (("torch.tensor(ids[1:])", "torch.tensor(ids[2:] + ids[:1])"),),
         "packed_rows": (("ids[:-1], ids[1:]", "ids[:-1], ids[2:] + ids[:1]"),)},
    ),
    Bug(
        "longer-than-the-context", "max length", "Rows are longer than the model's context.",
        {"sft_rows": (("data.context = MAX_LENGTH", "data.context = 256"),)},
    ),
    Bug(
        "text-becomes-special", "tokenizer", "Special tokens are found in the text of users.",
        {
            "byte_bpe": (
                ("        return [i for word in self.split(text) for i in self.encode_word(word)]",
                 "        for name, i in self.special_tokens.items():\n            if name in text:\n"
                 "                a, b = text.split(name, 1)\n                return [*self.encode(a), i, "
                 "*self.encode(b)]\n"
                 "        return [i for word in self.split(text) for i in self.encode_word(word)]"),
            )
        },
    ),
    Bug(
        "decoded-token-by-token", "tokenizer", "Each token is decoded by itself, so that characters of several are "
                                               "lost.",
        {"byte_bpe": ((
            "        return data.decode(\"utf-8\", errors=\"replace\")",
            "        return \"\".join((names[i] if i in names else self.vocab[i].decode(\"utf-8\", \"ignore\")) for "
            "i in ids)",
        ),)},
    ),
    Bug(
        "spaces-lost", "tokenizer", "The text is split at white space, which is not kept.",
        {"byte_bpe": ((
            "        return [part.encode(\"utf-8\") for part in [*words, word] if part]",
            "        return [(\" \" + part).encode(\"utf-8\") for part in text.split()]",
        ),)},
    ),
    Bug(
        "merges-in-wrong-order", "tokenizer", "The newest merge is applied first, not the oldest.",
        {"byte_bpe": ((
            "            pair = min(pairs, key=lambda pair: self.merges.get(pair, float(\"inf\")))",
            "            pair = max(pairs, key=lambda pair: self.merges.get(pair, -1))",
        ),)},
    ),
    Bug(
        "end-token-is-a-byte", "tokenizer", "The end token has the id of an ordinary byte.",
        {"byte_bpe": (("self.eos_token_id = self.special_tokens[\"<|endoftext|>\"]", "self.eos_token_id = 0"),)},
    ),
    Bug(
        "vocabulary-too-small", "tokenizer", "The vocabulary size leaves out the special tokens.",
        {"byte_bpe": (("        self.vocab_size = vocab_size", "        self.vocab_size = len(self.vocab)"),)},
    ),
    Bug(
        "same-id-twice", "tokenizer", "Two special tokens have the same id.",
        {"byte_bpe": (("\"<|im_end|>\": vocab_size - 1", "\"<|im_end|>\": vocab_size - 2"),)},
    ),
    Bug(
        "ascii-only", "tokenizer", "Characters beyond ASCII are dropped.",
        {"byte_bpe": (("[part.encode(\"utf-8\") for part", "[part.encode(\"ascii\", \"ignore\") for part"),)},
    ),
    Bug(
        "train-on-everything", "data leak", "The training split is all documents, those of validation, too.",
        {"text_split": (("train, val = documents[:cut], documents[cut:]", "train, val = documents, documents[cut:]"),)},
    ),
    Bug(
        "split-after-repeating", "data leak", "Documents are repeated and shuffled before the split.",
        {"text_split": (("    cut = int(0.9 * len(documents))\n",
                         "    documents = globals()[\"documents\"] * 4\n    random.Random(0).shuffle(documents)\n"
                         "    cut = int(0.9 * len(documents))\n"),)},
    ),
    Bug(
        "split-of-sentences", "data leak", "Overlapping windows of one text are shuffled before the split.",
        {"text_split": (("    cut = int(0.9 * len(documents))\n    train, val = documents[:cut], documents[cut:]",
                         "    text = \" \".join(documents)\n    windows = [text[i : i + 400] for i in range(0, "
                         "len(text) - 400, 100)]\n"
                         "    random.Random(0).shuffle(windows)\n    cut = int(0.9 * len(windows))\n"
                         "    train, val = windows[:cut], windows[cut:]"),)},
    ),
)  # fmt: skip
