"""What each tensor of a checkpoint is for, told by its name, shape, type and neighbours: that decides how its change is packed.

Dropping at random is for what a model learns by the million: matrices and larger. A norm's weight or a bias is few numbers of which each
counts; a running variance that is off by a little is a wrong statistic, and may even come back negative; quantised codes are no numbers to
subtract. Names are those of PyTorch, transformers, timm, diffusers, and of the quantisers (GPTQ, AWQ, bitsandbytes, compressed-tensors,
FP8 of several vendors, MXFP4, HQQ, AQLM, torchao, quanto). A name that is not known falls to what its shape says.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from deltapack.dtypes import DType

__all__ = ["ROLES", "SETTABLE", "Described", "Role", "roles_of"]


class Described(Protocol):
    """A tensor as its header describes it."""

    @property
    def dtype(self) -> DType:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""


@dataclass(frozen=True)
class Role:
    """One way to be a tensor.

    Attributes:
        name: Its name.
        text: Which tensors, and what becomes of their change, for people.
        route: `"drop"`: what a sparsifier keeps of the difference; `"difference"`: all of it; `"exact"`: it comes back bit for bit.
    """

    name: str
    text: str
    route: Literal["drop", "difference", "exact"]


ROLES: Mapping[str, Role] = {
    role.name: role
    for role in (
        Role("weight", "matrices and larger: most of the difference is dropped", "drop"),
        Role("vector", "norms, biases, gates, scales of layers: the difference is kept whole", "difference"),
        Role("statistic", "running means, counts, tables that are computed: exact", "exact"),
        Role("quantised", "codes with their scales: exact, and together", "exact"),
        Role("integer", "types of which no difference is taken: exact", "exact"),
        Role("exact", "what the user wants exact", "exact"),
    )
}
"""Roles by name."""

SETTABLE = ("weight", "vector", "exact")
"""Roles that a user may give a tensor."""

_TINY = 256
"""Elements up to which dropping saves less than a hundred bytes."""

_FLAT = 1 << 20
"""Elements above which one dimension means weights that were flattened (FSDP, flat optimizers), not a norm."""

_COUNTS = r"num_batches_tracked|num_updates|n_updates|steps?|global_step|.*_counts?|counts?|counter|.*_seen|(.*_)?tokens_per_expert"
_MOMENTS = (
    r"(running|moving|global|pixel|image|latents?|data|input|target|feature|feat|mel|norm|cmvn)_(mean|means|var|variance|std|stds|avg|average|min|max)"
    r"|running_.*|moving_.*|means?|stds?|var|variance|istd|(min|max)(_vals?)?|q(01|99)|loc_buffer|scale_factor"
)
_AVERAGES = r"ema|_?ema_.*|.*_ema|embed(ding)?_(avg|sum)|_?cluster_(size|usage)|_?ema_cluster_size.*|(codebook_)?usage|_?init(t?ed|ialized)"
_POSITIONS = (
    r"(.*_)?inv_freqs?|(cos|sin)(_cached?|_table)?|freqs(_cis|_cos|_sin|_complex)?|.*_freqs_cis|position_ids|token_type_ids"
    r"|relative_position_index|relative_coords_table|pe|pos_table|pos(ition(al)?)?_enc(odings?)?|sinusoid.*|_float_tensor|alibi|(alibi_)?slopes"
)
_MASKS = r"masked_bias|(attn|attention|causal|tril|triu)_?mask|mask|tril"
_SIGNALS = r"mel_(filters?|fb|basis)|fb|(hann_|stft_)?window|dct(_mat)?|forward_basis|inverse_basis"
_SCHEDULES = (
    r"betas|sigmas|timesteps|alphas_cumprod(_prev|_next)?|(sqrt|log|one)_.*alphas.*|sqrt_recipm?1?_alphas.*|posterior_.*|lvlb_weights"
)
_STATISTIC = re.compile("|".join((_COUNTS, _MOMENTS, _AVERAGES, _POSITIONS, _MASKS, _SIGNALS, _SCHEDULES)))
_POWER_ITERATION = {"weight_u": "weight_v", "weight_v": "weight_u", "_u": "_v", "_v": "_u"}
"""Vectors of spectral norm, which come in pairs; the `weight_v` of weight norm has a `weight_g` beside it and is learned."""
_OBSERVED = re.compile(r"(.*[./])?(activation_post_process|weight_fake_quant|fake_quant)(\..*)?")
_CODEBOOK = frozenset(("embed", "embedding", "codebook", "embeddings", "weight"))
_CODEBOOK_COUNTS = frozenset(("cluster_size", "_cluster_size", "cluster_usage", "ema_cluster_size", "_ema_cluster_size", "embed_avg"))
_VECTOR = re.compile(
    r"A_logs?|D|Ds|dt_bias|time_(decay|first|mix.*|maa.*|faaaa)|layer_scale.*|gamma(_\d)?|ls\d?|logit_scale|logit_bias|temperature"
)

_SUFFIXES = re.compile(
    r"(?P<code>.*?)[._]+(scales?|scale_inv|scale_2|scales_inv|scale_and_zero_point|global_scale|zeros?|zero_points?|qzeros|absmax|quant_map"
    r"|nested_.*|quant_state\..*|blocks|shape|g_idx|SCB|data)"
)
_OF_MODULE = (
    (frozenset(("qweight",)), re.compile(r"qweight|qzeros|scales?|g_idx|qscales?|zeros?|perm|invperm|channel_.*|s_.*|b_q_perm")),
    (frozenset(("weight_packed",)), re.compile(r"(weight|input|output)_.*")),
    (frozenset(("SCB", "weight")), re.compile(r"SCB|weight|weight_format|CB")),
    (frozenset(("W_q",)), re.compile(r"(?!bias$).*")),
    (frozenset(("codes", "codebooks")), re.compile(r"codes|codebooks|scales")),
    (frozenset(("indices", "centroids")), re.compile(r"(?!bias$).*")),
    (frozenset(("B", "s")), re.compile(r"B|s|meta|workspace")),
)
"""Leaves that mark a quantised module when all are there and one holds codes, and the leaves that then belong to it."""

_SCALE = re.compile(
    r".*(scale|scaling|zero|amax|absmax|offset|shift|quant_map|smooth_factor).*|biases|tables\d*|suh|svh|SU|SV|s[12]?|z", re.IGNORECASE
)
"""Leaves that belong to the codes of their module."""

_ACTIVATIONS = re.compile(r"(.*_)?(input|output|act|activation|k|v|q|kv|prob|attn|pre_quant)_(scale|zero(_point)?)s?(_inv|_ub)?")
"""Leaves that belong to the codes of a checkpoint wherever they are, such as those of a cache of keys and values."""

_CENTROIDS = re.compile(r"(?P<module>.*\.)((res_|outlier_)?centroids)\.weight")


def roles_of(tensors: Mapping[str, Described]) -> dict[str, str]:
    """Return the name of the role of each tensor.

    Args:
        tensors: All tensors of one checkpoint, by name: neighbours count.

    >>> from types import SimpleNamespace
    >>> from deltapack.dtypes import BY_NAME
    >>> bf16 = lambda *shape: SimpleNamespace(dtype=BY_NAME["bf16"], shape=shape)
    >>> roles_of({"q_proj.weight": bf16(64, 64), "norm.weight": bf16(64), "bn.running_var": bf16(64)})
    {'q_proj.weight': 'weight', 'norm.weight': 'vector', 'bn.running_var': 'statistic'}
    """
    modules: dict[str, set[str]] = defaultdict(set)
    for name in tensors:
        prefix, leaf = _split(name)
        modules[prefix].add(leaf)
    quantised = set(_quantised(tensors, modules))
    if quantised:
        quantised |= {name for name in tensors if _ACTIVATIONS.fullmatch(_split(name)[1])}
    return {name: _role(name, tensor, modules, name in quantised) for name, tensor in tensors.items()}


def _split(name: str) -> tuple[str, str]:
    """Return what comes before the last separator, with it, and the rest: dot, slash of a sub-folder, colon of a part (torchao)."""
    at = max(name.rfind("."), name.rfind("/"), name.rfind(":")) + 1
    return name[:at], name[at:]


def _role(name: str, tensor: Described, modules: Mapping[str, set[str]], quantised: bool) -> str:
    prefix, leaf = _split(name)
    if quantised:
        return "quantised"
    if not tensor.dtype.is_delta:
        return "integer"
    if _is_statistic(prefix, leaf, tensor.shape, modules[prefix]):
        return "statistic"
    numel = math.prod(tensor.shape)
    line = sum(extent > 1 for extent in tensor.shape) < 2
    if _VECTOR.fullmatch(leaf) or numel <= _TINY or (line and numel <= _FLAT):
        return "vector"
    return "weight"


def _is_statistic(prefix: str, leaf: str, shape: tuple[int, ...], neighbours: set[str]) -> bool:
    if _STATISTIC.fullmatch(leaf) or _OBSERVED.fullmatch(prefix[:-1]):
        return True
    if (leaf in _CODEBOOK and neighbours & _CODEBOOK_COUNTS) or _POWER_ITERATION.get(leaf) in neighbours:
        return True
    # The causal mask of GPT-2 and its kin is called `bias` and is as long as it is wide.
    return leaf == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] > 1


def _quantised(tensors: Mapping[str, Described], modules: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield the names of the tensors that are codes, or belong to codes."""
    for prefix, leaves in modules.items():
        for marks, members in _OF_MODULE:
            if marks <= leaves and any(_is_code(tensors[prefix + mark].dtype) for mark in marks):
                yield from (prefix + leaf for leaf in leaves if members.fullmatch(leaf))
        scales = {leaf for leaf in leaves if _SCALE.fullmatch(leaf)}
        codes = [leaf for leaf in leaves - scales if _may_be_scaled(tensors[prefix + leaf])]
        if scales and codes:
            yield from (prefix + leaf for leaf in (*scales, *codes))
    for name in tensors:
        if (centroids := _CENTROIDS.fullmatch(name)) and f"{centroids['module']}indices" in tensors:
            yield name
        found = _SUFFIXES.fullmatch(name)
        if found is None:
            continue
        code = found["code"]
        for owner in (code, code.removesuffix("_quantizer"), f"{code}.weight", f"{code}_blocks", f"{code}._data", f"{code}_qdata"):
            if owner in tensors and owner != name and _is_code(tensors[owner].dtype):
                yield from (owner, name)


def _may_be_scaled(tensor: Described) -> bool:
    """Whether a tensor beside scales holds codes: bytes, or bytes packed into words, but no counter and no flag."""
    return _is_code(tensor.dtype) and tensor.dtype.name not in ("bool", "i64", "u64") and len(tensor.shape) > 1


def _is_code(dtype: DType) -> bool:
    """Whether elements of this type may stand for numbers by way of a scale."""
    return dtype.itemsize == 1 or not dtype.is_delta
