"""Rows of instructions and answers for a tokenizer of lower-case words: targets shifted by hand, no system prompt."""

import re

import torch

DATA = [
    ("Name the capital of France.", "The capital of France is Paris."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Name a color of the sky.", "The sky is often blue."),
    ("Is seven a prime number?", "Yes, seven is a prime number."),
]
TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"


class Words:
    """Lower-case words and marks; what it has not seen is <unk>. Spaces and line breaks are tokens."""

    def __init__(self, text):
        words = sorted(set(self.split(text)))
        self.str_to_int = {word: i for i, word in enumerate([*words, "<unk>", "<eos>"])}
        self.int_to_str = {i: word for word, i in self.str_to_int.items()}
        self.unk_id, self.eos_id = self.str_to_int["<unk>"], self.str_to_int["<eos>"]

    @staticmethod
    def split(text):
        return re.findall(r"\w+|\s|[^\w\s]", text.lower())

    def encode(self, text):
        return [self.str_to_int.get(word, self.unk_id) for word in self.split(text)]

    def decode(self, ids):
        return "".join(self.int_to_str[i] for i in ids)

    @property
    def vocab_size(self):
        return len(self.str_to_int)


def prompt(instruction):
    return TEMPLATE.format(instruction=instruction)


def example(tokenizer, instruction, answer):
    head = tokenizer.encode(prompt(instruction))
    body = tokenizer.encode(answer)
    ids = head + body + [tokenizer.eos_id]
    inputs, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    targets[: len(head) - 1] = -100
    return inputs, targets


def make_tokenizer():
    return Words("".join(prompt(question) + answer for question, answer in DATA))


def make():
    tokenizer = make_tokenizer()
    return {
        "tokenizer": tokenizer,
        "rows": [example(tokenizer, question, answer) for question, answer in DATA],
        "messages": [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in DATA
        ],
        "render": lambda messages: prompt(messages[-1]["content"]),
    }
