"""Stand-ins for the layers of serving engines: parameters that hold slices of fused tensors, filled by loaders as vLLM 0.33 has them.

Each layer is given its rank and the number of ranks; arithmetic of shards, padding and replication is that of `QKVParallelLinear`,
`MergedColumnParallelLinear`, `RowParallelLinear`, `VocabParallelEmbedding`, `RoutedExperts` and `default_weight_loader`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Block", "Rank", "ServedLlama", "llama_checkpoint", "loaded"]

HIDDEN, HEADS, KV_HEADS, HEAD, MIDDLE, VOCABULARY, EXPERTS = 32, 8, 2, 4, 24, 50, 4
Weights = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Rank:
    """A rank of tensor parallelism, and of how many."""

    number: int = 0
    of: int = 1


def _parameter(*shape: int, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, 7.0, dtype=dtype), requires_grad=False)


class Plain(nn.Module):
    """A weight that every rank holds whole."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.weight = _parameter(*shape, dtype=dtype)

    def weight_loader(self, param: nn.Parameter, loaded: torch.Tensor) -> None:
        if param.numel() == 1 and loaded.numel() == 1:
            param.data.copy_(loaded.view(param.shape))
        else:
            assert param.size() == loaded.size()
            param.data.copy_(loaded)


class Row(nn.Module):
    """A matrix whose columns are shared out."""

    def __init__(self, rows: int, columns: int, rank: Rank) -> None:
        super().__init__()
        self.rank, self.weight = rank, _parameter(rows, columns // rank.of)

    def weight_loader(self, param: nn.Parameter, loaded: torch.Tensor) -> None:
        size = param.data.shape[1]
        param.data.copy_(loaded.narrow(1, self.rank.number * size, size))


class Merged(nn.Module):
    """Several matrices whose rows are shared out, one after the other; on disk they may be fused already."""

    def __init__(self, sizes: tuple[int, ...], columns: int, rank: Rank) -> None:
        super().__init__()
        self.sizes, self.rank, self.weight = sizes, rank, _parameter(sum(sizes) // rank.of, columns)

    def weight_loader(self, param: nn.Parameter, loaded: torch.Tensor, shard: int | None = None) -> None:
        if shard is None:
            start = 0
            for number, size in enumerate(self.sizes):
                self.weight_loader(param, loaded.narrow(0, start, size), number)
                start += size
            return
        offset, size = sum(self.sizes[:shard]) // self.rank.of, self.sizes[shard] // self.rank.of
        into, loaded = param.data.narrow(0, offset, size), loaded.narrow(0, self.rank.number * size, size)
        assert into.shape == loaded.shape
        into.copy_(loaded)


class QKV(nn.Module):
    """Query, key and value; where there are more ranks than heads of keys, ranks share these."""

    def __init__(self, rank: Rank, *, bias: bool) -> None:
        super().__init__()
        self.rank, self.heads, self.kv_heads = rank, HEADS // rank.of, max(1, KV_HEADS // rank.of)
        self.replicas = max(1, rank.of // KV_HEADS)
        rows = (self.heads + 2 * self.kv_heads) * HEAD
        self.weight = _parameter(rows, HIDDEN)
        self.bias = _parameter(rows) if bias else None

    def weight_loader(self, param: nn.Parameter, loaded: torch.Tensor, shard: str) -> None:
        offset, size = {
            "q": (0, self.heads * HEAD),
            "k": (self.heads * HEAD, self.kv_heads * HEAD),
            "v": ((self.heads + self.kv_heads) * HEAD, self.kv_heads * HEAD),
        }[shard]
        number = self.rank.number if shard == "q" else self.rank.number // self.replicas
        param.data.narrow(0, offset, size).copy_(loaded.narrow(0, number * size, size))


class Embedding(nn.Module):
    """Rows of the vocabulary, padded to a multiple of 16, are shared out; rows beyond it are 0."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        size = -(-VOCABULARY // 16) * 16 // rank.of
        self.start, self.stop = min(VOCABULARY, rank.number * size), min(VOCABULARY, (rank.number + 1) * size)
        self.weight = _parameter(size, HIDDEN)

    def weight_loader(self, param: nn.Parameter, loaded: torch.Tensor) -> None:
        assert loaded.shape[0] == VOCABULARY
        loaded = loaded.narrow(0, self.start, self.stop - self.start)
        param[: loaded.shape[0]].data.copy_(loaded)
        param[loaded.shape[0] :].data.fill_(0)


class Experts(nn.Module):
    """Gate and up of all experts in one tensor, down in another; sliced, or some experts a rank (`parallel`)."""

    def __init__(self, rank: Rank, *, parallel: bool) -> None:
        super().__init__()
        self.rank, self.parallel = (Rank() if parallel else rank), parallel
        self.experts = range(rank.number * EXPERTS // rank.of, (rank.number + 1) * EXPERTS // rank.of) if parallel else range(EXPERTS)
        size = MIDDLE // self.rank.of
        self.w13_weight = _parameter(len(self.experts), 2 * size, HIDDEN)
        self.w2_weight = _parameter(len(self.experts), HIDDEN, size)

    def weight_loader(self, param: nn.Parameter, loaded: torch.Tensor, shard: str, expert: int) -> bool:
        if expert not in self.experts:
            return False
        data, dim = param.data[self.experts.index(expert)], 1 if shard == "w2" else 0
        size = loaded.shape[dim] // self.rank.of
        loaded = loaded.narrow(dim, size * self.rank.number, size)
        if shard != "w2":
            half = data.shape[0] // 2
            data = data.narrow(0, 0 if shard == "w1" else half, half)
        data.copy_(loaded)
        return True


class Block(nn.Module):
    """A layer of a decoder."""

    def __init__(self, rank: Rank, *, experts: bool, parallel: bool) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj = QKV(rank, bias=True), Row(HIDDEN, HEADS * HEAD, rank)
        self.norm = Plain(HIDDEN, dtype=torch.float32)
        if experts:
            self.router, self.experts = Plain(EXPERTS, HIDDEN), Experts(rank, parallel=parallel)
        else:
            self.gate_up_proj, self.down_proj = Merged((MIDDLE, MIDDLE), HIDDEN, rank), Row(HIDDEN, MIDDLE, rank)


class ServedLlama(nn.Module):
    """A model whose `load_weights` takes the names of a checkpoint, as those of vLLM do."""

    STACKED = (
        ("qkv_proj", "q_proj", "q"),
        ("qkv_proj", "k_proj", "k"),
        ("qkv_proj", "v_proj", "v"),
        ("gate_up_proj", "gate", 0),
        ("gate_up_proj", "up", 1),
    )

    def __init__(self, rank: Rank = Rank(), *, experts: bool = False, parallel: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.embed = Embedding(rank)
        self.blocks = nn.ModuleList(Block(rank, experts=experts and number == 1, parallel=parallel) for number in range(2))
        self.lm_head = self.embed if tied else Embedding(rank)
        self.scale = Plain(1)
        self.register_buffer("cos_sin_cache", torch.ones(3, 4), persistent=False)

    def load_weights(self, weights: Weights) -> set[str]:
        """Load tensors of a checkpoint, those of other ranks among them."""
        parameters, loaded = dict(self.named_parameters()), set[str]()
        for name, tensor in weights:
            if "inv_freq" in name or name.startswith("mtp."):
                continue
            target, how = self._target(name)
            module = self.get_submodule(target.rpartition(".")[0])
            assert isinstance(module, nn.Module) and callable(module.weight_loader)
            module.weight_loader(parameters[target], tensor, *how)
            loaded.add(target)
        return loaded

    def _target(self, name: str) -> tuple[str, tuple[Any, ...]]:
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            expert, shard, _ = after.split(".")
            return f"{before}.experts.{'w2' if shard == 'w2' else 'w13'}_weight", (shard, int(expert))
        for fused, own, part in self.STACKED:
            if f".{own}." in name:
                return name.replace(f".{own}.", f".{fused}."), (part,)
        return ("embed.weight" if name == "lm_head.weight" and self.lm_head is self.embed else name), ()


def llama_checkpoint(*, experts: bool = False, fused: bool = False) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shapes and types of the tensors of a checkpoint of `ServedLlama`."""
    out: dict[str, tuple[tuple[int, ...], str]] = {
        "embed.weight": ((VOCABULARY, HIDDEN), "bf16"),
        "lm_head.weight": ((VOCABULARY, HIDDEN), "bf16"),
        "scale.weight": ((), "bf16"),
        "mtp.weight": ((4, HIDDEN), "bf16"),
    }
    for number in range(2):
        block = f"blocks.{number}"
        for own, rows in (("q_proj", HEADS * HEAD), ("k_proj", KV_HEADS * HEAD), ("v_proj", KV_HEADS * HEAD)):
            out |= {f"{block}.{own}.weight": ((rows, HIDDEN), "bf16"), f"{block}.{own}.bias": ((rows,), "bf16")}
        out |= {f"{block}.o_proj.weight": ((HIDDEN, HEADS * HEAD), "bf16"), f"{block}.norm.weight": ((HIDDEN,), "f32")}
        if experts and number == 1:
            out[f"{block}.router.weight"] = ((EXPERTS, HIDDEN), "bf16")
            for expert in range(EXPERTS):
                out |= {f"{block}.experts.{expert}.{shard}.weight": ((MIDDLE, HIDDEN), "bf16") for shard in ("w1", "w3")}
                out[f"{block}.experts.{expert}.w2.weight"] = ((HIDDEN, MIDDLE), "bf16")
        else:
            out[f"{block}.down_proj.weight"] = ((HIDDEN, MIDDLE), "bf16")
            names = [("gate_up_proj", 2 * MIDDLE)] if fused else [("gate", MIDDLE), ("up", MIDDLE)]
            out |= {f"{block}.{own}.weight": ((rows, HIDDEN), "bf16") for own, rows in names}
    return out


def loaded(model: ServedLlama, weights: dict[str, torch.Tensor]) -> ServedLlama:
    """Load a checkpoint into a model, and return it."""
    with torch.no_grad():
        model.load_weights(weights.items())
    return model
