"""The models of Pyro's tutorials train, are evaluated as by Pyro's loss, and are diagnosed."""

import copy
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

import vilvm
from tests.pairs.oracle import pyro_elbos, replayed
from vilvm.diagnostics import gaps
from vilvm.weights import find_layout

pytestmark = [
    # a warning of Pyro about a plate without a size
    pytest.mark.filterwarnings("ignore:Found plate statements in guide but not model"),
    pytest.mark.filterwarnings("ignore:Found vars in model but not guide"),
]


class Tutorial(NamedTuple):
    """A model of a tutorial with its data.

    Arguments:
        lvm: the pair.
        batch: its data.
        objective: of its training.
        modules: the networks, wherever they are held.
        replays: whether the latents alone determine log p − log q.
        bound: whether there is one (not for AutoDelta).
    """

    lvm: Any
    batch: Any
    objective: Callable[[], Any] = Trace_ELBO
    modules: tuple[nn.Module, ...] = ()
    replays: bool = True
    bound: bool = True


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Variational auto-encoders
# ----------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, pixels, z_dim, hidden=16):
        super().__init__()
        self.pixels = pixels
        self.fc1 = nn.Linear(pixels, hidden)
        self.fc21 = nn.Linear(hidden, z_dim)
        self.fc22 = nn.Linear(hidden, z_dim)

    def forward(self, x):
        hidden = F.softplus(self.fc1(x.reshape(-1, self.pixels)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self, pixels, z_dim, hidden=16):
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden)
        self.fc21 = nn.Linear(hidden, pixels)

    def forward(self, z):
        return torch.sigmoid(self.fc21(F.softplus(self.fc1(z))))


class VAE(nn.Module):
    """Images of 1 × 3 × 4 pixels."""

    def __init__(self, z_dim=2):
        super().__init__()
        self.encoder, self.decoder, self.z_dim = (
            Encoder(12, z_dim),
            Decoder(12, z_dim),
            z_dim,
        )

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            images = self.decoder.forward(z)
            pyro.sample(
                "obs",
                dist.Bernoulli(images, validate_args=False).to_event(1),
                obs=x.reshape(-1, 12),
            )
            return images

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def images(num_data=20):
    return (seeded(num_data, 1, 3, 4) > 0).float()


def vae():
    made = VAE()
    return Tutorial(made, images(), modules=(made,))


def vae_as_a_pair():
    made = VAE()
    return Tutorial(vilvm.Pair(made.model, made.guide), images(), modules=(made,))


class ConvolutionalVAE(VAE):
    """Images decoded by transposed convolutions with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Linear(2, 8),
            nn.Unflatten(1, (2, 2, 2)),
            nn.ConvTranspose2d(2, 3, 2, stride=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.ConvTranspose2d(3, 1, (1, 2)),
            nn.Sigmoid(),
            nn.Flatten(),
        )


def convolutional_vae():
    made = ConvolutionalVAE()
    return Tutorial(made, images(), modules=(made,))


class Concatenated(nn.Module):
    """Takes tensors, broadcasts them, and joins them."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, *parts):
        shape = broadcast_shape(*[p.shape[:-1] for p in parts])
        return self.net(
            torch.cat([p.expand(*shape, p.shape[-1]) for p in parts], dim=-1)
        )


class SSVAE(nn.Module):
    """Semi-supervised: a label y, observed or not, and a style z."""

    def __init__(self, pixels=12, labels=3, z_dim=2):
        super().__init__()
        self.pixels, self.labels, self.z_dim = pixels, labels, z_dim
        self.encoder_y = Concatenated(
            nn.Linear(pixels, 8),
            nn.Softplus(),
            nn.Linear(8, labels),
            nn.Softmax(dim=-1),
        )
        self.encoder_z = Concatenated(
            nn.Linear(pixels + labels, 8), nn.Softplus(), nn.Linear(8, 2 * z_dim)
        )
        self.decoder = Concatenated(
            nn.Linear(z_dim + labels, 8),
            nn.Softplus(),
            nn.Linear(8, pixels),
            nn.Sigmoid(),
        )

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        with pyro.plate("data"):
            zs = pyro.sample(
                "z",
                dist.Normal(xs.new_zeros([batch_size, self.z_dim]), 1.0).to_event(1),
            )
            alpha_prior = xs.new_ones([batch_size, self.labels]) / (1.0 * self.labels)
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            loc = self.decoder(zs, ys)
            pyro.sample(
                "x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs
            )
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            loc, log_scale = self.encoder_z(xs, ys).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def ss_vae_supervised():
    made = SSVAE()
    batch = (images().flatten(1), F.one_hot(torch.arange(20) % 3, 3).float())
    return Tutorial(
        vilvm.Pair(lambda b: made.model(*b), lambda b: made.guide(*b)),
        batch,
        modules=(made,),
    )


