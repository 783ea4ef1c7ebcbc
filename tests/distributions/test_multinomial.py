"""Multinomial counts of unequal totals, compared with torch's of one total."""

import torch

from vilvm.distributions import Multinomial

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]], dtype=torch.float64)
TOTALS = torch.tensor([4.0, 7.0])


def test_density_is_torchs_for_each_total():
    x = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 3.0]], dtype=torch.float64)
    each = [
        torch.distributions.Multinomial(int(n), logits=logits).log_prob(row)
        for n, logits, row in zip(TOTALS, LOGITS, x, strict=True)
    ]
    torch.testing.assert_close(
        Multinomial(TOTALS, LOGITS).log_prob(x), torch.stack(each)
    )


def test_draws_have_totals_means_and_variances():
    """|z| < 5 for six means and six variances: fails once in 150,000 seeds."""
    fn, count = Multinomial(TOTALS, LOGITS), 20_000
    x = fn.sample((count,))
    assert x.shape == (count, 2, 3)
    assert torch.equal(x.sum(-1), TOTALS.double().expand(count, 2))
    deviation = x - fn.mean
    for term in (deviation, deviation.square() - fn.variance):
        assert (term.mean(0).abs() < 5 * term.std(0) / count**0.5).all()


def test_totals_and_logits_broadcast():
    fn = Multinomial(TOTALS, LOGITS[0]).expand((5, 2))
    assert fn.batch_shape == (5, 2)
    assert fn.sample().shape == (5, 2, 3)
    assert fn.log_prob(torch.zeros(3)).shape == (5, 2)


def test_no_draws_of_empty_documents():
    assert Multinomial(torch.zeros(2), LOGITS).sample().sum() == 0
