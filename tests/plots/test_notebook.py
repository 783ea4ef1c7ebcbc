"""Figures and results show in a notebook: the formatters of a real IPython."""

import base64
import re
import struct

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

import vilvm
from vilvm.diagnostics import SBC, Finding, Severity, pareto_k
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.plots import pareto_k as plot_k

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def shown():
    """Called with an object: what a notebook shows of it, by MIME type."""
    shell = InteractiveShell()
    yield lambda thing: shell.display_formatter.format(thing)[0]
    InteractiveShell.clear_instance()
    shell.history_manager.end_session()


def test_figure_shows_as_a_picture(shown):
    picture = shown(plot_k([0.2, 0.9]))["image/png"]
    assert picture.startswith(PNG)
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 300
    assert height > 200


def test_fit_plots_its_history(shown):
    fitted = vilvm.fit(VAE(6, 2), torch.zeros(8, 6), steps=3, compile=False)
    figure = fitted.plot()
    assert figure.axes[0].get_ylabel() == "ELBO (nats per datum)"
    assert shown(figure)["image/png"].startswith(PNG)


def test_diagnosis_plots_all_findings(shown):
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    ranks = torch.arange(100)[:, None] % 10
    results = {
        "Pareto k̂": pareto_k(PPCA(4, 2).maximise(x), x),
        "Calibration (SBC)": SBC(ranks, 9, ("z",), torch.ones(1), 0.01),
    }
    found = vilvm.Diagnosis((), results, {}, torch.arange(50), 0.0)
    figures = found.plot()
    assert len(figures) == 2
    page = shown(figures)["text/html"]
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == page.count("<img") == 2
    assert all(base64.b64decode(picture).startswith(PNG) for picture in pictures)
    assert "Pareto k̂" in page


def test_ledger_plots_a_panel_a_group():
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    models = {f"{k} dims": PPCA(4, k).maximise(x) for k in (1, 2)}
    options = {"num_samples": 20, "num_draws": 0}
    other = vilvm.compare({"fewer": models["1 dims"]}, x[:20], **options)
    ledger = vilvm.compare(models, x, **options) + other
    upper, lower = ledger.plot().axes
    best, second = ledger.rank(ledger["1 dims"].protocol)
    assert [label.get_text() for label in upper.get_yticklabels()] == [best, second]
    assert [label.get_text() for label in lower.get_yticklabels()] == ["fewer"]
    points = upper.containers[0].lines[0].get_xdata()
    assert list(points) == [ledger[name].bound.mean for name in (best, second)]
    (bars,) = upper.containers[0].lines[2]
    (left, _), (right, _) = bars.get_segments()[1]
    se = ledger.difference(best, second).se
    assert (right - left) / 2 == pytest.approx(se, rel=1e-5)


def test_empty_ledger_has_no_figure():
    with pytest.raises(ValueError, match="no row"):
        vilvm.Ledger(()).plot()


def test_result_shows_as_html(shown):
    finding = Finding("Rate", Severity.OK, "The rate is 2 nats.", "KL ≥ 0")
    page = shown(finding)
    assert "The rate is 2 nats." in page["text/html"]
    assert page["text/plain"].startswith("Finding(")