def ss_vae_unsupervised():
    made = SSVAE()
    return Tutorial(
        vilvm.Pair(made.model, made.guide), images().flatten(1), modules=(made,)
    )


def ss_vae_enumerated():
    """As the tutorial trains it: y enumerated in the guide."""
    made = SSVAE()
    lvm = vilvm.Pair(made.model, config_enumerate(made.guide, "parallel", expand=True))
    return Tutorial(
        lvm,
        images().flatten(1),
        partial(TraceEnum_ELBO, max_plate_nesting=1),
        modules=(made,),
    )


class CVAE(nn.Module):
    """A conditional VAE: the missing part of a picture given the rest, with a prior network."""

    def __init__(self, seen=4, missing=8, z_dim=2):
        super().__init__()
        self.prior = nn.Sequential(
            nn.Linear(seen, 8), nn.ReLU(), nn.Linear(8, 2 * z_dim)
        )
        self.recognition = nn.Sequential(
            nn.Linear(seen + missing, 8), nn.ReLU(), nn.Linear(8, 2 * z_dim)
        )
        self.generation = nn.Sequential(
            nn.Linear(z_dim + seen, 8), nn.ReLU(), nn.Linear(8, missing), nn.Sigmoid()
        )

    def model(self, batch):
        xs, ys = batch["seen"], batch["missing"]
        pyro.module("generation_net", self)
        batch_size = xs.shape[0]
        with pyro.plate("data"):
            prior_loc, prior_log_scale = self.prior(xs).chunk(2, dim=1)
            zs = pyro.sample(
                "z", dist.Normal(prior_loc, prior_log_scale.exp()).to_event(1)
            )
            loc = self.generation(torch.cat([zs, xs], dim=-1).view(batch_size, -1))
            pyro.sample(
                "y", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=ys
            )
            return loc

    def guide(self, batch):
        xs, ys = batch["seen"], batch["missing"]
        with pyro.plate("data"):
            loc, log_scale = self.recognition(torch.cat((xs, ys), dim=-1)).chunk(
                2, dim=1
            )
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def cvae():
    made, x = CVAE(), images().flatten(1)
    return Tutorial(made, {"seen": x[:, :4], "missing": x[:, 4:]}, modules=(made,))


# Topics
# ----------------------------------------------------------------------------------------------


class TopicEncoder(nn.Module):
    def __init__(self, vocab, topics, hidden=8, dropout=0.2):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc1, self.fc2 = nn.Linear(vocab, hidden), nn.Linear(hidden, hidden)
        self.fcmu, self.fclv = nn.Linear(hidden, topics), nn.Linear(hidden, topics)
        self.bnmu = nn.BatchNorm1d(topics, affine=False)
        self.bnlv = nn.BatchNorm1d(topics, affine=False)

    def forward(self, inputs):
        h = self.drop(F.softplus(self.fc2(F.softplus(self.fc1(inputs)))))
        return self.bnmu(self.fcmu(h)), (0.5 * self.bnlv(self.fclv(h))).exp()


class TopicDecoder(nn.Module):
    def __init__(self, vocab, topics, dropout=0.2):
        super().__init__()
        self.beta = nn.Linear(topics, vocab, bias=False)
        self.bn = nn.BatchNorm1d(vocab, affine=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, inputs):
        return F.softmax(self.bn(self.beta(self.drop(inputs))), dim=1)


class ProdLDA(nn.Module):
    def __init__(self, vocab=6, topics=3):
        super().__init__()
        self.topics, self.encoder, self.decoder = (
            topics,
            TopicEncoder(vocab, topics),
            TopicDecoder(vocab, topics),
        )

    def model(self, docs):
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", docs.shape[0]):
            logtheta_loc = docs.new_zeros((docs.shape[0], self.topics))
            logtheta_scale = docs.new_ones((docs.shape[0], self.topics))
            logtheta = pyro.sample(
                "logtheta", dist.Normal(logtheta_loc, logtheta_scale).to_event(1)
            )
            count_param = self.decoder(F.softmax(logtheta, -1))
            total_count = int(docs.sum(-1).max())
            pyro.sample(
                "obs",
                dist.Multinomial(total_count, count_param, validate_args=False),
                obs=docs,
            )

    def guide(self, docs):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            logtheta_loc, logtheta_scale = self.encoder(docs)
            pyro.sample(
                "logtheta", dist.Normal(logtheta_loc, logtheta_scale).to_event(1)
            )


