"""For every class of bug: what usually causes it, how to fix it, and the lesson that explains it."""

from dataclasses import dataclass

from glassgpt.doctor.report import FINDINGS


@dataclass(frozen=True)
class Advice:
    """What helps against one class of bug.

    Attributes:
        meaning: what the class is, in one sentence.
        causes: the two or three usual causes.
        fix: one or two sentences.
        lesson: the number of the lesson that explains it (`glassgpt learn N`).
        code: a line or two of the right code, where that helps.
    """

    meaning: str
    causes: tuple[str, ...]
    fix: str
    lesson: int
    code: str = ""


ADVICE: dict[str, Advice] = {
    "leak": Advice(
        "A position sees tokens after it.",
        ("no causal mask, or it is never applied", "a mask that is off by one (`tril(diagonal=1)`)",
         "`view` instead of `transpose`, which mixes heads and positions"),
        "Mask the scores above the diagonal before the softmax, in train mode and in eval mode.", 14,
        "scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool, device=x.device).tril(), float('-inf'))"),
    "reach": Advice(
        "A position does not see all of its past.",
        ("a mask that hides too much, or a mask of the wrong length", "heads merged with the wrong `view`",
         "a `detach()` or `no_grad()` that cuts the gradient"),
        "Compare the mask with a lower triangle, and follow one tensor through `view` and `transpose`.",
        14, "y = y.transpose(1, 2).contiguous().view(B, T, C)  # from [B, heads, T, head_dim]"),
    "batch mixing": Advice(
        "A row of the batch changes the output of another row.",
        ("a mean, a softmax or a norm over the batch axis (`BatchNorm`, `dim=0`)",
         "`view` that swaps the batch with another axis", "batch-first data in a module that expects time first"),
        "Reduce over the last axis only, and give `batch_first=True` to modules of torch.nn.", 16,
        "nn.TransformerEncoderLayer(C, heads, batch_first=True)"),
    "softmax axis": Advice(
        "The attention weights of a query do not add up to one.",
        ("softmax over the queries or the heads instead of the keys", "`F.softmax(x)` without `dim`",
         "weights that are masked after the softmax and not normalised again"),
        "Take the softmax over the keys, which are the last axis of `q @ k.transpose(-2, -1)`, and mask before it.",
        12, "weights = scores.softmax(dim=-1)  # [B, heads, queries, keys]"),
    "norm": Advice(
        "A normalisation works over the wrong axis, or with the wrong formula.",
        ("mean and variance over the batch or the positions", "no epsilon, or one that is too large",
         "RMSNorm that divides by the sum or by the norm instead of the root mean square"),
        "Normalise every position by itself, over its C channels.", 16,
        "x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-5) * weight"),
    "residual": Advice(
        "A block replaces its input instead of adding to it.",
        ("`x = f(x)` where `x = x + f(x)` is meant", "the sum takes the normalised input, not the input",
         "an in-place operation changes the branch that is to be added"),
        "Add the output of attention and of the MLP to their input, before any norm of it.", 16,
        "x = x + self.attention(self.norm1(x)); x = x + self.mlp(self.norm2(x))"),
    "position": Advice(
        "The model does not know the order of the tokens, or counts it wrongly.",
        ("the position embedding is made and never added", "all positions get the same index",
         "rotary angles with the wrong offset, pairing or base, or applied to only one of query and key"),
        "Add one embedding per position, or rotate query and key by the angle of their own position.", 10,
        "x = self.tokens(idx) + self.positions(torch.arange(T, device=idx.device))"),
    "scale": Advice(
        "The attention scores have the wrong size.",
        ("the division by the root of the head size is missing, or done twice",
         "it divides by the root of C instead of the head size", "it divides by the head size without the root"),
        "Divide the scores by sqrt(head_dim) once. `F.scaled_dot_product_attention` does it already.",
        12, "scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))"),
    "grouped queries": Advice(
        "Query heads read the wrong key and value heads.",
        ("`repeat` (0 1 0 1) where `repeat_interleave` (0 0 1 1) is meant",
         "weights of one order loaded into code of the other", "keys and values repeated in different orders"),
        "Repeat each key and value head for its neighbouring query heads, both in the same way.", 15,
        "k = k.repeat_interleave(n_head // n_kv_head, dim=1)  # [B, heads, T, head_dim]"),
    "init": Advice(
        "The first loss is not ln V: the untrained model is sure of something.",
        ("weights that are too large (an embedding of std 1 that is also the head)",
         "a head whose input is not normalised", "a model below ln V sees its targets, or predicts its own input"),
        "Initialise linear layers and embeddings with std 0.02, and normalise before the head.",
        17, "nn.init.normal_(module.weight, mean=0.0, std=0.02)"),
    "output not logits": Advice(
        "The output is not logits, although the loss expects logits.",
        ("a softmax or log_softmax at the end of forward", "a ReLU, sigmoid or tanh on the logits",
         "a loss that takes the softmax a second time"),
        "Return the output of the head as it is. `F.cross_entropy` takes the log-softmax itself.",
        17, "loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())"),
    "dead parameters": Advice(
        "Parameters that get no gradient: they never learn.",
        ("a layer is made and never used", "`detach()`, `.data` or `no_grad()` in forward",
         "`requires_grad=False`, or a multiplication by zero"),
        "Use the parameter in forward, remove what cuts the gradient, or delete the layer.", 2),
    "unregistered parameters": Advice(
        "The model uses tensors that `parameters()` does not list: they are neither trained, moved nor saved.",
        ("layers in a Python list or dict", "a plain tensor where `nn.Parameter` is meant",
         "a layer that forward makes anew at each call"),
        "Use nn.ModuleList, nn.ModuleDict, nn.Parameter, or register_buffer for what is not trained.", 4,
        "self.blocks = nn.ModuleList([Block(config) for _ in range(n_layer)])"),
    "shared layers": Advice(
        "Several layers are one and the same object.",
        ("`[Block()] * n_layer`, which repeats one block", "one layer that is called in a loop by mistake",
         "`copy.copy` where `copy.deepcopy` is meant"),
        "Build each layer anew. If sharing is meant, nothing is wrong.", 16,
        "nn.ModuleList([Block(config) for _ in range(n_layer)])"),
    "tying": Advice(
        "Embedding and head are to share one weight, and do not.",
        ("the values are copied, not the parameter", "tied before the weights are initialised or loaded anew",
         "a `clone()` or `deepcopy` of one of them"),
        "Assign the parameter itself, after everything that replaces it.", 17,
        "self.head.weight = self.tokens.weight"),
    "device": Advice(
        "Tensors stay on another device than the model; or the device waits for data, or computes wrongly.",
        ("a tensor made in `__init__` that is not a buffer",
         "`torch.arange(T)` without `device=`, or `.cuda()` in forward",
         "batches that are read more slowly than they are used"),
        "Register constant tensors as buffers, make new ones on the device of the input, and read batches ahead.",
        6,
        "self.register_buffer('mask', mask, persistent=False); torch.arange(T, device=idx.device)"),
    "mode": Advice(
        "Train mode and eval mode are mixed up.",
        ("`F.dropout(x)` without `training=self.training`", "`eval()` or `train()` is forgotten in the loop",
         "dropout in `scaled_dot_product_attention` that is always on"),
        "Call model.eval() before validation and generation, model.train() after; tie dropout to self.training.",
        21, "F.dropout(x, p, training=self.training)"),
    "state": Advice(
        "A call changes the result of the next call.",
        ("a cache that is not cleared", "a list or a buffer that forward appends to",
         "a random state or a counter kept in the module"),
        "Keep what belongs to one call in local variables, or pass it in and return it.", 25),
    "in-place": Advice(
        "Forward changes the tensors that it is given.",
        ("`x += y`, `masked_fill_` or `idx[...] = ...` on an argument", "labels that are shifted in place"),
        "Write `x = x + y`, or clone the argument first.", 1, "targets = targets.clone()"),
    "non-finite": Advice(
        "The model makes inf or NaN.",
        ("a row of attention in which every key is masked", "log or division by zero, or a root of a negative number",
         "activations that grow from layer to layer"),
        "Look at the module that is named: it is the first one. Keep at least one key per query, and add an epsilon.",
        29),
    "overflow": Advice(
        "Numbers leave the range of float16 or bfloat16.",
        ("a mask of -1e9, which float16 does not have", "scores or a residual stream that are too large",
         "a softmax or a sum computed in half precision"),
        "Mask with -inf or torch.finfo(dtype).min, and compute norms, softmax and loss in float32.",
        6, "scores.masked_fill(~mask, torch.finfo(scores.dtype).min)"),
    "cache": Advice(
        "Generation with the cache gives other logits than a full pass.",
        ("positions start at 0 again for each new token", "the cache is written at the wrong place, or before rotation",
         "no causal mask when several tokens are added at once"),
        "Count positions from the length of the cache, and compare with a full pass, for batches too.",
        25, "positions = torch.arange(past, past + T, device=idx.device)"),
    "padding": Advice(
        "Padding changes the output of the tokens that are not padding.",
        ("padding on the left without position ids that skip it", "an attention mask that is ignored or inverted",
         "the last position is read where the last real token is meant"),
        "Hide padding from attention, count positions over real tokens only, and set its targets to -100.",
        28, "position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)"),
    "max length": Advice(
        "The model fails, or computes wrongly, at or near its longest input.",
        ("a position table or mask that is one too short", "no check of the length, or a silent cut",
         "generation that never crops its input"),
        "Size tables by the context, test T = 1 and T = context, and refuse or crop what is longer.",
        10, "idx = idx[:, -context:]"),
    "targets": Advice(
        "The model is trained on the wrong tokens.",
        ("targets that are not shifted, so that the model copies its input",
         "targets shifted twice: by the data and again by the loss", "targets that are ignored, or -100 counted"),
        "Shift exactly once: the target of position t is token t + 1.", 9,
        "x, y = tokens[:, :-1], tokens[:, 1:]"),
    "data leak": Advice(
        "Text of the validation split is in the training split.",
        ("windows are shuffled before the split", "duplicate documents", "validation drawn from the training array"),
        "Split by documents first, remove duplicates, then cut windows.", 3),
    "accumulation": Advice(
        "Accumulated gradients are not those of the full batch.",
        ("the loss is not divided by the number of micro-batches", "means over rows with different token counts",
         "the remainder of the batch is dropped or counted twice"),
        "Sum the losses of all tokens and divide once by their number in the whole batch.", 5,
        "(F.cross_entropy(logits, y, ignore_index=-100, reduction='sum') / tokens_in_batch).backward()"),
    "gradients not cleared": Advice(
        "Gradients of earlier steps are still there.",
        ("`zero_grad()` is forgotten", "`zero_grad()` between `backward()` and `step()`",
         "it clears another optimiser's parameters"),
        "Clear the gradients once per update, before the first backward.", 2,
        "optimizer.zero_grad(set_to_none=True)"),
    "no update": Advice(
        "A step does not change the weights, or does not lower the loss.",
        ("a learning rate that is far too small or too large", "the optimiser holds other parameters than the model",
         "`step()` is missing, or the gradient has the wrong sign"),
        "Create the optimiser from the final model, and try rates a factor of ten apart on one batch.",
        5, "optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)"),
    "clipping": Advice(
        "Gradient clipping does not work.",
        ("it comes after the step, or before backward", "the gradients are still scaled (float16)",
         "it clips other parameters, or micro-batch by micro-batch"),
        "Clip once, between the last backward and the step; unscale first.", 5,
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimizer.step()"),
    "schedule": Advice(
        "The learning rate is wrong, does not follow its schedule, or the run has too many steps.",
        ("a rate that is too high: the loss jumps or rises",
         "`scheduler.step()` once per epoch, per micro-batch or never",
         "a schedule that is shorter or longer than the training; many more epochs than the text can bear"),
        "Try a third of the rate. Step the scheduler once after each optimiser step, and size it in updates.",
        20, "optimizer.step(); scheduler.step()"),
    "optimizer coverage": Advice(
        "The optimiser does not hold every parameter exactly once.",
        ("groups chosen by name that miss some", "layers added or replaced after the optimiser was made",
         "tied or shared weights listed twice"),
        "Build the groups from `named_parameters()`, and compare the count.", 5,
        "assert {id(p) for g in opt.param_groups for p in g['params']} == {id(p) for p in model.parameters()}"),
    "weight decay": Advice(
        "Weight decay shrinks norms and biases, or does not shrink matrices.",
        ("one group for all parameters", "groups by a name that does not match", "Adam (L2) where AdamW is meant"),
        "Decay matrices only: parameters with two or more axes.", 5,
        "decay = [p for p in model.parameters() if p.dim() >= 2]"),
    "precision": Advice(
        "Numbers are rounded away.",
        ("bfloat16 weights whose updates are below a rounding step", "a loss or a norm computed in half precision",
         "autocast around backward or the optimiser"),
        "Keep float32 weights in the optimiser and use autocast for forward and loss.", 6,
        "with torch.autocast(device, torch.bfloat16): loss = model(x, y)"),
    "memory": Advice(
        "Memory grows from step to step, or is spent for nothing.",
        ("`total += loss` keeps every graph", "validation without `torch.no_grad()`", "a list of tensors on the GPU"),
        "Keep numbers, not tensors: loss.item() or loss.detach().", 5, "total += loss.item()"),
    "tokenizer": Advice(
        "Text does not survive the tokenizer, or its ids do not fit the model.",
        ("characters that it does not know and drops", "a vocabulary larger than the embedding",
         "special tokens that text of a user can make, or an end token that is never trained"),
        "Check that decode(encode(text)) == text, and that all ids are below the model's vocabulary.",
        8, "assert tokenizer.decode(tokenizer.encode(text)) == text"),
    "mask": Advice(
        "The wrong tokens of a conversation are trained.",
        ("the prompt is trained too, or the answer is not", "the mask is not shifted with the targets",
         "a long row is cut so that no answer is left, or the end token is masked"),
        "Train the answer and its end token, and nothing else: all other targets are -100.",
        28, "labels = [-100] * len(prompt) + answer + [end_id]"),
    "template": Advice(
        "Conversations are written in another form than the model knows.",
        ("two begin tokens: one of the template, one of the tokenizer", "another template than in generation",
         "no generation prompt, or spaces that move"),
        "Use one function for training and generation, and encode its text without adding special tokens.",
        28, "ids = tokenizer.encode(rendered, add_special_tokens=False)"),
}  # fmt: skip
assert tuple(ADVICE) == FINDINGS
