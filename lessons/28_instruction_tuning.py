# %% [markdown]
# # Lesson 28: instruction tuning and its mask
#
# You will know at the end: how a conversation becomes tokens, which of them an assistant is trained on, what changes if
# it is trained on all, and why some assistants never stop.
#
# Time: 8 minutes to read, about 33 seconds to compute. Before: lessons 18 (training) and 9 (inputs and targets). The
# picture needs `pip install glassgpt[plot]`.

# %% [markdown]
# ## A conversation is a text
#
# To make an assistant of a GPT, we write conversations in a fixed form, a *chat template*, and train it to continue
# them. This one is ChatML:
#
#     <|im_start|>user
#     double q<|im_end|>
#     <|im_start|>assistant
#     qq<|im_end|>
#
# `<|im_start|>` and `<|im_end|>` are *control tokens*: one token each, which no typed text ever becomes. So no user can
# write in the name of the assistant.

# %%
import math
import random
import string
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from glassgpt.config import ModelConfig
from glassgpt.learn import picture, predict, seed, short
from glassgpt.model import GPT
from glassgpt.tokenizer import CharTokenizer
from glassgpt.tokenizer.chat import CHATML, encode_trained
from glassgpt.tokenizer.chatml import with_chatml

tokenizer = with_chatml(CharTokenizer.train(string.ascii_letters + " \n?"), Path("lesson"))
START, END = (tokenizer.special_ids()[name] for name in ("<|im_start|>", "<|im_end|>"))


def encode(messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and for each whether it is trained."""
    ids, trained = [], []
    for message in messages:
        head = [START, *tokenizer.encode(message["role"] + "\n")]
        body = [*tokenizer.encode(message["content"]), END]
        ids += [*head, *body, *tokenizer.encode("\n")]
        trained += [False] * len(head) + [message["role"] == "assistant"] * len(body) + [False]
    return ids, trained


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


example = turn("double q", "qq")
guess = predict("'double q' and 'qq', one token per character, as above: how many tokens? And how many are trained?")
ids, trained = encode(example)
guess.measured(f"{len(ids)} tokens, {sum(trained)} trained")
for messages in (example, turn("big a", "A") + turn("after y", "z")):
    assert encode(messages) == encode_trained(tokenizer, CHATML, messages), "ours and the package's"

# %% [markdown]
# Why not train on the questions? The assistant never writes them. And nobody can predict what a user asks: the gradient
# of their loss is mostly noise.
#
# ## The mask and the shift
#
# The target of position t is token t + 1 (lesson 9). The mask belongs to the *targets*, so it has to be shifted with
# them. A target that is not trained is -100: `cross_entropy` leaves it out, in the sum and in the count.


# %%
def targets_of(ids: list[int], trained: list[bool]) -> Tensor:
    """The targets of the positions 0 to N - 2; -100 where nothing is trained."""
    return torch.tensor([token if counts else -100 for token, counts in zip(ids[1:], trained[1:], strict=True)])


logits, targets = torch.randn(len(ids) - 1, tokenizer.vocab_size), targets_of(ids, trained)
by_hand = torch.stack([-logits[t].log_softmax(-1)[y] for t, y in enumerate(targets) if y != -100]).mean()
assert torch.allclose(by_hand, F.cross_entropy(logits, targets)), "the mean over the trained targets alone"


def show(targets: Tensor) -> None:
    """Print each input token above its target; a dot where nothing is trained."""
    names = {START: "<", END: ">", -100: ".", tokenizer.encode("\n")[0]: "/"}
    print("input  ", "".join(names.get(i) or tokenizer.decode([i]) for i in ids[:-1]))
    print("target ", "".join(names.get(i) or tokenizer.decode([i]) for i in targets.tolist()))


show(targets)

# %% [markdown]
# At the line end (`/`) after `assistant`, the target is the first letter of the answer. At its last letter, it is the
# end token (`>`).
#
# **A usual bug** is to shift the targets and to forget the mask. Then everything is one place too late:

# %%
show(targets_of(ids, [False, *trained[:-1]]))
print("the first letter of the answer is not trained, and the line end after it is")

# %% [markdown]
# ## Train it, with and without the mask
#
# Four kinds of questions about 26 letters make 104 conversations. The model memorises them.

# %%
letters, conversations = string.ascii_lowercase, []
for i, letter in enumerate(letters):
    conversations += [turn(f"double {letter}", 2 * letter), turn(f"big {letter}", letter.upper())]
    conversations += [turn(f"after {letter}", letters[(i + 1) % 26]), turn(f"before {letter}", letters[i - 1])]
config = ModelConfig(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=2, n_head=4, n_embd=64)


def rows(chosen: list[list[dict[str, str]]], mask: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, T], padded on the right."""
    inputs, targets = [], []
    for messages in chosen:
        ids, trained = encode(messages)
        if mask == "everything":
            trained = [True] * len(ids)
        if mask == "no end":
            trained = [counts and i != END for counts, i in zip(trained, ids, strict=True)]
        inputs.append(torch.tensor(ids[:-1]))
        targets.append(targets_of(ids, trained))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(inputs, batch_first=True), pad(targets, batch_first=True, padding_value=-100)


def train(mask: str, steps: int) -> tuple[GPT, list[float]]:
    model = GPT(config)
    model.init_weights(seed=0)
    optimizer, order, losses = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0), random.Random(1), []
    for _ in range(steps):
        inputs, targets = rows(order.sample(conversations, 32), mask)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