def documents(num_data=20, vocab=6):
    return (3 * seeded(num_data, vocab).abs()).round() + 1


def prod_lda():
    made = ProdLDA()
    return Tutorial(made, documents(), TraceMeanField_ELBO, modules=(made,))


def prod_lda_square():
    """As many documents as words, so that batch normalisation accepts an extra dimension."""
    made = ProdLDA(vocab=6)
    return Tutorial(made, documents(6, 6), TraceMeanField_ELBO, modules=(made,))


def prod_lda_in_closures():
    """Plain functions with ``pyro.module``: their networks are put into evaluation mode, too."""
    made = ProdLDA()
    return Tutorial(
        vilvm.Pair(lambda d: made.model(d), lambda d: made.guide(d)),
        documents(),
        modules=(made,),
    )


# Mixtures
# ----------------------------------------------------------------------------------------------

K = 2


@config_enumerate
def mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(K)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", K):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def clusters():
    return torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0, 0.5, 10.5])


def gmm_by_auto_delta():
    guide = AutoDelta(
        poutine.block(mixture, expose=["weights", "locs", "scale"]),
        init_loc_fn=lambda site: {
            "weights": torch.ones(K) / K,
            "scale": torch.tensor(2.0),
            "locs": torch.tensor([1.0, 9.0]),
        }[site["name"]],
    )
    return Tutorial(
        vilvm.Pair(mixture, guide),
        clusters(),
        partial(TraceEnum_ELBO, max_plate_nesting=1),
        bound=False,
    )


def mixture_globals(data):
    weights = pyro.param("w", torch.tensor([4.0, 5.0]), constraint=constraints.positive)
    pyro.sample("weights", dist.Dirichlet(weights))
    pyro.sample("scale", dist.LogNormal(pyro.param("s", torch.tensor(0.3)), 0.2))
    with pyro.plate("components", K):
        pyro.sample(
            "locs", dist.Normal(pyro.param("m", torch.tensor([1.0, 10.0])), 0.5)
        )


def gmm_enumerated():
    """Assignments summed over; the shared latents have densities."""
    lvm = vilvm.Pair(mixture, mixture_globals)
    return Tutorial(
        lvm, clusters(), partial(TraceEnum_ELBO, max_plate_nesting=1), replays=False
    )


def gmm_with_assignments():
    """Assignments drawn by the guide."""

    def guide(data):
        mixture_globals(data)
        with pyro.plate("data", len(data)):
            logits = pyro.param("logits", 0.1 * torch.ones(len(data), K))
            pyro.sample("assignment", dist.Categorical(logits=logits))

    model = poutine.infer_config(mixture, lambda site: {"enumerate": None})
    return Tutorial(vilvm.Pair(model, guide), clusters())


# Sequences
# ----------------------------------------------------------------------------------------------


class Emitter(nn.Module):
    def __init__(self, features, z_dim):
        super().__init__()
        self.lin = nn.Linear(z_dim, features)

    def forward(self, z_t):
        return torch.sigmoid(self.lin(z_t))


class GatedTransition(nn.Module):
    def __init__(self, z_dim):
        super().__init__()
        self.gate, self.mean = nn.Linear(z_dim, z_dim), nn.Linear(z_dim, z_dim)
        self.loc, self.sig = nn.Linear(z_dim, z_dim), nn.Linear(z_dim, z_dim)

    def forward(self, z_prev):
        gate = torch.sigmoid(self.gate(z_prev))
        mean = self.mean(z_prev)
        return (1 - gate) * self.loc(z_prev) + gate * mean, F.softplus(
            self.sig(F.relu(mean))
        )


class Combiner(nn.Module):
    def __init__(self, z_dim, hidden):
        super().__init__()
        self.z_to_hidden, self.to_loc, self.to_scale = (
            nn.Linear(z_dim, hidden),
            nn.Linear(hidden, z_dim),
            nn.Linear(hidden, z_dim),
        )

    def forward(self, z_prev, h):
        combined = 0.5 * (torch.tanh(self.z_to_hidden(z_prev)) + h)
        return self.to_loc(combined), F.softplus(self.to_scale(combined))


