# %% [markdown]
# # Lesson 8: byte-pair encoding
#
# You will know at the end: how GPT-2's kind of tokenizer learns its vocabulary from a text, how it encodes a new text,
# why no text is unknown to it, and what a larger vocabulary costs and gains.
#
# Time: 8 minutes to read, 4 seconds to compute. Before: lesson 7 (word tokenizers). The picture needs matplotlib
# (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Between characters and words
#
# With words as tokens, every new word is unknown (lesson 7). With characters, a text has several times as many tokens.
# *Byte-pair encoding* (BPE) lies between the two. It begins with the 256 bytes. It counts which two tokens stand next
# to each other most often, and joins this pair into a new token (a *merge*). Then it counts again. Frequent words
# become one token; rare words stay in pieces. Every text is a sequence of bytes (*UTF-8*: one byte for an English
# letter, up to four for other characters). So no text is unknown.

# %%
from collections import Counter
from itertools import pairwise

import regex
import torch

from glassgpt import assets
from glassgpt.assets import tutor
from glassgpt.learn import equal, picture, predict, short
from glassgpt.tokenizer import BPETokenizer
from glassgpt.tokenizer.pretokenize import PATTERNS

text = tutor.general_path().read_text(encoding="utf-8")[: short(full=10_000, quick=4_000)]
print("'né 🙂' in UTF-8:", list("né 🙂".encode()))

# %% [markdown]
# ## First step: cut the text into pieces
#
# GPT-2 first cuts a text into *pre-tokens*: roughly words, each with the space before it. No token crosses a border
# between two of them. Otherwise "dog." and "dog!" could become tokens. A regular expression does this.

# %%
print(regex.findall(PATTERNS["gpt2"], "It's 2 dogs, isn't it?"))

# %% [markdown]
# ## Second step: learn the merges
#
# Each pre-token (we call it a word) is a list of ids. At first these are its bytes. GPT-2 gives the bytes the ids 0 to
# 255, the printable ones first, and so do we. The ids from 256 on are merges.

# %%
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [bytes([b]) for b in [*printable, *(b for b in range(256) if b not in printable)]]
id_of = {byte: i for i, byte in enumerate(BYTES)}


def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace every occurrence of a pair by a new id, from left to right."""
    merged = []
    for i in ids:
        merged.append(i)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [new]
    return merged


def learn(text: str, number: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Merges, and the number of tokens in the text before the first merge and after each."""
    counts = Counter(regex.findall(PATTERNS["gpt2"], text))
    words = {word: [id_of[bytes([b])] for b in word.encode()] for word in counts}
    merges, lengths = [], [sum(len(words[word]) * count for word, count in counts.items())]
    for new in range(256, 256 + number):
        pairs = Counter()
        for word, ids in words.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))  # the most frequent; of equals, the smallest ids
        merges.append(best)
        words = {word: merge(ids, best, new) for word, ids in words.items()}
        lengths.append(sum(len(words[word]) * count for word, count in counts.items()))
    return merges, lengths


guess = predict("Which two bytes does the first merge of an English text join?")
number = short(full=300, quick=60)
merges, lengths = learn(text, number)
tokens = list(BYTES)  # id -> its bytes
for left, right in merges:
    tokens.append(tokens[left] + tokens[right])
guess.measured(repr(tokens[256].decode()))
print("the first and last merges:", [token.decode(errors="replace") for token in tokens[256:264] + tokens[-4:]])

# %% [markdown]
# The package learns the same merges, but is faster: after a merge it visits only the words that contain it.

# %%
package = BPETokenizer.train(text, 256 + number + 1)  # 1 for <|endoftext|>
assert package.model.merges == [(tokens[left], tokens[right]) for left, right in merges], "all merges are equal"

# %% [markdown]
# ## Third step: encode a new text
#
# Encoding does the merges in the order of training: of the pairs of neighbours in a word, merge the one that was
# learned *first* (its *rank* is the lowest). Repeat this until no such pair is left.

# %%
ranks = {pair: rank for rank, pair in enumerate(merges)}


