"""Posteriors of posteriordb as plain Pyro models, each with its data and reference draws.

A model is written as its Stan program is: in raw coordinates, neither centred nor whitened unless
the Stan program is, with flat priors where that has none. It has no guide. ``posterior`` makes a
``Problem`` of a name:

    model, data       what an inference method is given;
    scalars           the values of latents under the names of posteriordb, such as "beta[1]";
    reference         draws of long Stan runs, with which those scalars are compared.

One file holds one family of models. Its table ``POSTERIORS`` gives, by name, the function that
makes a ``Statement`` (model, data, reported sites) of the variables of posteriordb.

References: posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms,
Magnusson et al., 2024. The origin of each model is in its file.
"""

# Imports are relative, because pyright does not follow the __path__ of vilvm.models.
from .collection import names, posterior
from .problem import Problem, Statement

__all__ = ["Problem", "Statement", "names", "posterior"]