class DMM(nn.Module):
    """The deep Markov model: sequences of several lengths, padded and masked."""

    def __init__(self, features=3, z_dim=2, hidden=4, annealing=1.0):
        super().__init__()
        self.emitter, self.trans, self.combiner = (
            Emitter(features, z_dim),
            GatedTransition(z_dim),
            Combiner(z_dim, hidden),
        )
        self.rnn = nn.GRU(features, hidden, batch_first=True)
        self.z_0, self.z_q_0 = (
            nn.Parameter(torch.zeros(z_dim)),
            nn.Parameter(torch.zeros(z_dim)),
        )
        self.h_0 = nn.Parameter(torch.zeros(1, 1, hidden))
        self.annealing = annealing

    def model(self, batch):
        mini_batch, mask = batch["x"], batch["mask"]
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.size(1) + 1)):
                z_loc, z_scale = self.trans(z_prev)
                with poutine.scale(None, self.annealing):
                    z_t = pyro.sample(
                        f"z_{t}",
                        dist.Normal(z_loc, z_scale)
                        .mask(mask[:, t - 1 : t])
                        .to_event(1),
                    )
                emission = self.emitter(z_t)
                pyro.sample(
                    f"obs_x_{t}",
                    dist.Bernoulli(emission).mask(mask[:, t - 1 : t]).to_event(1),
                    obs=mini_batch[:, t - 1, :],
                )
                z_prev = z_t

    def guide(self, batch):
        mini_batch, mask = batch["x"], batch["mask"]
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        output = self.rnn(mini_batch.flip(1), h_0)[0].flip(1)
        z_prev = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.size(1) + 1)):
                z_loc, z_scale = self.combiner(z_prev, output[:, t - 1, :])
                with poutine.scale(None, self.annealing):
                    z_prev = pyro.sample(
                        f"z_{t}",
                        dist.Normal(z_loc, z_scale)
                        .mask(mask[:, t - 1 : t])
                        .to_event(1),
                    )


def dmm():
    lengths = torch.tensor([3, 1, 2, 3, 2])
    mask = torch.arange(3) < lengths[:, None]
    made = DMM()
    batch = {"x": (seeded(5, 3, 3) > 0).float() * mask[..., None], "mask": mask}
    return Tutorial(made, batch, modules=(made,))


