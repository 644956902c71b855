"""Serve one base and many packs over HTTP: a request names the pack, and requests for the same pack share its activation.

Usage: python examples/serve.py BASE PACK [PACK...] [--device D] [--port N]

    curl localhost:8000/generate -d '{"pack": "math", "ids": [[1, 2, 3]], "new_tokens": 5}'

`pack` is the name of a file without `.dpk`, several with weights as in `{"math": 0.5, "code": 0.5}`, or absent for the base.
"""

import argparse
import json
import sys
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import deltapack
from deltapack.errors import RecipeError

LARGEST_REQUEST = 1 << 20
MOST_NEW_TOKENS = 1000
Mix = tuple[tuple[str, float], ...]


class Scheduler:
    """Runs requests in a thread of its own, one after the other; those that wait for the pack that is active go first, up to `batch`."""

    def __init__(self, model: Any, live: deltapack.LiveModel, packs: dict[str, Path], batch: int = 16) -> None:
        self.switches = 0
        self._model, self._live, self._packs, self._batch = model, live, packs, batch
        self._waiting: dict[Mix, list[tuple[list[list[int]], int, Future[list[list[int]]]]]] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, mix: Mix, ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Return the continued token ids.

        Raises:
            ValueError: There is no such pack, or no such token.
        """
        for name, _ in mix:
            if name not in self._packs:
                raise ValueError(f"no such pack: {name}; there are {', '.join(self._packs)}")
        if not all(0 <= token < self._model.config.vocab_size for row in ids for token in row):
            raise ValueError(f"a token id is not between 0 and {self._model.config.vocab_size - 1}")
        future: Future[list[list[int]]] = Future()
        with self._changed:
            self._waiting.setdefault(mix, []).append((ids, new_tokens, future))
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """Finish what waits, then bring the base back."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()
        self._live.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if not self._waiting:
                    return
                # A dict remembers who came first, so every pack gets its turn.
                mix = next(iter(self._waiting))
                waiting = self._waiting.pop(mix)
                group, rest = waiting[: self._batch], waiting[self._batch :]
                if rest:
                    self._waiting[mix] = rest
            self._serve(mix, group)

    def _serve(self, mix: Mix, group: list[tuple[list[list[int]], int, "Future[list[list[int]]]"]]) -> None:
        try:
            wanted: dict[str | Path, float] = {self._packs[name]: weight for name, weight in mix}
            if {str(path): weight for path, weight in wanted.items()} != self._live.current:
                self._live.activate(wanted)
                self.switches += 1
        except Exception as error:
            for _, _, future in group:
                future.set_exception(error)
            return
        for ids, new_tokens, future in group:
            try:
                with torch.inference_mode():
                    rows = torch.tensor(ids, device=self._model.device)
                    mask = torch.ones_like(rows)
                    out = self._model.generate(rows, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
                future.set_result(out.tolist())
            except Exception as error:  # one bad request must not stop the others
                future.set_exception(error)


def parse(body: bytes) -> tuple[Mix, list[list[int]], int]:
    """Return the mix of packs, the token ids and how many to add.

    Raises:
        ValueError: The request is malformed.
    """
    request = json.loads(body)
    if not isinstance(request, dict):
        raise ValueError("the request is no JSON object")
    pack, ids, new_tokens = request.get("pack"), request.get("ids"), request.get("new_tokens", 16)
    mix = {} if pack is None else {pack: 1.0} if isinstance(pack, str) else pack
    if not isinstance(mix, dict) or not all(type(weight) in (int, float) for weight in mix.values()):
        raise ValueError("pack is neither a name nor an object of names and weights")
    rows = ids if isinstance(ids, list) and ids and all(isinstance(row, list) and row for row in ids) else [[]]
    if len({len(row) for row in rows}) != 1 or not rows[0] or not all(type(token) is int for row in rows for token in row):
        raise ValueError("ids is no list of lists of token ids of the same length")
    if type(new_tokens) is not int or not 1 <= new_tokens <= MOST_NEW_TOKENS:
        raise ValueError(f"new_tokens is not between 1 and {MOST_NEW_TOKENS}")
    return tuple((name, float(weight)) for name, weight in mix.items()), rows, new_tokens


def handler(scheduler: Scheduler) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers HTTP requests."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # of a client that sends nothing more

        def do_POST(self) -> None:
            """Answer a request to generate."""
            try:
                length = int(self.headers.get("Content-Length", 0))
                if self.path != "/generate" or not 0 < length <= LARGEST_REQUEST:
                    raise ValueError("POST at most 1 MiB of JSON to /generate")
                self._answer(200, {"ids": scheduler.submit(*parse(self.rfile.read(length)))})
            except (ValueError, OverflowError, RecursionError, RecipeError) as error:
                self._answer(400, {"error": str(error)})
            except Exception as error:
                self._answer(500, {"error": str(error)})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            try:
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client has hung up
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            """Say nothing of each request."""

    return Handler


class Server(ThreadingHTTPServer):
    """Listens; as many clients as this may wait to be let in, where by default five may and the sixth is turned away."""

    request_queue_size = 128


def start(base: Path, packs: list[Path], device: str, port: int) -> tuple[ThreadingHTTPServer, Scheduler]:
    """Load the base, attach the packs and listen; `serve_forever` then serves."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").to(device)
    live = deltapack.attach(model)
    for pack in packs:
        live.load(pack)
    scheduler = Scheduler(model, live, {pack.stem: pack for pack in packs})
    return Server(("127.0.0.1", port), handler(scheduler)), scheduler


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("packs", type=Path, nargs="+")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    try:
        server, scheduler = start(given.base, given.packs, given.device, given.port)
    except (deltapack.DeltapackError, OSError, RuntimeError) as error:  # not a pack, no model there, the port is taken, no such device
        sys.exit(f"Error: {error}")
    print(f"serving on http://127.0.0.1:{server.server_port}/generate")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        scheduler.close()


if __name__ == "__main__":
    main()
