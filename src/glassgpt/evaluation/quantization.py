"""Quantise a model and measure what it costs: bytes, errors, perplexity, and the speed of decoding here."""

import math
from dataclasses import dataclass

import torch

from glassgpt.assets import tutor
from glassgpt.errors import TokenizerError
from glassgpt.evaluation.answers import text_loss
from glassgpt.files import Progress
from glassgpt.inference.decoders import choose_decoder, seconds_per_step
from glassgpt.model import GPT
from glassgpt.tokenizer import Tokenizer
from glassgpt.transforms.gptq import own_text
from glassgpt.transforms.quantize import Quantization, quantize, quantized_layers

#: Tokens of the text whose logits are compared, at most.
LOGIT_TOKENS = 256
#: The length of a text whose decoding is measured: a short one does not pay for loading the kernels.
DECODED_TOKENS = 128


@dataclass(frozen=True)
class QuantizedReport:
    """What quantising a model has changed.

    Attributes:
        bytes_before: of all weights, as they were loaded.
        bytes_after: of all weights with their scales.
        kinds: how each layer is stored, by name.
        errors: of each layer's weights, root mean square, relative to that of the weights.
        logit_error: of the logits after the first tokens of the text, likewise.
        loss_before: mean loss per token of the text, in nats.
        loss_after: the same, quantised.
        speed_before: tokens per second of one text, decoded by what :func:`choose_decoder` chooses.
        speed_after: the same, quantised.
        decoder: the name of the one that it chose for the quantised model.
    """

    bytes_before: int
    bytes_after: int
    kinds: dict[str, Quantization]
    errors: dict[str, float]
    logit_error: float
    loss_before: float
    loss_after: float
    speed_before: float
    speed_after: float
    decoder: str

    @property
    def perplexity_change(self) -> float:
        """The relative change: 0.01 is one per cent more."""
        return math.expm1(self.loss_after - self.loss_before)


@torch.no_grad()
def quantize_and_measure(
    model: GPT, tokenizer: Tokenizer, bits: int, text: str, progress: Progress | None = None
) -> QuantizedReport:
    """Quantise a model in place, and compare it with what it was.

    Args:
        model: plain, in eval mode.
        tokenizer: its tokenizer.
        bits: 8 or 4. INT4 is fitted to a text that the model writes.
        text: to measure the loss on.
        progress: called as the steps are done.

    Raises:
        GlassError: as :func:`glassgpt.evaluation.answers.text_loss`.
    """
    tell = progress or (lambda *_: None)
    tell("measuring and quantising", 0, 4)
    loss_before = text_loss(model, tokenizer, text)
    count = min(LOGIT_TOKENS, model.config.block_size)
    idx = torch.from_numpy(tokenizer.encode_array(text)[:count].astype("int64"))[None].to(model.device)
    logits, (speed_before, _) = model(idx).float(), decoding_speed(model)
    bytes_before = _weight_bytes(model)
    tell("measuring and quantising", 1, 4)
    calibration = own_text(model, progress=progress) if bits == 4 else None
    errors = quantize(model, bits, calibration=calibration, progress=progress)
    tell("measuring and quantising", 2, 4)
    loss_after = text_loss(model, tokenizer, text)
    tell("measuring and quantising", 3, 4)
    logit_error = float((model(idx).float() - logits).norm() / logits.norm())
    speed_after, decoder = decoding_speed(model)
    tell("measuring and quantising", 4, 4)
    kinds = {name: layer.kind for name, layer in quantized_layers(model).items()}
    return QuantizedReport(
        bytes_before, _weight_bytes(model), kinds, errors, logit_error, loss_before, loss_after, speed_before,
        speed_after, decoder,
    )  # fmt: skip


def builtin_text(tokenizer: Tokenizer) -> str:
    """Give the tutor's general text, without the characters that the tokenizer does not know."""
    return known_part(tokenizer, tutor.general_path().read_text(encoding="utf-8"))


def known_part(tokenizer: Tokenizer, text: str) -> str:
    """Leave out the characters of a text that the tokenizer does not know."""

    def is_known(character: str) -> bool:
        try:
            return len(tokenizer.encode_array(character)) > 0
        except TokenizerError:
            return False

    known = {character for character in set(text) if is_known(character)}
    return "".join(character for character in text if character in known)


def decoding_speed(model: GPT, context: int = 64) -> tuple[float, str]:
    """Measure tokens per second of one text, and name the decoder that was chosen for this model here."""
    context = min(context, model.config.block_size - 1)
    decoder, _ = choose_decoder(model, context=context, new_tokens=DECODED_TOKENS)
    return 1 / seconds_per_step(decoder, model, 1, context), decoder.name


def _weight_bytes(model: GPT) -> int:
    """Count the bytes of all weights; those of a tied head once, and no rotary tables."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return sum(tensors.values())