def encode(text: str, ranks: dict[tuple[int, int], int]) -> list[int]:
    out = []
    for word in regex.findall(PATTERNS["gpt2"], text):
        ids = [id_of[bytes([b])] for b in word.encode()]
        while pairs := [pair for pair in pairwise(ids) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            ids = merge(ids, best, 256 + ranks[best])
        out += ids
    return out


samples = ["The other bread was there.", "Zürich  née 🙂 東京", "aaaa\n\n  x = y['k']", text[:2000]]
for sample in samples:
    equal(torch.tensor(encode(sample, ranks)), torch.tensor(package.encode(sample)), f"ids of {sample[:20]!r}")
    assert b"".join(tokens[i] for i in encode(sample, ranks)).decode() == sample, "decoding gives the text back"
print([tokens[i].decode(errors="replace") for i in encode(samples[0], ranks)])


# %% [markdown]
# ## What a larger vocabulary gains
#
# A model reads a limited number of tokens (its *context*). With more merges, more text fits into it. But each token of
# the vocabulary costs a row of weights at the input of the model, and one at its output.

# %%
import matplotlib.pyplot as plt

guess = predict(f"How many bytes does a token have on average after {number} merges? (before the first: 1)")
bytes_per_token = [lengths[0] / length for length in lengths]
guess.measured(bytes_per_token[-1])

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(bytes_per_token)
axes.set(xlabel="merges learned", ylabel="bytes per token", title="Later merges gain less than earlier ones")
picture(figure, "08-merges")

# %% [markdown]
# ## GPT-2's tokenizer
#
# GPT-2 has 50,000 merges, learned in the same way from web pages, mostly in English. Its ids have the same order. So
# our function `encode` with GPT-2's merges gives GPT-2's ids.

# %%
if assets.available("gpt2-bpe"):
    from glassgpt.tokenizer.pretrained import gpt2

    published = gpt2()
    ids = published.model.vocab  # bytes -> id
    gpt2_ranks = {(ids[left], ids[right]): rank for rank, (left, right) in enumerate(published.model.merges)}
    for sample in samples:
        mine, theirs = encode(sample, gpt2_ranks), published.encode(sample)
        equal(torch.tensor(mine), torch.tensor(theirs), f"GPT-2's ids of {sample[:20]!r}")
    guess = predict("How many tokens of GPT-2 are: ' understanding', ' lentils', ' 12345678', ' 東京'?")
    guess.measured([len(published.encode(word)) for word in (" understanding", " lentils", " 12345678", " 東京")])
else:
    print("skipped: GPT-2's vocabulary is not on this machine; `glassgpt tokenizer show gpt2 'a text'` fetches it")

# %% [markdown]
# Languages that were rare in the tokenizer's training text need more tokens for the same text, so they fill the context
# sooner.
#
# ## The usual bugs
#
# **The longest match instead of the first merge.** Why not take, from the left, the longest token that fits? All ids
# are valid. But the model reads sequences of tokens that it never saw in training.


# %%
def longest_match(text: str) -> list[int]:
    known, out = {token: i for i, token in enumerate(tokens)}, []
    for word in regex.findall(PATTERNS["gpt2"], text):
        rest = word.encode()
        while rest:
            size = next(size for size in range(len(rest), 0, -1) if rest[:size] in known)
            out.append(known[rest[:size]])
            rest = rest[size:]
    return out


words = sorted(set(regex.findall(PATTERNS["gpt2"], tutor.general_path().read_text(encoding="utf-8"))))
differ = [word for word in words if longest_match(word) != encode(word, ranks)]
guess = predict(f"For how many of {len(words)} words do the ids of the longest match differ?")
guess.measured(len(differ))
print("right:", [tokens[i].decode() for i in encode(differ[0], ranks)])
print("wrong:", [tokens[i].decode() for i in longest_match(differ[0])])

# %% [markdown]
# **Decoding token by token.** The bytes of one character may be in several tokens. One token alone is then not valid
# UTF-8. Join the bytes first, then decode. A chat program has to wait for the rest of the character.

# %%
ids = encode("née 🙂", ranks)
print("token by token:", "".join(tokens[i].decode(errors="replace") for i in ids))
print("joined first:  ", b"".join(tokens[i] for i in ids).decode())

# %% [markdown]
# ## In real systems
#
# Llama 3, Qwen and GPT-4o use byte-level BPE with larger vocabularies (more than 100,000 tokens) and other regular
# expressions: Llama 3 cuts numbers into groups of up to three digits, Qwen into single digits. Llama 2, Mistral's first
# models and Gemma use SentencePiece, which merges characters, and uses bytes for unknown ones.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 8 --check my_answer.py`.
#
# 1. `most_frequent_pair(words)` receives a dict from words (tuples of ids) to the number of times that each occurs. It
#    returns the pair of neighbours that occurs most often in all words; the word `(7, 7, 7)` contains `(7, 7)` twice.
#    If several pairs are equally frequent, it returns the smallest (as `min` does); None if there is no pair.
# 2. `apply_merges(word, merges)` receives a word as bytes, such as `b"the"`, and the merges in the order in which they
#    were learned, such as `[(b"h", b"e"), (b"t", b"he")]`. It returns the tokens as a list of bytes: `[b"the"]`.
#
# Next: `glassgpt tokenizer train TEXT bpe:1000 -o my-tokenizer`, then
# `glassgpt tokenizer show my-tokenizer 'your name'`. Then lesson 9: windows of inputs and targets.
