"""A byte-level BPE tokenizer written by hand: it learns its merges from a short text, and encodes with them."""

TEXT = (
    "the cat sat on the mat and the dog sat on the log; the cat and the dog are friends. "
    "There is nothing that the other animals of the house have not heard: they were there before. "
    "When the weather is fine they rest together under the old tree, and when it rains they stay inside. "
    "Nobody knows whether the mother of the cat or the father of the dog was here first. "
) * 3


class ByteBPE:
    def __init__(self, text, vocab_size):
        self.vocab = {i: bytes([i]) for i in range(256)}
        self.merges = {}
        self.train(text, vocab_size - 2)
        self.special_tokens = {"<|endoftext|>": vocab_size - 2, "<|im_end|>": vocab_size - 1}
        self.eos_token_id = self.special_tokens["<|endoftext|>"]
        self.vocab_size = vocab_size

    def train(self, text, size):
        words = [list(word) for word in self.split(text)]
        while len(self.vocab) < size:
            counts = {}
            for word in words:
                for pair in zip(word, word[1:], strict=False):
                    counts[pair] = counts.get(pair, 0) + 1
            pair = max(counts, key=lambda pair: (counts[pair], pair))
            new = len(self.vocab)
            self.merges[pair] = new
            self.vocab[new] = self.vocab[pair[0]] + self.vocab[pair[1]]
            words = [self.merge(word, pair, new) for word in words]

    @staticmethod
    def split(text):
        """Words with the space before them, as bytes."""
        words, word = [], ""
        for character in text:
            if character == " " and word.strip(" "):
                words.append(word)
                word = ""
            word += character
        return [part.encode("utf-8") for part in [*words, word] if part]

    @staticmethod
    def merge(ids, pair, new):
        out, i = [], 0
        while i < len(ids):
            if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
                out.append(new)
                i += 2
            else:
                out.append(ids[i])
                i += 1
        return out

    def encode_word(self, word):
        ids = list(word)
        while len(ids) > 1:
            pairs = set(zip(ids, ids[1:], strict=False))
            pair = min(pairs, key=lambda pair: self.merges.get(pair, float("inf")))
            if pair not in self.merges:
                break
            ids = self.merge(ids, pair, self.merges[pair])
        return ids

    def encode(self, text):
        return [i for word in self.split(text) for i in self.encode_word(word)]

    def decode(self, ids):
        names = {i: name for name, i in self.special_tokens.items()}
        data = b"".join(names[i].encode() if i in names else self.vocab[i] for i in ids)
        return data.decode("utf-8", errors="replace")


def make():
    return ByteBPE(TEXT, 340)
