"""Several short chats packed into rows of one length; a text template; end tokens between the chats."""

CHATS = [
    ("Good morning!", "Good morning to you."),
    ("What do bees make?", "Bees make honey."),
    ("Which animal barks?", "A dog barks."),
    ("What falls in winter?", "Snow falls in winter."),
    ("Who writes books?", "Authors write books."),
    ("What is frozen water called?", "It is called ice."),
    ("What do we use to hear?", "We hear with our ears."),
    ("Where do fish live?", "Fish live in water."),
]
CONTEXT = 128


class Tok:
    eot_token = 256
    n_vocab = 257

    def encode_ordinary(self, text):
        return list(text.encode("utf-8"))

    def decode(self, tokens):
        return b"".join(b"<|endoftext|>" if t == 256 else bytes([t]) for t in tokens).decode("utf-8", "replace")


enc = Tok()


def tokenize(question, answer):
    head = enc.encode_ordinary(f"User: {question}\nAssistant:")
    tail = enc.encode_ordinary(f" {answer}") + [enc.eot_token]
    return head + tail, [0] * len(head) + [1] * len(tail)


def pack(chats):
    rows, ids, train = [], [], []
    for question, answer in chats:
        more, more_train = tokenize(question, answer)
        if len(ids) + len(more) > CONTEXT + 1:
            rows.append((ids, train))
            ids, train = [], []
        ids, train = ids + more, train + more_train
    rows.append((ids, train))
    return rows


def shift(ids, train):
    x, y = ids[:-1], ids[1:]
    y = [token if on else -100 for token, on in zip(y, train[1:], strict=True)]
    pad = CONTEXT - len(x)
    return x + [enc.eot_token] * pad, y + [-100] * pad


class Packed:
    tokenizer = enc
    block_size = CONTEXT
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in CHATS]
    rows = [shift(ids, train) for ids, train in pack(CHATS)]

    def render(self, messages):
        return "".join(
            f"User: {m['content']}\nAssistant:" if m["role"] == "user" else f" {m['content']}<|endoftext|>"
            for m in messages
        )


def make():
    return Packed()
