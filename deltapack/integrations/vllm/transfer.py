"""The backend `deltapack` of vLLM's weight transfer: a trainer writes packs, and says which one the server is to hold.

    vllm serve BASE --weight-transfer-config '{"backend": "deltapack"}'

    POST /init_weight_transfer_engine {"init_info": {}}
    POST /start_weight_update
    POST /update_weights {"update_info": {"chain": ["steps/1.dpk", "steps/2.dpk"]}}
    POST /finish_weight_update

`update_info` names a `chain` (steps that were taken are not taken again), or `packs` of the base with weights; none brings the base back.
The files are read by the workers, so they must see them under these paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from deltapack.errors import RecipeError
from deltapack.integrations.vllm.worker import serve
from deltapack.live.served import ServedModel
from deltapack.live.wanted import Wanted

__all__ = ["DeltapackInitInfo", "DeltapackUpdateInfo", "DeltapackWeightTransferEngine"]


@dataclass
class DeltapackInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """What a trainer says once.

    Attributes:
        base: The checkpoint that the server was started with, where it is not found by the server's own name for it.
    """

    base: str | None = None


@dataclass
class DeltapackUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What a trainer says of an update.

    Attributes:
        packs: Packs with weights, as `Wanted.parse` reads them.
        chain: Paths of packs that follow one another.
    """

    packs: Any = field(default_factory=list)
    chain: list[str] = field(default_factory=list)


class DeltapackWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """Puts packs on a worker's model in place, on all workers or on none."""

    init_info_cls = DeltapackInitInfo
    update_info_cls = DeltapackUpdateInfo
    supports_draft_weight_update = False

    _served: ServedModel | None = None

    def init_transfer_engine(self, init_info: DeltapackInitInfo) -> None:
        """Make the model ready for packs.

        Raises:
            DeltapackError: It cannot be.
        """
        self._served = serve(self.model, self.vllm_config, init_info.base)

    def start_weight_update(self) -> None:
        """Nothing: weights are changed in place."""

    def receive_weights(self, update_info: DeltapackUpdateInfo) -> None:
        """Do an update.

        Raises:
            DeltapackError: Nothing was changed.
        """
        if self._served is None:
            raise RecipeError("the weight transfer was not initialised", hint="Call init_weight_transfer_engine first.")
        said = {key: value for key, value in vars(update_info).items() if value}
        wanted = Wanted.parse(said, "update_info")
        if not wanted.packs:
            self._served.deactivate()
        elif wanted.chain:
            self._served.follow(list(wanted.packs))
        else:
            self._served.activate(wanted.packs)

    def finish_weight_update(self) -> None:
        """Nothing: weights are changed in place."""

    def shutdown(self) -> None:
        """Forget the packs; the model keeps what it holds."""
        self._served = None