steps = short(full=400, quick=30)
length = sum(len(encode(c)[0]) - 1 for c in conversations) / len(conversations)
floor = math.log(4 * 26) / length
guess = predict("Trained on everything, the loss cannot get to 0: kind and letter are random. Where does it stop?")
seed(0)
masked, masked_losses = train("answers", steps)
everything, all_losses = train("everything", steps)
guess.measured(f"{all_losses[-1]:.3f}; possible: (ln 4 + ln 26) / {length:.0f} tokens = {floor:.3f}")
print(f"with the mask: {masked_losses[-1]:.3f}")

# %% [markdown]
# The two numbers are means over different tokens. Compare them on the same ones: the answers.


# %%
@torch.no_grad()
def test(model: GPT) -> float:
    inputs, targets = rows(conversations, "answers")
    return float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))


print(f"loss on the answers: masked {test(masked):.3f}, trained on everything {test(everything):.3f}")

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5))
axes.plot(masked_losses, label="trained on the answers")
axes.plot(all_losses, label="trained on everything")
axes.axhline(floor, color="grey", linestyle=":", label="lowest possible for everything")
axes.set(xlabel="step", ylabel="loss (nats)", title="Trained on the answers, and on everything", yscale="log")
axes.legend()
picture(figure, "28-mask")

# %% [markdown]
# The answers are 2 or 3 of about 28 trained tokens, so the mean over everything hides them: it looks almost finished
# while many answers are still guesses.
#
# ## The assistant that never stops
#
# **The most usual bug**: the end token is not trained. Programs mask it by accident where it also serves as padding.
# The answers are good, and then the model goes on.


# %%
@torch.no_grad()
def answer(model: GPT, question: str) -> str:
    """The answer, greedily, 12 tokens at most."""
    text, shown = tokenizer.encode("user\n" + question), ""
    ids = torch.tensor([[START, *text, END, *tokenizer.encode("\n"), START, *tokenizer.encode("assistant\n")]])
    while (new := int(model(ids)[0, -1].argmax())) != END and len(shown) < 12:
        ids, shown = torch.cat([ids, torch.tensor([[new]])], dim=1), shown + tokenizer.decode([new])
    return repr(shown) + ("" if new == END else " ... and goes on")


no_end, _ = train("no end", steps)
guess = predict("After 'qq', what is the probability of the end token, in a model that was never trained on it?")
inputs, _ = rows([example], "answers")
at = len(ids) - 3  # the position of the last letter of the answer
with torch.no_grad():
    right, without = (float(m(inputs)[0, at].softmax(-1)[END]) for m in (masked, no_end))
guess.measured(f"{without:.6f} (trained on it: {right:.3f})")
assert without < 0.05 < right
for question in [messages[0]["content"] for messages in conversations[40:44]]:
    print(f"{question:<10} end trained: {answer(masked, question):<12} not trained: {answer(no_end, question)}")

# %% [markdown]
# ## In real systems
#
# Training has three parts: a base model reads trillions of tokens; then come the conversations (*supervised
# fine-tuning*, this lesson), tens of thousands to millions; then answers are compared or scored (DPO, PPO, GRPO).
# Several conversations share one row of a batch (*packing*). Each family stores its template as a Jinja program beside
# its weights; with the template of another family it answers badly, without an error.
#
# ## Exercises
#
# 1. `targets(ids, trained)` returns a list with one entry less: the next token, or -100 where it is not trained.
# 2. `trained_tokens(ids, start, end, assistant)`: ids of a ChatML conversation; `start` and `end` are the ids of its
#    control tokens, `assistant` the list of ids of `"assistant\n"`. Return a list of bool: True for the tokens of the
#    assistant's answers and the `end` of each.
#
# Check them with `glassgpt learn 28 --check my_answer.py`.
#
# Next: `glassgpt tune show CHATS.jsonl MODEL` colours what is trained of your own conversations; `glassgpt doctor
# MODEL --conversations CHATS.jsonl` checks them. Then lesson 29: the debugging clinic.
