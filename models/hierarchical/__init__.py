"""Hierarchical posteriors as plain Pyro models, each with its data and reference moments.

A model is written as its authors or its users write it, and has no guide. ``posterior`` makes a
``Problem`` of a name, as ``vilvm.models.posteriordb`` does:

    model, data       what an inference method is given;
    scalars           the values of latents under names such as "theta[1]";
    reference         means and standard deviations, of long NUTS runs or in closed form.

One file holds one family of models. Its table ``POSTERIORS`` gives, by name, the function that
makes a ``Statement`` (model, data, reported sites).

References: Data Analysis Using Regression and Multilevel/Hierarchical Models, Andrew Gelman and
Jennifer Hill, 2007. The origin of each model is in its file.
"""

# Imports are relative, because pyright does not follow the __path__ of vilvm.models.
from .collection import names, posterior
from .summary import Scalar, Summary

__all__ = ["Scalar", "Summary", "names", "posterior"]