class RecurrentDecoder(nn.Module):
    """A sentence model: one code a sequence, unrolled by a GRU in the model."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)
        self.encoder = nn.Linear(5, 4)

    def model(self, x):
        pyro.module("recurrent", self)
        with pyro.plate("sequences", x.shape[0]):
            z = pyro.sample(
                "z", dist.Normal(x.new_zeros(x.shape[0], 2), 1.0).to_event(1)
            )
            hidden, _ = self.rnn(z.unsqueeze(1).repeat(1, x.shape[1], 1))
            pyro.sample(
                "x", dist.Normal(self.out(hidden).squeeze(-1), 0.5).to_event(1), obs=x
            )

    def guide(self, x):
        with pyro.plate("sequences", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, dim=1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def recurrent():
    made = RecurrentDecoder()
    return Tutorial(made, seeded(8, 5), modules=(made,))


# Regressions
# ----------------------------------------------------------------------------------------------


class BayesianRegression(PyroModule):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = PyroModule[nn.Linear](in_features, out_features)
        self.linear.weight = PyroSample(
            dist.Normal(0.0, 1.0).expand([out_features, in_features]).to_event(2)
        )
        self.linear.bias = PyroSample(
            dist.Normal(0.0, 10.0).expand([out_features]).to_event(1)
        )

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


class BNN(PyroModule):
    def __init__(self, in_dim=1, out_dim=1, hidden=3, prior_scale=1.0):
        super().__init__()
        self.activation = nn.Tanh()
        self.layer1 = PyroModule[nn.Linear](in_dim, hidden)
        self.layer2 = PyroModule[nn.Linear](hidden, out_dim)
        self.layer1.weight = PyroSample(
            dist.Normal(0.0, prior_scale).expand([hidden, in_dim]).to_event(2)
        )
        self.layer1.bias = PyroSample(
            dist.Normal(0.0, prior_scale).expand([hidden]).to_event(1)
        )
        self.layer2.weight = PyroSample(
            dist.Normal(0.0, prior_scale).expand([out_dim, hidden]).to_event(2)
        )
        self.layer2.bias = PyroSample(
            dist.Normal(0.0, prior_scale).expand([out_dim]).to_event(1)
        )

    def forward(self, x, y=None):
        x = x.reshape(-1, 1)
        x = self.activation(self.layer1(x))
        mu = self.layer2(x).squeeze()
        sigma = pyro.sample("sigma", dist.Gamma(0.5, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mu, sigma * sigma + 0.1), obs=y)
        return mu


class NoisyRegression(PyroModule):
    """A regression whose noise is a parameter, and whose slope is a sample."""

    def __init__(self, features):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([features]).to_event(1))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x, y=None):
        mean = x @ self.slope
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("obs", dist.Normal(mean, self.noise), obs=y)


def line(features=3, num_data=15):
    x = seeded(num_data, features)
    return x, x.sum(-1) + 0.3 * seeded(num_data + 1)[1:]


def regression(auto, made=None):
    net = made() if made is not None else BayesianRegression(3, 1)

    def model(batch):
        return net(*batch)

    return Tutorial(vilvm.Pair(model, auto(model)), line(), modules=(net,))


def regression_behind_a_lambda():
    net = BayesianRegression(3, 1)
    model = lambda batch: net(*batch)  # noqa: E731
    return Tutorial(vilvm.Pair(model, AutoNormal(model)), line(), modules=(net,))


def bnn(auto):
    net = BNN()

    def model(batch):
        return net(*batch)

    x, y = line(1)
    return Tutorial(vilvm.Pair(model, auto(model)), (x, y), modules=(net,))


def linear_regression():
    """A function with plain latents, under AutoNormal."""
    model, guide, batch, _ = stored_linear_regression()
    return Tutorial(vilvm.Pair(model, guide), batch)


TUTORIALS = {
    "VAE": vae,
    "VAE, a pair of methods": vae_as_a_pair,
    "VAE, convolutional": convolutional_vae,
    "SS-VAE, supervised": ss_vae_supervised,
    "SS-VAE, unsupervised": ss_vae_unsupervised,
    "SS-VAE, enumerated": ss_vae_enumerated,
    "cVAE": cvae,
    "ProdLDA": prod_lda,
    "ProdLDA, square": prod_lda_square,
    "ProdLDA, closures": prod_lda_in_closures,
    "GMM, AutoDelta": gmm_by_auto_delta,
    "GMM, enumerated": gmm_enumerated,
    "GMM, assignments": gmm_with_assignments,
    "DMM": dmm,
    "recurrent decoder": recurrent,
    "regression, diagonal": partial(regression, AutoDiagonalNormal),
    "regression, full rank": partial(regression, AutoMultivariateNormal),
    "regression, low rank": partial(
        regression, partial(AutoLowRankMultivariateNormal, rank=2)
    ),
    "regression, lambda": regression_behind_a_lambda,
    "regression, noise a parameter": partial(
        regression, AutoMultivariateNormal, partial(NoisyRegression, 3)
    ),
    "BNN, diagonal": partial(bnn, AutoDiagonalNormal),
    "BNN, AutoNormal": partial(bnn, AutoNormal),
    "regression, plain latents": linear_regression,
}
# these use the same code paths as others, so they are slow tests
ALIKE = {
    "VAE, a pair of methods",
    "ProdLDA, square",
    "recurrent decoder",
    "regression, diagonal",
    "regression, full rank",
    "regression, low rank",
    "regression, noise a parameter",
    "BNN, AutoNormal",
}


@pytest.fixture(
    params=[
        pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in TUTORIALS
    ]
)
def tutorial(request):
    torch.manual_seed(3)
    return TUTORIALS[request.param]()


def trained(tutorial, steps, lr=0.01):
    adam = partial(torch.optim.Adam, lr=lr)
    return vilvm.fit(
        tutorial.lvm,
        tutorial.batch,
        steps=steps,
        objective=tutorial.objective(),
        optimizer=adam,
    )


def unlike_new(tutorial):
    """Sets batch statistics that change a decoder, and puts all networks into evaluation mode."""
    for module in tutorial.modules:
        module.eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)


@pytest.mark.slow
def test_tutorial_model_trains(tutorial):
    """All parameters are found, some move, Pyro's loss improves, and the history is finite."""
    still = partial(torch.optim.SGD, lr=0.0)
    vilvm.fit(
        tutorial.lvm,
        tutorial.batch,
        steps=1,
        objective=tutorial.objective(),
        optimizer=still,
    )
    before = {n: p.detach().clone() for n, p in tutorial.lvm.named_parameters()}
    announced = sum(p.numel() for m in tutorial.modules for p in m.parameters())
    assert sum(p.numel() for p in tutorial.lvm.parameters()) >= announced
    start = pyro_elbos(
        tutorial.lvm, tutorial.batch, 20, elbo=tutorial.objective(), training=True
    )
    result = trained(tutorial, steps=25)
    for column in ("elbo", "distortion"):
        assert all(math.isfinite(v) for v in result.history[column])
    assert any(
        not torch.equal(before[n], p) for n, p in tutorial.lvm.named_parameters()
    )
    end = pyro_elbos(
        tutorial.lvm, tutorial.batch, 20, elbo=tutorial.objective(), training=True
    )
    assert end[0] > start[0] - 3 * math.hypot(start[1], end[1])
    assert len(pyro.get_param_store()) == 0


