"""Safetensors files whose headers say anything; what the fixture `raw_safetensors` gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RawSafetensors:
    """Writes a safetensors file from a header (an object or bytes) and data, unchecked."""

    folder: Path

    def __call__(self, header: object, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = self.folder / name
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return path
