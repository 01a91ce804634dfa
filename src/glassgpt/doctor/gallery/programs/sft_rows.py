"""Rows for fine-tuning on conversations, prepared by hand: ChatML, padded, labels of -100 where nothing is trained."""

CONVERSATIONS = [
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
    ],
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "How many legs does a spider have?"},
        {"role": "assistant", "content": "A spider has eight legs."},
        {"role": "user", "content": "And an ant?"},
        {"role": "assistant", "content": "An ant has six legs."},
    ],
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Name a metal that is liquid at room temperature."},
        {"role": "assistant", "content": "Mercury is liquid at room temperature."},
    ],
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Which planet is the largest?"},
        {"role": "assistant", "content": "Jupiter is the largest planet."},
        {"role": "user", "content": "And the smallest?"},
        {"role": "assistant", "content": "Mercury is the smallest one."},
    ],
]
IGNORE = -100
MAX_LENGTH = 320


class Bytes:
    """One token per byte, and the control tokens behind them."""

    special = {"<|im_start|>": 256, "<|im_end|>": 257, "<|pad|>": 258}
    vocab_size = 259
    eos_token_id = 257
    pad_token_id = 258

    def encode(self, text):
        return list(text.encode("utf-8"))

    def decode(self, ids):
        names = {i: name.encode() for name, i in self.special.items()}
        return b"".join(names[i] if i in names else bytes([i]) for i in ids).decode("utf-8", errors="replace")


tokenizer = Bytes()


def turn(role, content):
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    return [start, *tokenizer.encode(role + "\n" + content), end, *tokenizer.encode("\n")]


def build_row(messages):
    ids, labels = [], []
    for message in messages:
        tokens = turn(message["role"], message["content"])
        ids += tokens
        if message["role"] == "assistant":
            skip = 1 + len(tokenizer.encode("assistant\n"))
            labels += [IGNORE] * skip + tokens[skip:-1] + [IGNORE]
        else:
            labels += [IGNORE] * len(tokens)
    ids, labels = ids[:MAX_LENGTH], labels[:MAX_LENGTH]
    room = MAX_LENGTH - len(ids)
    mask = [1] * len(ids) + [0] * room
    return {
        "input_ids": ids + [tokenizer.pad_token_id] * room,
        "labels": labels + [IGNORE] * room,
        "attention_mask": mask,
    }


def render(messages):
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + "<|im_start|>assistant\n"


class Data:
    pass


def make():
    data = Data()
    data.tokenizer = tokenizer
    data.messages = CONVERSATIONS
    data.rows = [build_row(messages) for messages in CONVERSATIONS]
    data.render_prompt = render
    data.context = MAX_LENGTH
    return data