def test_tutorial_evaluation_matches_pyros_loss(tutorial):
    """``evaluate`` puts all networks into evaluation mode."""
    unlike_new(tutorial)
    for module in tutorial.modules:
        module.train()
    result = vilvm.evaluate(tutorial.lvm, tutorial.batch, num_samples=150)
    if not tutorial.bound:
        with pytest.raises(KeyError, match="on one point"):
            _ = result.bounds["elbo"]
        return
    for module in tutorial.modules:
        module.eval()
    elbo = result.bounds["elbo"]
    mean, se = pyro_elbos(tutorial.lvm, tutorial.batch, 50, elbo=tutorial.objective())
    ours, our_se = elbo.values.sum().item(), elbo.errors.square().sum().sqrt().item()
    assert abs(ours - mean) < 5 * math.hypot(se, our_se) + 1e-3
    assert -(result.rate.mean + result.distortion.mean) == pytest.approx(
        elbo.mean, rel=1e-5
    )


def test_tutorial_log_weights_match_pyro(tutorial):
    if not tutorial.replays or not tutorial.bound:
        pytest.skip("its latents alone do not give the weight")
    unlike_new(tutorial)
    # equal to numbers of latents, labels, pixels or data of some example
    for count in (3, 6, 20):
        some = torch.linspace(0, count - 1, 3).long()
        weights = vilvm.log_weights(tutorial.lvm, tutorial.batch, count)
        latents = {n: v.detach() for n, v in weights.latents.items()}
        found = weights.log_weight.detach()[some]
        found = found if found.dim() == 1 else found.sum(-1)
        expected = replayed(
            tutorial.lvm, tutorial.batch, {n: v[some] for n, v in latents.items()}
        )
        torch.testing.assert_close(
            found,
            expected,
            rtol=1e-4,
            atol=2e-3,
            msg=lambda m, c=count: f"{c} samples: {m}",
        )
        drawn = vilvm.posterior(tutorial.lvm, tutorial.batch, count)
        assert {n: v.shape for n, v in drawn.items()} == {
            n: v.shape for n, v in latents.items()
        }


def test_mixture_distortion_with_a_degenerate_guide():
    """AutoDelta with enumerated assignments: −log p(x | w, s, m) by hand."""
    torch.manual_seed(3)
    tutorial = gmm_by_auto_delta()
    trained(tutorial, steps=50)
    values = {
        n: v[0].double().detach()
        for n, v in vilvm.posterior(tutorial.lvm, tutorial.batch, 1).items()
    }
    x = tutorial.batch.double()
    each = (
        dist.Normal(values["locs"], values["scale"]).log_prob(x[:, None])
        + values["weights"].log()
    )
    for count in (1, 5, 7):
        found = vilvm.evaluate(
            tutorial.lvm, tutorial.batch, num_samples=count
        ).distortion
        assert found.values.sum().item() == pytest.approx(
            -each.logsumexp(-1).sum().item(), rel=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "tutorial", [n for n in TUTORIALS if n not in ALIKE], indirect=True
)
def test_tutorial_model_is_diagnosed(tutorial, monkeypatch):
    """Each diagnostic runs, does not apply, or has no time left."""
    monkeypatch.setattr(
        import_module("vilvm.diagnostics.diagnose"), "gaps", partial(gaps, steps=60)
    )  # the best guide is not needed
    history = trained(tutorial, steps=100).history
    found = vilvm.diagnose(
        tutorial.lvm, tutorial.batch, history=history, budget=20, progress=False
    )
    broken = {
        n: why
        for n, why in found.skipped.items()
        if "Error" in why or "fails on a batch" in why or "A log-density" in why
    }
    assert not broken
    if tutorial.bound:
        assert "Pareto k̂" in found.results


# Under Pyro's own store: the same code run by ``Trace_ELBO`` gives the expected loss, from the
# same seed and parameters ----------

