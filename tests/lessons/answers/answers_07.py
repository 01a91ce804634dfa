"""Right and wrong answers to the exercises of lesson 7."""

from collections import Counter

SPECIAL = ["<|unk|>", "<|endoftext|>"]


def build_vocabulary(words, size, room=2, ties=True):
    counts = Counter(words)
    kept = sorted(counts, key=lambda word: (-counts[word], word if ties else ""))
    return {word: i for i, word in enumerate(kept[: size - room] + SPECIAL)}


def encode_documents(documents, vocabulary, between=False, special=False):
    unknown, end = (vocabulary[name] for name in SPECIAL)
    ids = []
    for document in documents:
        ids.extend(vocabulary.get(word, unknown) if special or word not in SPECIAL else unknown for word in document)
        ids.append(end)
    return ids[:-1] if between else ids


RIGHT = {"build_vocabulary": build_vocabulary, "encode_documents": encode_documents}
WRONG = {
    "build_vocabulary": [
        lambda words, size: build_vocabulary(words, size, room=0),  # two too many
        lambda words, size: build_vocabulary(words, size, ties=False),  # in the order of the text
        lambda words, size: {word: i for i, word in enumerate([*sorted(set(words))[: size - 2], *SPECIAL])},
    ],
    "encode_documents": [
        lambda documents, vocabulary: encode_documents(documents, vocabulary, between=True),
        lambda documents, vocabulary: encode_documents(documents, vocabulary, special=True),
        lambda documents, vocabulary: [vocabulary[word] for document in documents for word in document],
    ],
}
