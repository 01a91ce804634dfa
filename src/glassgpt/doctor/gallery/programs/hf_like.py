"""A GPT-2 in the manner of a model hub: Conv1D weights, attention masks, position ids, a cache, shifted labels."""

from types import SimpleNamespace

import torch
from torch import nn


class GPT2Config:
    """The sizes, in a plain object."""

    model_type = "gpt2"

    def __init__(self, vocab_size=67, n_positions=26, n_embd=32, n_layer=2, n_head=4, pdrop=0.1):
        self.vocab_size, self.n_positions = vocab_size, n_positions
        self.n_embd, self.n_layer, self.n_head, self.pdrop = n_embd, n_layer, n_head, pdrop
        self.tie_word_embeddings = True


class Conv1D(nn.Module):
    """A linear layer with its weight transposed, [in, out]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    """Causal attention with a cache."""

    def __init__(self, config):
        super().__init__()
        n = config.n_positions
        self.register_buffer("bias", torch.ones(n, n, dtype=torch.bool).tril()[None, None], persistent=False)
        self.num_heads = config.n_head
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.attn_dropout = nn.Dropout(config.pdrop)
        self.resid_dropout = nn.Dropout(config.pdrop)

    def forward(self, x, attention_mask=None, layer_past=None, use_cache=False):
        B, T, C = x.shape
        heads = (part.unflatten(-1, (self.num_heads, -1)).permute(0, 2, 1, 3) for part in self.c_attn(x).chunk(3, -1))
        query, key, value = heads
        if layer_past is not None:
            key = torch.cat((layer_past[0], key), dim=-2)
            value = torch.cat((layer_past[1], value), dim=-2)
        present = None
        if use_cache:
            present = (key, value)
        S = key.size(-2)
        scores = query @ key.mT
        scores = scores / value.size(-1) ** 0.5
        mask = self.bias[:, :, S - T : S, :S]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].bool()
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        out = self.attn_dropout(scores.softmax(dim=-1)) @ value
        out = out.permute(0, 2, 1, 3).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(out)), present


class GPT2Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.c_fc = Conv1D(4 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, 4 * config.n_embd)
        self.act = nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(config.pdrop)

    def forward(self, x, **keywords):
        out, present = self.attn(self.ln_1(x), **keywords)
        x = x + out
        x = x + self.dropout(self.c_proj(self.act(self.c_fc(self.ln_2(x)))))
        return x, present


class GPT2LMHeadModel(nn.Module):
    """Ids to an object with loss, logits and past_key_values."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.01)
        self.drop = nn.Dropout(config.pdrop)
        self.h = nn.ModuleList([GPT2Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, labels=None, use_cache=False
    ):
        T = input_ids.shape[-1]
        past_length = 0 if past_key_values is None else past_key_values[0][0].size(-2)
        if attention_mask is not None and position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        if position_ids is None:
            position_ids = torch.arange(past_length, past_length + T, device=input_ids.device)
        x = self.drop(self.wte(input_ids) + self.wpe(position_ids))
        presents = ()
        for i, block in enumerate(self.h):
            past = {} if past_key_values is None else {"layer_past": past_key_values[i]}
            x, present = block(x, attention_mask=attention_mask, use_cache=use_cache, **past)
            presents += (present,)
        logits = self.lm_head(self.ln_f(x))
        loss = None
        if labels is not None:
            shift_logits = logits[..., :-1, :].contiguous()
            shift_labels = labels[..., 1:].contiguous()
            loss_fct = nn.CrossEntropyLoss()
            loss = loss_fct(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))
        return SimpleNamespace(loss=loss, logits=logits, past_key_values=presents if use_cache else None)


def model(seed=0, size=1, dtype="float32"):
    """Build the model."""
    torch.manual_seed(seed)
    sizes = {} if size == 1 else {"n_positions": 30, "n_embd": 48, "n_layer": 3, "n_head": 3}
    return GPT2LMHeadModel(GPT2Config(**sizes)).to(getattr(torch, dtype))
