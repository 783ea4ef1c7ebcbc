"""The finding on a predictive check."""

from typing import Any

from vilvm.diagnostics.finding import Finding, Severity

__all__ = ["predictive_check_finding"]

_TAILS = "Use a likelihood with heavier or lighter tails (Student t for a Gaussian)."
_ADVICE = {
    "mean": "Look for a missing intercept or covariate, or a fit that stopped too early.",
    "sd": "Use a likelihood with a spread of its own (a negative binomial for a Poisson, a learnt "
    "scale).",
    "minimum": "Use a likelihood with the right support and tails.",
    "maximum": _TAILS,
    "skewness": "Use a skewed likelihood, or transform the data.",
    "kurtosis": _TAILS,
    "zeros": "Use a likelihood with the right share of zeros (zero-inflated).",
    "sd of row means": "The latents do not carry what a datum's components share: check collapse "
    "and the number of latent dimensions.",
    "correlation": "Two columns depend on one another otherwise than the model has it: use more "
    "latents, or a likelihood with dependent components.",
    "neighbours": "The components of a datum depend on one another beyond what the latents "
    "explain.",
}


def predictive_check_finding(found: Any) -> Finding:
    """The finding on a ``PredictiveCheck``."""
    severity, verdict, advice = _judge(found)
    source = (
        f"max-T over all statistics, false-alarm rate {found.false_alarm:g}: Westfall and Young, "
        "1993"
    )
    if found.kind == "posterior":
        source += "; posterior p-values are conservative: Gelman, Meng and Stern, 1996"
    name = f"{found.kind.capitalize()} predictive check"
    return Finding(name, severity, verdict, source, advice, about="model")


def _judge(found: Any) -> tuple[Severity, str, str]:
    p_values = {name: p.min().item() for name, p in found.adjusted.items()}
    failing = [name for name, p in p_values.items() if p < found.false_alarm]
    if not failing:
        least = min(p_values, key=lambda name: p_values[name])
        verdict = (
            f"None of {found.num_statistics} statistics distinguishes the data from "
            f"{found.num_draws} replicates (least likely: {_label(found, least)}, adjusted p = "
            f"{p_values[least]:.2g})."
        )
        return Severity.OK, verdict, ""
    failing.sort(key=lambda name: p_values[name])
    details = "; ".join(_detail(found, name, p_values[name]) for name in failing[:4])
    keys = [name.split(": ")[-1] for name in failing]
    advice = list(dict.fromkeys(_ADVICE[key] for key in keys if key in _ADVICE))
    verdict = f"The data differ from those that the model generates: {details}."
    return Severity.WARNING, verdict, " ".join(advice[:2])


def _label(found: Any, name: str) -> str:
    """The number of a statistic that is least likely."""
    return found.label(name, int(found.adjusted[name].flatten().argmin()))


def _detail(found: Any, name: str, p: float) -> str:
    """A statistic of the data beside the range of the replicates."""
    observed = found.observed[name].flatten()
    replicated = found.replicated[name].reshape(found.num_draws, -1)
    i = int(found.adjusted[name].flatten().argmin())
    low, high = (
        replicated[:, i].quantile(replicated.new_tensor([0.005, 0.995])).tolist()
    )
    return (
        f"{found.label(name, i)} is {observed[i].item():.3g}, and {low:.3g} to {high:.3g} in "
        f"replicates (adjusted p = {p:.2g})"
    )
