# %% [markdown]
# # Lesson 8: byte-pair encoding
#
# You will know at the end: how GPT-2's kind of tokenizer learns its vocabulary from a text, how it encodes a new text
# with it, why no text is unknown to it, and what a vocabulary costs and gains.
#
# Time: 10 minutes. Before: lesson 7 (word tokenizers).
#
# The picture needs matplotlib (`pip install 'glassgpt[plot]'`). One comparison needs tiktoken
# (`pip install 'glassgpt[tiktoken]'`); without it, that comparison is skipped.

# %% [markdown]
# ## Between characters and words
#
# Words as tokens have a problem: every new word is unknown (lesson 7). Characters have another one: texts become five
# times as long. *Byte-pair encoding* (BPE) lies between the two. It begins with the 256 bytes. It counts which two
# tokens stand next to each other most often, and joins this pair into a new token. Then it counts again. Frequent words
# become one token; rare words stay in pieces. Every text is a sequence of bytes, so nothing is ever unknown.

# %%
from collections import Counter
from itertools import pairwise

import regex

from glassgpt.assets import tutor
from glassgpt.learn import equal, picture, predict, short
from glassgpt.tokenizer.pretokenize import PATTERNS

text = tutor.general_path().read_text(encoding="utf-8")[: short(full=10_000, quick=4_000)]
print(text[:60])
guess = predict("How many bytes are the 4 characters of 'né 🙂' in UTF-8? (one is a space)")
guess.measured(f"{len('né 🙂'.encode())}: {list('né 🙂'.encode())}")

# %% [markdown]
# ## First step: cut the text into pieces
#
# GPT-2 first cuts a text into *pre-tokens*: roughly words, each with the space before it. No token crosses a border
# between two of them. Otherwise "dog." and "dog!" and "dog," would become tokens. A regular expression does it.

# %%
pieces = regex.findall(PATTERNS["gpt2"], "It's 2 dogs, isn't it?")
print(pieces)
assert "".join(pieces) == "It's 2 dogs, isn't it?", "nothing is lost"

# %% [markdown]
# ## Second step: learn the merges
#
# A word is a list of ids. At first these are its bytes. GPT-2 numbers the bytes in an order of its own: the printable
# ones first. We do the same, to get the same ids.

# %%
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [bytes([b]) for b in [*printable, *(b for b in range(256) if b not in printable)]]
id_of = {byte: i for i, byte in enumerate(BYTES)}


def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace every occurrence of a pair by a new id, from left to right."""
    merged, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged


def learn(text: str, number: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Learn merges; also return how many tokens the text has before the first merge and after each."""
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
print("the first merges:", [token.decode() for token in tokens[256:276]])
print("the last merges: ", [token.decode(errors="replace") for token in tokens[-10:]])

# %% [markdown]
# The package learns the same merges. It is faster, because after a merge it visits only the words that contain it.

# %%
from glassgpt.tokenizer import BPETokenizer

package = BPETokenizer.train(text, 256 + number + 1)  # 1 for <|endoftext|>
assert package.model.merges == [(tokens[left], tokens[right]) for left, right in merges]
print(f"equal: all {number} merges, in their order")

# %% [markdown]
# ## Third step: encode a new text
#
# Encoding repeats what happened in training: of all pairs of neighbours, merge the one that was learned *first* (its
# *rank* is the lowest), until no pair is left that was ever merged.

# %%
import torch

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
# An outside judge: tiktoken is OpenAI's encoder. It receives our tokens and their ids, and must find the same ids.

# %%
try:
    import tiktoken
except ImportError:
    print("skipped: tiktoken is not installed (pip install 'glassgpt[tiktoken]')")
else:
    theirs = tiktoken.Encoding(
        "by-hand", pat_str=PATTERNS["gpt2"], mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens={},
    )  # fmt: skip
    for sample in samples:
        assert theirs.encode(sample) == encode(sample, ranks)
    print(f"equal: tiktoken's ids of {len(samples)} texts")

# %% [markdown]
# ## What a larger vocabulary buys
#
# More merges make texts shorter, so the same context holds more of a text. Later merges gain less than earlier ones,
# and each token costs a row in the embedding and in the head.

