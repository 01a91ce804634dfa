"""Other programs that generate text, each in a process of its own that loads the model once and answers requests.

A process reads a request per line of JSON from standard input: a list of prompts of equal length, and the number of
new tokens. It answers a line of JSON: seconds to the first token, seconds of each later token, and what was generated.
Between the requests it waits without using the CPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from subprocess import PIPE
from typing import IO, Any, NamedTuple

from glassgpt.errors import ConfigError, GenerationError, pip_install

#: For each peer and type of our weights: the type in which the peer holds them, as it calls it.
PEER_TYPES = {
    "transformers": {"float32": "float32", "bfloat16": "bfloat16"},
    "xllamacpp": {"float32": "f32", "bfloat16": "f16", "int8": "q8_0", "int4": "q4_0"},
}


class Generated(NamedTuple):
    """What a program generated greedily, and how long it took."""

    first_token_seconds: float
    step_seconds: list[float]  # of each later token; all of them together may be in equal parts
    tokens: list[list[int]] | None  # new tokens of every row; None if the program gives the text alone
    text: str = ""  # of the first row, if there are no tokens


def why_not(peer: str, batch: int, device: str) -> str:
    """Return why a peer cannot be compared in this configuration; empty if it can."""
    if peer == "xllamacpp" and batch > 1:
        return "xllamacpp is asked for one text at a time"
    return "xllamacpp is run on the CPU only" if peer == "xllamacpp" and device != "cpu" else ""


def require_installed(peers: Sequence[str]) -> None:
    """Check that these peers are known, and installed.

    Raises:
        ConfigError: with what is wrong.
    """
    if unknown := [peer for peer in peers if peer not in PEER_TYPES]:
        raise ConfigError(f"--against: {unknown[0]!r} is not one of {', '.join(PEER_TYPES)}")
    if missing := [peer for peer in peers if not importlib.util.find_spec(peer)]:
        raise ConfigError(f"--against: not installed: {' '.join(missing)}. `{pip_install(*missing)}`, or leave it out")


@contextmanager
def running(name: str, **settings: Any) -> Iterator["Peer"]:
    """Start a peer, with the settings of its class below; it has loaded the model. End it at the end.

    Raises:
        GenerationError: if it ends by itself, now or later, with its last line of standard error.
    """
    command = [sys.executable, "-c", "from glassgpt.bench.peers import main; main()", name, json.dumps(settings)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": str(settings["threads"]),
        "HF_HUB_OFFLINE": "1",
    }
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, env=environment, text=True) as process,
    ):
        try:
            peer = Peer(name, process, errors)
            peer.answer()  # it is ready
            yield peer
        finally:
            process.kill()


class Peer:
    """A running program, which answers requests."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str]):
        self.name = name
        self._process, self._errors = process, errors

    def generate(self, prompts: Sequence[Sequence[int]], new: int) -> Generated:
        """Continue the prompts greedily by ``new`` tokens each, through end tokens."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended: the answer says why
            self._process.stdin.write(json.dumps({"prompts": prompts, "new": new}) + "\n")
            self._process.stdin.flush()
        return Generated(**self.answer())

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1][:300]
        raise GenerationError(f"{self.name} ended with exit code {self._process.returncode}: {last}")


def main() -> None:
    """In the process of a peer: load the model, then answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    program = _PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(program.generate(**json.loads(line))._asdict()), file=answers, flush=True)


class _Transformers:
    """`generate` of transformers, with its cache, from a Hugging Face folder."""

    def __init__(self, path: str, stored: str, threads: int, context: int, device: str):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, stored))
        self.model = model.to(device).eval()
        settings = self.model.generation_config
        settings.eos_token_id, settings.pad_token_id = None, 0  # no text ends early

    def generate(self, prompts: list[list[int]], new: int) -> Generated:
        """Time each token by a streamer, which `generate` calls with the prompt and then with every token."""
        import torch

        class Clock:
            """The times of the calls."""

            def __init__(self) -> None:
                self.times: list[float] = []

            def put(self, tokens: torch.Tensor) -> None:
                """Note the time; the tokens are on the CPU, so that a GPU has finished them."""
                self.times.append(time.perf_counter())

            def end(self) -> None:
                """Nothing is left to do."""

        idx = torch.tensor(prompts, device=self.model.device)
        clock, start = Clock(), time.perf_counter()
        with torch.inference_mode():
            ids = self.model.generate(
                idx, attention_mask=torch.ones_like(idx), max_new_tokens=new, min_new_tokens=new,
                do_sample=False, num_beams=1, repetition_penalty=1.0, use_cache=True, streamer=clock,
            )  # fmt: skip
        first, *later = clock.times[1:]
        steps = [after - before for before, after in zip([first, *later], later, strict=False)]
        return Generated(first - start, steps, ids[:, idx.size(1) :].tolist())


class _LlamaCpp:
    """llama.cpp's server without its network, from a .gguf file; the times are its own."""

    def __init__(self, path: str, stored: str, threads: int, context: int, device: str):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_gpu_layers = path, 0
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.fit_params, parameters.verbosity = False, -1
        self.server = xllamacpp.Server(parameters)

    def generate(self, prompts: list[list[int]], new: int) -> Generated:
        """Ask for a continuation of the only prompt, without what is cached of earlier ones."""
        request = {"prompt": prompts[0], "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = self.server.handle_completions(request)
        if "error" in answer:
            sys.exit(answer["error"]["message"])
        timings = answer["timings"]
        steps = new - 1  # predicted_ms begins with the first new token
        seconds = [timings["predicted_ms"] / 1000 / steps] * steps if steps else []
        return Generated(timings["prompt_ms"] / 1000, seconds, None, answer["choices"][0]["text"])


_PROGRAMS: dict[str, Any] = {"transformers": _Transformers, "xllamacpp": _LlamaCpp}
