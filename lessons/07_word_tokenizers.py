# %% [markdown]
# # Lesson 7: word tokenizers
#
# You will know at the end: what a vocabulary is, how a text becomes ids and ids become a text, what happens to unknown
# words, what `<|endoftext|>` is for, and why language models no longer use words as tokens.
#
# Time: 7 minutes to read, 3 seconds to compute. Before: lesson 1 (tensors). The picture needs matplotlib
# (`pip install 'glassgpt[plot]'`).

# %% [markdown]
# ## Text to ids
#
# A model computes with numbers. A *tokenizer* cuts a text into pieces (*tokens*) and gives each a number, its *id*. The
# list of all its tokens is the *vocabulary*. The most natural pieces are words and punctuation marks. Our text comes
# with the package: short essays.

# %%
import re
from collections import Counter

import regex
import torch

from glassgpt.assets import tutor
from glassgpt.learn import equal, picture, predict

text = tutor.general_path().read_text(encoding="utf-8")
training, new = text[:8000], text[8000:]


def split_words(text: str) -> list[str]:
    return [word for word in re.split(r"([,.:;?!\"()']|\s)", text) if word.strip()]


print(split_words("Bread, salt, and water: is it soup?"))


# %% [markdown]
# ## The first tokenizer
#
# Sort the different words, and number them.


# %%
class FirstTokenizer:
    def __init__(self, text: str):
        self.words = sorted(set(split_words(text)))
        self.ids = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        return [self.ids[word] for word in split_words(text)]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


first = FirstTokenizer(training)
sentence = training[:90]
print("before:", repr(sentence))
print("after: ", repr(first.decode(first.encode(sentence))))

# %% [markdown]
# Two things are wrong. There are spaces before the commas, which the text does not have; a model that is trained on
# such tokens will write them too. And every new word is an error:

# %%
try:
    first.encode("Add paprika.")
except KeyError as error:
    print("KeyError:", error)

# %% [markdown]
# ## The second tokenizer
#
# It repairs both.
#
# * **Spaces.** Each word takes the space before it into its token: " and" is a token. Other white space is a token of
#   its own. So joining the tokens gives exactly the text.
# * **Unknown words.** They become a special token, `<|unk|>`.
# * **Vocabulary.** Only the most frequent words are kept; of equally frequent ones, the first in the order of their
#   characters.
# * **End of text.** `<|endoftext|>` is a special token after each document: what follows is another text. When a model
#   generates this token, the program stops.

# %%
# \p{L} is a letter of any script, \p{M} an accent, \p{N} a digit (the module regex has these, Python's re has not)
PATTERN = r" ?[\p{L}\p{M}\p{N}_]+(?:['’]\p{L}+)*| ?[^\s\p{L}\p{M}\p{N}_]|\s"  # a word; a mark; a white space
UNKNOWN, END = "<|unk|>", "<|endoftext|>"


class SecondTokenizer:
    def __init__(self, text: str, size: int):
        counts = Counter(regex.findall(PATTERN, text))
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = [*frequent[: size - 2], UNKNOWN, END]
        self.ids = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(word, self.ids[UNKNOWN]) for word in regex.findall(PATTERN, text)]

    def encode_documents(self, texts: list[str]) -> list[int]:
        return [i for text in texts for i in [*self.encode(text), self.ids[END]]]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


second = SecondTokenizer(training, 1000)
print([second.words[i] for i in second.encode("The bread and salt.")])
assert second.decode(second.encode(training)) == training, "nothing is lost in a text whose words are all known"
print(repr(second.decode(second.encode("Add paprika, and stir."))))
print(second.encode_documents(["The bread.", "The salt."]), "  the id of the end:", second.ids[END])

# %% [markdown]
# The package's word tokenizer has the same rules (`tokenizer=word:1000`).

# %%
from glassgpt.tokenizer import WordTokenizer

for size in (50, 300, 600):
    mine, theirs = SecondTokenizer(training, size), WordTokenizer.train(training, vocab_size=size)
    equal(torch.tensor(mine.encode(new)), torch.tensor(theirs.encode(new)), f"ids with {size} tokens")