# %%
import matplotlib.pyplot as plt

guess = predict(f"How many bytes does a token have on average after {number} merges? (before the first: 1)")
bytes_per_token = [lengths[0] / length for length in lengths]
guess.measured(bytes_per_token[-1])
half = bytes_per_token[number // 2]
print(f"after {number // 2} merges it is {half:.2f}: the second half gains less than the first")
assert bytes_per_token[-1] - half < half - 1

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(bytes_per_token)
axes.set(xlabel="merges learned", ylabel="bytes per token", title="Later merges gain less than earlier ones")
axes.grid(alpha=0.3)
picture(figure, "08-merges")

# %% [markdown]
# ## GPT-2's tokenizer
#
# GPT-2 has 50,000 merges, learned from web pages in the same way, mostly in English. Its ids have the same order: the
# 256 bytes, then the merges. So our function `encode` with GPT-2's merges is GPT-2's tokenizer.

# %%
from glassgpt import assets

if assets.available("gpt2-bpe"):
    from glassgpt.tokenizer.pretrained import gpt2

    published = gpt2()
    ids = published.model.vocab  # bytes -> id
    gpt2_ranks = {(ids[left], ids[right]): rank for rank, (left, right) in enumerate(published.model.merges)}
    for sample in samples:
        mine = encode(sample, gpt2_ranks)
        equal(torch.tensor(mine), torch.tensor(published.encode(sample)), f"GPT-2's ids of {sample[:20]!r}")
    guess = predict("How many tokens of GPT-2 are: ' understanding', ' lentils', ' 12345678', ' 東京'?")
    guess.measured([len(published.encode(word)) for word in (" understanding", " lentils", " 12345678", " 東京")])
    print("' lentils' is", [published.token_bytes(i).decode() for i in published.encode(" lentils")])
else:
    print("skipped: GPT-2's vocabulary is not on this machine; `glassgpt tokenizer show gpt2 'some text'` fetches it")

# %% [markdown]
# Languages that were rare in the training text cost more tokens. So they cost more money and more context.
#
# ## The usual bugs
#
# **The longest match instead of the first merge.** It seems natural to take, from the left, the longest token that
# fits. This is another algorithm. The ids differ from those of training, no error is raised, and the model reads token
# sequences that it never saw.


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
assert differ
for name, ids in (("right", encode(differ[0], ranks)), ("wrong", longest_match(differ[0]))):
    print(f"{name}: {[tokens[i].decode() for i in ids]}")

# %% [markdown]
# **Decoding token by token.** A character of several bytes may lie in several tokens. One token alone is then not
# valid UTF-8. Join the bytes first, then decode. A program that prints a text while it is written has to wait for the
# rest of the character.

# %%
ids = encode("née 🙂", ranks)
print("token by token:", "".join(tokens[i].decode(errors="replace") for i in ids))
print("joined first:  ", b"".join(tokens[i] for i in ids).decode())

# %% [markdown]
# ## In real systems
#
# Llama 3 and GPT-4o use byte-level BPE, with another regular expression and 128,000 and 200,000 tokens. Larger
# vocabularies serve more languages, and make texts shorter; the head of the model grows. Llama 2, Mistral's first
# models and Gemma use SentencePiece, which merges characters, and falls back to bytes for unknown ones. Llama 3 cuts
# numbers into groups of three digits, Qwen into single digits, to make arithmetic easier.
#
# ## Exercises
#
# Write your answers into a file of your own, and check it with `glassgpt learn 8 --check my_answer.py`.
#
# 1. `most_frequent_pair(words)` receives a dict from words (tuples of ids) to their counts. It returns the pair of
#    neighbours that occurs most often in all of them; of equally frequent pairs, the smallest; None if there is none.
# 2. `apply_merges(word, merges)` receives bytes, and merges as a list of pairs of bytes in the order in which they
#    were learned. It returns the tokens of the word as a list of bytes.
#
# Next: `glassgpt tokenizer train TEXT bpe:1000 -o my-tokenizer`, then
# `glassgpt tokenizer show my-tokenizer 'your name'`. Then lesson 9: windows of inputs and targets.