# A check that cannot be vectorised does not stop training here: these tests are about whose
# parameters a pair has.
TRAINED = {
    "progress": False,
    "optimizer": partial(torch.optim.Adam, lr=0.01),
    "nonfinite": "skip",
}


def stored_vae():
    made = VAE()
    return made.model, made.guide, images(), Trace_ELBO


def stored_ss_vae():
    """https://pyro.ai/examples/ss-vae.html, all data labelled, of a class that is no module."""

    class Plain:
        def __init__(self):
            self.encoder_y = nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1))
            self.encoder_z = nn.Sequential(
                nn.Linear(9, 8), nn.Softplus(), nn.Dropout(0.2), nn.Linear(8, 4)
            )
            self.decoder = nn.Sequential(
                nn.Linear(5, 8), nn.Softplus(), nn.Linear(8, 6), nn.Sigmoid()
            )

        def model(self, xs, ys):
            pyro.module(
                "ss_vae", nn.ModuleList([self.decoder, self.encoder_y, self.encoder_z])
            )
            with pyro.plate("data", len(xs)):
                zs = pyro.sample(
                    "z", dist.Normal(xs.new_zeros(len(xs), 2), 1.0).to_event(1)
                )
                pyro.sample(
                    "y", dist.OneHotCategorical(xs.new_ones(len(xs), 3) / 3.0), obs=ys
                )
                pyro.sample(
                    "x",
                    dist.Bernoulli(self.decoder(torch.cat([zs, ys], -1))).to_event(1),
                    obs=xs,
                )

        def guide(self, xs, ys):
            with pyro.plate("data", len(xs)):
                loc, log_scale = self.encoder_z(torch.cat([xs, ys], -1)).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    made = Plain()
    x, y = torch.bernoulli(torch.full((20, 6), 0.4)), torch.eye(3)[torch.arange(20) % 3]
    return lambda b: made.model(*b), lambda b: made.guide(*b), (x, y), Trace_ELBO


def stored_regression():
    """https://pyro.ai/examples/bayesian_regression.html."""
    made = BayesianRegression(3, 1)
    model = lambda batch: made(*batch)  # noqa: E731
    return model, AutoDiagonalNormal(model), line(), Trace_ELBO


def stored_bnn():
    """A Bayesian network of two layers: https://pyro.ai/examples/modules.html."""

    class Narrow(PyroModule):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = (
                PyroModule[nn.Linear](1, 5),
                PyroModule[nn.Linear](5, 1),
            )
            self.fc1.weight = PyroSample(
                dist.Normal(0.0, 1.0).expand([5, 1]).to_event(2)
            )
            self.fc2.weight = PyroSample(
                dist.Normal(0.0, 1.0).expand([1, 5]).to_event(2)
            )

        def forward(self, x, y=None):
            mean = self.fc2(torch.tanh(self.fc1(x.reshape(-1, 1)))).squeeze(-1)
            sigma = pyro.param(
                "sigma", torch.tensor(0.5), constraint=dist.constraints.positive
            )
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)

    made, x = Narrow(), torch.linspace(-1, 1, 20)
    model = lambda b: made(*b)  # noqa: E731
    return model, AutoDiagonalNormal(made_for(model)), (x, x.sin()), Trace_ELBO


def made_for(model):
    """A second lambda around the model, as if another cell defined the autoguide."""
    return lambda batch: model(batch)


def stored_mixture():
    """https://pyro.ai/examples/gmm.html, with a parameter for the width of its prior."""

    @config_enumerate
    def model(data):
        width = pyro.param(
            "width", torch.tensor(10.0), constraint=dist.constraints.positive
        )
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, width))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    return (
        model,
        guide,
        torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]),
        partial(TraceEnum_ELBO, max_plate_nesting=1),
    )


