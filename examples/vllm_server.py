"""Put a pack on a running vLLM server, compare its answers with the applied checkpoint's, and bring the base back.

Usage: python examples/vllm_server.py BASE PACK [--tensor-parallel N] [--prompt TEXT]

It needs one GPU a rank of tensor parallelism, `pip install vllm deltapack`, and room for a restored checkpoint beside PACK. It starts three
engines, one after the other: the applied checkpoint, base + pack by the load format, and the base, on which the pack comes and goes.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import deltapack

EXTENSION = "deltapack.integrations.vllm.worker.DeltapackWorker"
Answer = list[tuple[int, float]]


def answer(llm: Any, prompt: str) -> Answer:
    """Return tokens and their log-probabilities, chosen greedily."""
    from vllm import SamplingParams

    llm.reset_prefix_cache()  # keys and values of other weights
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=32, logprobs=1))
    made = output.outputs[0]
    return [(token, row[token].logprob) for token, row in zip(made.token_ids, made.logprobs, strict=True)]


def ask(prompt: str, model: Path, ranks: int, **options: Any) -> Answer:
    """Start an engine, ask, and stop it."""
    from vllm import LLM

    llm = LLM(str(model), tensor_parallel_size=ranks, **options)
    try:
        return answer(llm, prompt)
    finally:
        llm.llm_engine.engine_core.shutdown()


def main(base: Path, pack: Path, prompt: str, ranks: int) -> bool:
    """Return whether everything was as it must be."""
    from vllm import LLM

    with tempfile.TemporaryDirectory(dir=pack.parent) as folder:
        deltapack.apply(base, pack, Path(folder) / "applied")
        wanted = ask(prompt, Path(folder) / "applied", ranks)
    loaded = ask(
        prompt, base, ranks, load_format="deltapack", model_loader_extra_config={"packs": [{"path": str(pack.resolve()), "weight": 1.0}]}
    )
    llm = LLM(str(base), tensor_parallel_size=ranks, worker_extension_cls=EXTENSION)
    before = answer(llm, prompt)
    print(llm.collective_rpc("deltapack_activate", kwargs={"packs": [str(pack.resolve())]})[0])
    active = answer(llm, prompt)
    llm.collective_rpc("deltapack_deactivate")
    after = answer(llm, prompt)
    checks = {
        "base + pack by the load format answers as the applied checkpoint": loaded == wanted,
        "the pack on the running server answers as the applied checkpoint": active == wanted,
        "the base is back": after == before,
        "the pack changes the answer at all": active != before,
    }
    for what, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {what}")
    return all(checks.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("pack", type=Path, metavar="PACK")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N")
    parser.add_argument("--prompt", default="The largest planet is")
    given = parser.parse_args()
    try:
        sys.exit(0 if main(given.base, given.pack, given.prompt, given.tensor_parallel) else 1)
    except deltapack.DeltapackError as error:
        sys.exit(f"error: {error}")
