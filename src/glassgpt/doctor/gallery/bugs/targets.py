"""Bugs of the loss that a model computes itself."""

from glassgpt.doctor.gallery.bug import Bug

_LECTURE_LOSS = "loss = F.cross_entropy(logits, targets.view(B * T))"
_CLASSES_LOSS = "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-100)"
_LLAMA_LOSS = "F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)"
_HF_LOGITS = "            shift_logits = logits[..., :-1, :].contiguous()\n"
_HF_LABELS = "            shift_labels = labels[..., 1:].contiguous()\n"

TARGETS_BUGS = (
    Bug(
        "labels-not-shifted",
        "targets",
        "Labels equal to the ids are compared with the logits of the same position.",
        {
            "hf_like": (
                (_HF_LOGITS, "            shift_logits = logits.contiguous()\n"),
                (_HF_LABELS, "            shift_labels = labels.contiguous()\n"),
            ),
            "llama_like": (
                (_LLAMA_LOSS, "F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)"),
            ),
        },
    ),
    Bug(
        "labels-shifted-twice",
        "targets",
        "The model shifts the labels by two.",
        {
            "hf_like": (
                (_HF_LOGITS, "            shift_logits = logits[..., :-2, :].contiguous()\n"),
                (_HF_LABELS, "            shift_labels = labels[..., 2:].contiguous()\n"),
            ),
            "llama_like": (
                (
                    _LLAMA_LOSS,
                    "F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten(), ignore_index=-100)",
                ),
            ),
        },
    ),
    Bug(
        "targets-shifted-by-two",
        "targets",
        "Targets are shifted inside, and by two.",
        {
            "lecture": (
                (
                    "        logits = logits.view(B * T, V)\n",
                    "        logits = logits[:, :-2].reshape(B * (T - 2), V)\n",
                ),
                (_LECTURE_LOSS, "loss = F.cross_entropy(logits, targets[:, 2:].reshape(B * (T - 2)))"),
            ),
            "classes": (
                (
                    _CLASSES_LOSS,
                    "F.cross_entropy(logits[:, :-2].flatten(0, 1), targets[:, 2:].flatten(), ignore_index=-100)",
                ),
            ),
        },
    ),
    Bug(
        "shifted-the-wrong-way",
        "targets",
        "Logits are compared with the token before.",
        {
            "hf_like": (
                (_HF_LOGITS, "            shift_logits = logits[..., 1:, :].contiguous()\n"),
                (_HF_LABELS, "            shift_labels = labels[..., :-1].contiguous()\n"),
            ),
            "llama_like": (
                (
                    _LLAMA_LOSS,
                    "F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten(), ignore_index=-100)",
                ),
            ),
            "classes": (
                (
                    _CLASSES_LOSS,
                    "F.cross_entropy(logits[:, 1:].flatten(0, 1), targets[:, :-1].flatten(), ignore_index=-100)",
                ),
            ),
        },
    ),
    Bug(
        "ignored-index-trained",
        "targets",
        "Ignored targets (-100) are set to token 0 and trained.",
        {
            "hf_like": ((_HF_LABELS, _HF_LABELS.replace("].contig", "].clamp(min=0).contig")),),
            "llama_like": (
                (_LLAMA_LOSS, "F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().clamp(min=0))"),
            ),
            "classes": (
                (_CLASSES_LOSS, "F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1).clamp(min=0))"),
            ),
        },
    ),
    Bug(
        "ignored-index-in-the-mean",
        "targets",
        "Ignored targets count in the mean, so that the loss is too small.",
        {
            "llama_like": (
                (_LLAMA_LOSS, _LLAMA_LOSS.replace("ignore_index=-100)", 'ignore_index=-100, reduction="none").mean()')),
            ),
            "classes": (
                (
                    _CLASSES_LOSS,
                    _CLASSES_LOSS.replace("ignore_index=-100)", 'ignore_index=-100, reduction="none").mean()'),
                ),
            ),
        },
    ),
    Bug(
        "flattened-in-another-order",
        "targets",
        "Logits are flattened time first, targets batch first.",
        {
            "lecture": (("logits.view(B * T, V)", "logits.transpose(0, 1).reshape(B * T, V)"),),
            "classes": (("logits.view(-1, logits.size(-1))", "logits.transpose(0, 1).flatten(0, 1)"),),
        },
    ),
    Bug(
        "loss-of-the-last-position",
        "targets",
        "Only the last position is trained.",
        {
            "lecture": (
                ("        logits = logits.view(B * T, V)\n", ""),
                (_LECTURE_LOSS, "loss = F.cross_entropy(logits[:, -1], targets[:, -1])"),
            ),
            "llama_like": ((_LLAMA_LOSS, "F.cross_entropy(logits[:, -2], labels[:, -1], ignore_index=-100)"),),
        },
    ),
)
