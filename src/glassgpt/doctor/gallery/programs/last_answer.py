"""Chats in which the assistant speaks first and only its last answer is trained; padded on the left, as tensors."""

import torch

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,!?'\n:"
PAD, BOS, USER, BOT, END = range(5)
itos = {i + 5: c for i, c in enumerate(ALPHABET)}
stoi = {c: i for i, c in itos.items()}
NAMES = {PAD: "<pad>", BOS: "<s>", USER: "<|user|>", BOT: "<|bot|>", END: "</s>"}


class CharTokenizer:
    special_tokens = {name: i for i, name in NAMES.items()}
    bos_token_id, eos_token_id, pad_token_id = BOS, END, PAD
    vocab_size = 5 + len(ALPHABET)

    def encode(self, s):
        return [stoi[c] for c in s]

    def decode(self, ids):
        return "".join(NAMES[i] if i in NAMES else itos[i] for i in ids)


tokenizer = CharTokenizer()
CHATS = [
    [("assistant", "Hello! What can I do?"), ("user", "Tell me a color."), ("assistant", "Blue is a color.")],
    [("assistant", "Hi there."), ("user", "Sing!"), ("assistant", "La la la."), ("user", "Louder!"),
     ("assistant", "LA LA LA!")],
    [("assistant", "Welcome back."), ("user", "Where were we?"), ("assistant", "You asked about the moon.")],
]  # fmt: skip
LENGTH = 96


def tokens(role, content):
    return [USER if role == "user" else BOT, *tokenizer.encode(content), END]


def row(chat):
    ids = [BOS]
    for role, content in chat[:-1]:
        ids += tokens(role, content)
    answer = tokens(*chat[-1])
    labels = [-100] * (len(ids) + 1) + answer[1:]
    ids = ids + answer
    left = LENGTH - len(ids)
    return {
        "input_ids": torch.tensor([PAD] * left + ids),
        "labels": torch.tensor([-100] * left + labels),
        "attention_mask": torch.tensor([0] * left + [1] * len(ids)),
    }


class Chats(torch.utils.data.Dataset):
    def __init__(self):
        self.tokenizer = tokenizer
        self.messages = [[{"role": role, "content": text} for role, text in chat] for chat in CHATS]

    @property
    def rows(self):
        return [row(chat) for chat in CHATS]

    def render_prompt(self, messages):
        """Ids, as the template cannot be written in characters."""
        ids = [BOS]
        for message in messages:
            ids += tokens(message["role"], message["content"])
        return torch.tensor([[*ids, BOT]])


def make():
    return Chats()
