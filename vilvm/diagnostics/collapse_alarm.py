"""An alarm for posterior collapse during training, from the rates of a history.

The rate bounds the mutual information of datum and latent from above, I_q(x; z) ≤ E_x KL(q(z | x)
‖ p(z)): a rate that stays near zero is a latent that tells nothing. It is near zero also when
training begins, for a fresh encoder says much the same of every datum, and it falls while a KL
warm-up brings the prior's weight in. So the alarm waits until the mean rate of several records is
below its threshold and the newest of them is not the largest, as it would be were the rate rising
still.

References: Generating Sentences from a Continuous Space, Bowman et al., 2016; ELBO surgery: yet
another way to carve up the variational evidence lower bound, Matthew D. Hoffman and Matthew J.
Johnson, 2016.
"""

import math
import warnings
from typing import Any

from vilvm._runtime.argument_checks import check_number, check_positive
from vilvm.data.data import as_data
from vilvm.diagnostics.collapse import active_units
from vilvm.lvm import ContractError, fixed_beside
from vilvm.training.result import Event

__all__ = ["CollapseAlarm"]


class CollapseAlarm:
    """A callback of ``fit`` that warns, once, when the latents have collapsed onto their prior;
    ``alarmed`` says whether it has.

    Arguments:
        data: if given, of what posterior means must stand still too before there is an alarm (no
            unit is active on them).
        threshold: rate below which the latent is taken to tell nothing, in nats per datum.
        patience: records in a row over which the rate is averaged.
        after: first step of which records count, such as the length of a KL warm-up.
        stop: whether training stops.
        num_data: most data looked at, the first of `data`.

    Raises:
        ValueError: a threshold that is not positive, or patience below 2.

    Example:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.diagnostics.collapse_alarm import CollapseAlarm
        >>> alarm = CollapseAlarm(stop=True)
        >>> fitted = vilvm.fit(VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6), steps=60, callbacks=[alarm])
        >>> alarm.alarmed, fitted.stopped
        (False, 'finished')
    """

    def __init__(
        self,
        data: Any = None,
        *,
        threshold: float = 0.1,
        patience: int = 5,
        after: int = 0,
        stop: bool = False,
        num_data: int = 1000,
    ):
        threshold = check_positive("CollapseAlarm: threshold", threshold, "number of nats")
        after = check_number("CollapseAlarm: after", after, 0)
        patience = check_number("CollapseAlarm: patience", patience, 2)
        num_data = check_number("CollapseAlarm: num_data", num_data, 2)
        if data is not None:
            as_data(data, "CollapseAlarm: data")
        self.data, self.threshold, self.patience, self.after = data, threshold, patience, after
        self.stop, self.num_data, self.alarmed = stop, num_data, False

    def __call__(self, event: Event) -> bool:
        """Looks at the newest records; True if training is to stop."""
        rates = [r.rate for r in event.history.records if r.step > self.after][-self.patience :]
        if len(rates) < self.patience or not self._is_low(rates) or self._is_active(event.lvm):
            return False
        if not self.alarmed:
            self.alarmed = True
            warnings.warn(
                f"Posterior collapse: over the last {self.patience} records, up to step "
                f"{event.history.records[-1].step}, the rate is "
                f"{sum(rates) / len(rates):.2g} nats per datum (below {self.threshold:g}), so the "
                "latents tell next to nothing of the data. "
                "Try KL warm-up (vilvm.objectives.Annealed), a weaker decoder, or a smaller "
                "latent.",
                stacklevel=2,
            )
        return self.stop

    def _is_low(self, rates: list[float]) -> bool:
        # a model that is not looked at record by record, or a step left out
        if not all(math.isfinite(r) for r in rates):
            return False
        return sum(rates) / len(rates) < self.threshold and max(rates) > rates[-1]

    def _is_active(self, lvm: Any) -> bool:
        if self.data is None:
            return False
        data = fixed_beside(lvm, self.data)
        data = data.subset(slice(0, self.num_data)) if len(data) > self.num_data else data
        try:
            return any(bool(a.any()) for a in active_units(lvm, data).values())
        # a latent without a mean, or one that the data share: the rate alone decides
        except ContractError:
            return False