def stored_cvae():
    """https://pyro.ai/examples/cvae.html in plain functions, with dropout."""
    prior, recognition = (
        nn.Linear(3, 4),
        nn.Sequential(nn.Linear(9, 8), nn.Dropout(0.5), nn.Linear(8, 4)),
    )
    generation = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)
    )

    def model(batch):
        xs, ys = batch
        pyro.module("prior_net", prior)
        pyro.module("generation_net", generation)
        with pyro.plate("data", len(xs)):
            loc, log_scale = prior(xs).chunk(2, -1)
            zs = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample(
                "y",
                dist.Bernoulli(logits=generation(torch.cat([zs, xs], -1))).to_event(1),
                obs=ys,
            )

    def guide(batch):
        xs, ys = batch
        pyro.module("recognition_net", recognition)
        with pyro.plate("data", len(xs)):
            loc, log_scale = recognition(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return (
        model,
        guide,
        (torch.randn(20, 3), torch.bernoulli(torch.full((20, 6), 0.4))),
        Trace_ELBO,
    )


def stored_linear_regression():
    """Plain latents under AutoNormal: https://pyro.ai/examples/intro_long.html."""

    def model(batch):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("bA", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        with pyro.plate("data", len(batch[0])):
            pyro.sample("obs", dist.Normal(a + b * batch[0], sigma), obs=batch[1])

    x = torch.linspace(-1, 1, 20)
    return model, AutoNormal(model), (x, 2 * x + 1), Trace_ELBO


STORED = [
    stored_vae,
    stored_ss_vae,
    stored_regression,
    stored_bnn,
    stored_mixture,
    stored_cvae,
    stored_linear_regression,
]


def made(tutorial):
    torch.manual_seed(0)
    return tutorial()


def pyros_loss(tutorial, lvm, mode):
    """The loss of the same code under Pyro's parameter store, with the same noise."""
    model, guide, batch, objective = made(tutorial)
    twin = vilvm.Pair(model, guide)
    find_layout(twin, batch)
    twin.load_state_dict(lvm.state_dict())
    twin.train(mode)
    # the only parameter that Pyro would not find in its modules
    for name, value in getattr(twin, "pyro_params", {}).items():
        constraint = twin.__dict__["_pyro_constraints"][name]
        pyro.get_param_store().setdefault(
            name,
            torch.distributions.transform_to(constraint)(value.detach()),
            constraint,
        )
    torch.manual_seed(1)
    loss = objective().loss(model, guide, batch)
    pyro.clear_param_store()
    return loss


@pytest.mark.parametrize(
    "tutorial", STORED, ids=lambda t: t.__name__.removeprefix("stored_")
)
def test_loss_equals_pyros_on_the_same_noise(tutorial):
    model, guide, batch, objective = made(tutorial)
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, batch, steps=3, objective=objective(), **TRAINED)
    for mode in (True, False):
        lvm.train(mode)
        expected = pyros_loss(tutorial, copy.deepcopy(lvm), mode)
        torch.manual_seed(1)
        assert objective().loss(lvm.model, lvm.guide, batch) == pytest.approx(
            expected, rel=1e-6
        )
        assert not dict(pyro.get_param_store())


@pytest.mark.parametrize(
    "tutorial", STORED, ids=lambda t: t.__name__.removeprefix("stored_")
)
def test_training_updates_every_parameter_that_svi_updates(tutorial):
    model, guide, batch, objective = made(tutorial)
    lvm = vilvm.Pair(model, guide)
    find_layout(lvm, batch)
    before = {n: p.detach().clone() for n, p in lvm.named_parameters()}
    vilvm.fit(lvm, batch, steps=2, objective=objective(), **TRAINED)
    moved = {
        n.split(".")[-1]
        for n, p in lvm.named_parameters()
        if not torch.equal(p, before[n])
    }
    assert not dict(pyro.get_param_store())
    model, guide, batch, objective = made(tutorial)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objective())
    svi.step(batch)
    start = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
    svi.step(batch)
    by_svi = {
        n for n, v in pyro.get_param_store().items() if not torch.equal(v, start[n])
    }
    pyro.clear_param_store()
    assert by_svi
    assert {n.split("$$$")[-1].split(".")[-1] for n in by_svi} <= {
        n.removesuffix("_unconstrained") for n in moved
    }


def test_cvae_predictions_use_evaluation_mode():
    """Networks of plain functions neither drop out nor move statistics in evaluation."""
    model, guide, batch, _ = made(stored_cvae)
    lvm = vilvm.Pair(model, guide)
    vilvm.fit(lvm, batch, steps=3, **TRAINED)
    before = copy.deepcopy(lvm.state_dict())
    first, second = (vilvm.posterior_mean(lvm, batch)["z"] for _ in range(2))
    torch.testing.assert_close(first, second)
    draws = Predictive(lvm.eval().model, guide=lvm.guide, num_samples=100)(batch)[
        "z"
    ].squeeze()
    error = draws.std(0) / 100**0.5
    assert ((draws.mean(0) - first).abs() < 6 * error).all()
    assert all(torch.equal(before[n], v) for n, v in lvm.state_dict().items())