# %% [markdown]
# ## What words cost
#
# A language has few frequent words and very many rare ones (*Zipf's law*). So no vocabulary of words is complete.

# %%
import matplotlib.pyplot as plt

counts = sorted(Counter(regex.findall(PATTERN, training)).values(), reverse=True)
guess = predict("Which share of the different words occurs only once in the text?")
guess.measured(counts.count(1) / len(counts))

guess = predict("We keep all words of the first 8,000 characters. Which share of the next text is unknown?")
unknown = {size: SecondTokenizer(training, size) for size in (50, 100, 200, 400, 10_000)}
shares = {size: t.encode(new).count(t.ids[UNKNOWN]) / len(t.encode(new)) for size, t in unknown.items()}
guess.measured(shares[10_000])
assert shares[10_000] > 0.1

figure, axes = plt.subplots(figsize=(5, 3.5))
axes.plot([len(t.words) for t in unknown.values()], list(shares.values()), marker="o")
axes.set(xlabel="tokens in the vocabulary", ylabel="share unknown", ylim=(0, 1), title="New text has new words")
picture(figure, "07-words")

# %% [markdown]
# An unknown word is lost: no model can write "paprika" if paprika has no token. With more text, the vocabulary becomes
# larger. But for each token the model has a row of weights (lesson 10), and the rows of rare words are hardly ever
# trained. Also, "soup" and "soups" are two tokens that have nothing in common.
#
# ## The usual bug: ids that change
#
# Suppose that we number the words of a `set`, and forget `sorted`. We start Python twice.

# %%
import os
import subprocess
import sys

program = "print({word: i for i, word in enumerate(set('a b c d e f g h'.split()))})"
guess = predict("Two starts of the same program: the same ids?")
outputs = [
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": number},
                   capture_output=True, text=True, check=True).stdout.strip()
    for number in ("1", "2")
]  # fmt: skip
guess.measured(outputs[0] == outputs[1])
print("\n".join(outputs))

# %%
assert outputs[0] != outputs[1]

# %% [markdown]
# A `set` of strings has another order in each start of Python. (It depends on `PYTHONHASHSEED`, which Python chooses;
# we set it, to get the same lesson each time.) The training works. But tomorrow the same ids mean other words, and the
# saved model writes nonsense. So sort, and save the vocabulary with the model.
#
# **A second bug: a special token in a user's text.** If a tokenizer turns the *text* "<|endoftext|>" into the special
# id, every user of a chat can end the document. The package does it only if the caller allows it:

# %%
trained = WordTokenizer.train(training, vocab_size=1000)
print("as text:      ", trained.encode(END))
print("where allowed:", trained.encode(END, allow_special=True))
assert trained.eos_token_id not in trained.encode(END)

# %% [markdown]
# ## In real systems
#
# Language models no longer use word tokenizers. BERT's WordPiece cuts words into known pieces, and still has an unknown
# token. GPT-2's byte-level BPE has none: every byte is a token (lesson 8). Chat models have more special tokens, for
# example at the end of each message.
#
# ## Exercises
#
# Check your answers with `glassgpt learn 7 --check my_answer.py`.
#
# 1. `build_vocabulary(words, size)` receives a list of words (with repetitions). It returns a dict from word to id: the
#    most frequent words first, equally frequent ones in the order of `sorted`; then `<|unk|>` and `<|endoftext|>`; at
#    most `size` entries in all (`size` is at least 3).
# 2. `encode_documents(documents, vocabulary)` receives a list of documents (each a list of words), and such a dict. It
#    returns one list of ids: unknown words as `<|unk|>`, and `<|endoftext|>` after each document. A word of a document
#    that is written like a special token is only a text: it becomes `<|unk|>`.
#
# Next: `glassgpt train TEXT preset=tiny tokenizer=word:2000` trains a GPT on words. Then lesson 8: byte-pair encoding.
