"""The scripts of the gallery's figures run, with a few steps of training."""

import importlib
import os
import re
from pathlib import Path

import pytest

NAMES = ["count_vae", "deep_markov", "prod_lda"]
CLASSICAL = [
    "bayesian_network",
    "bayesian_regression",
    "eight_schools",
    "gaussian_mixture",
    "hidden_markov",
    "linear_autoencoder",
    "linear_discriminant",
]
CLOSED_FORM = ["factor_analysis", "ppca"]
GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
FILE = Path("freyfaces") / "freyfaces_uint8_1965x28x20.npy"
HAS_FACES = (Path(os.environ.get("VILVM_DATA", "nowhere")) / FILE).is_file()


def runs(name, out, *options):
    main = importlib.import_module(f"examples.gallery.{name}").main
    assert main([str(out), *options]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def draws_a_picture(name, out, *options):
    runs(name, out, "--steps", "2", *options)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_figure_is_drawn(name, tmp_path):
    draws_a_picture(name, tmp_path / "figure.png")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSICAL)
def test_small_figure_is_drawn(name, tmp_path):
    draws_a_picture(name, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 80_000


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_figure_of_a_closed_form_is_drawn(name, tmp_path):
    runs(name, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size < 80_000


@pytest.mark.parametrize("page", sorted(GALLERY.glob("*.md")), ids=lambda p: p.stem)
def test_gallery_page_has_a_picture(page):
    pictures = re.findall(r"!\[.+?\]\((\S+\.png)\)", page.read_text("utf-8"))
    assert pictures
    assert all((GALLERY / picture).is_file() for picture in pictures)


@pytest.mark.slow
def test_figure_of_a_diagnosis_is_drawn(tmp_path, capsys):
    draws_a_picture("diagnosis", tmp_path / "figure.png", "--budget", "20")
    assert "theta[Phillips Exeter]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not HAS_FACES, reason="VILVM_DATA holds no Frey faces")
@pytest.mark.parametrize("latent", ["2", "3"])
def test_figure_of_faces_is_drawn(latent, tmp_path):
    draws_a_picture("frey_faces", tmp_path / "figure.png", "--latent", latent)


def test_figure_of_missing_faces_says_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("VILVM_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="No Frey faces in"):
        draws_a_picture("frey_faces", tmp_path / "figure.png")
