"""An alarm for posterior collapse during training, from the rates of a history.

The rate bounds the mutual information of datum and latent from above, I_q(x; z) ≤ E_x KL(q(z | x)
‖ p(z)), so a latent whose rate stays near zero carries no information. The rate is also near zero
when training begins, because a new encoder maps all data to about the same posterior, and it falls
during a KL warm-up. So the alarm waits until the mean rate of several records is below its
threshold and the newest of them is not the largest, which would mean that the rate still rises.

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
    """A callback of ``fit`` that warns once when the latents have collapsed onto their prior.

    Its attribute ``alarmed`` is True after the warning.

    Arguments:
        data: if given, an alarm also requires that no unit is active on these data.
        threshold: the alarm requires a mean rate below it, in nats per datum.
        window: number of consecutive records over which the rate is averaged, at least 2.
        after: records count after this step, such as the length of a KL warm-up.
        stop: whether an alarm stops training.
        num_data: how many of the first `data` are used.

    Raises:
        ValueError: a threshold that is not positive, or a window below 2.

    Examples:
        >>> import torch, vilvm
        >>> from vilvm.models.vae import VAE
        >>> from vilvm.diagnostics.collapse_alarm import CollapseAlarm
        >>> alarm = CollapseAlarm(stop=True)
        >>> vae, x = VAE(data_dim=6, latent_dim=2), torch.zeros(9, 6)
        >>> fitted = vilvm.fit(vae, x, steps=60, callbacks=[alarm])
        >>> alarm.alarmed, fitted.stopped
        (False, 'finished')
    """

    def __init__(
        self,
        data: Any = None,
        *,
        threshold: float = 0.1,
        window: int = 5,
        after: int = 0,
        stop: bool = False,
        num_data: int = 1000,
    ):
        threshold = check_positive(
            "CollapseAlarm: threshold", threshold, "number of nats"
        )
        after = check_number("CollapseAlarm: after", after, 0)
        window = check_number("CollapseAlarm: window", window, 2)
        num_data = check_number("CollapseAlarm: num_data", num_data, 2)
        if data is not None:
            as_data(data, "CollapseAlarm: data")
        self.data, self.threshold, self.window, self.after = (
            data,
            threshold,
            window,
            after,
        )
        self.stop, self.num_data, self.alarmed = stop, num_data, False

    def __call__(self, event: Event) -> bool:
        """Checks the newest records; returns True if training is to stop."""
        newest = event.history.records[-self.window :]
        rates = [r.rate for r in newest if r.step > self.after]
        if (
            len(rates) < self.window
            or not self._is_low(rates)
            or self._is_active(event.lvm)
        ):
            return False
        if not self.alarmed:
            self.alarmed = True
            self._warn(event.history.records[-1].step, sum(rates) / len(rates))
        return self.stop

    def _warn(self, step: int, rate: float) -> None:
        warnings.warn(
            f"Posterior collapse: over the last {self.window} records, up to step {step}, the "
            f"rate is {rate:.2g} nats per datum (below {self.threshold:g}), so the latents carry "
            "almost no information. Try KL warm-up (vilvm.objectives.Annealed), a weaker decoder, "
            "or a smaller latent.",
            stacklevel=3,
        )

    def _is_low(self, rates: list[float]) -> bool:
        # A rate is NaN if the model is not evaluated at records, or if a step is skipped.
        if not all(math.isfinite(r) for r in rates):
            return False
        return sum(rates) / len(rates) < self.threshold and max(rates) > rates[-1]

    def _is_active(self, lvm: Any) -> bool:
        if self.data is None:
            return False
        data = fixed_beside(lvm, self.data)
        if len(data) > self.num_data:
            data = data.subset(slice(0, self.num_data))
        try:
            return any(bool(a.any()) for a in active_units(lvm, data).values())
        # A latent has no mean, or the data share it: the rate alone decides.
        except ContractError:
            return False
