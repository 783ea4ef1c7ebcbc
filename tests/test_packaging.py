"""The wheel holds everything that the README and the docstrings import."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = os.environ.get("UV", "uv")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
OPTIONAL = (
    "torchvision",
    "matplotlib",
    "arviz",
    "arviz_base",
    "xarray",
    "h5netcdf",
    "zarr",
    "tensorboard",
    "mlflow",
    "wandb",
    "pyarrow",
    "anndata",
    "polars",
)
NEED_AN_EXTRA = ("vilvm.plots", "vilvm.report", "vilvm.export", "vilvm.models")

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in {blocked}:
    sys.modules[name] = None
import vilvm
for module in pkgutil.walk_packages(vilvm.__path__, "vilvm."):
    if not module.name.startswith({skipped}):
        importlib.import_module(module.name)
"""
RUN_EXAMPLES = """
import doctest, importlib, pkgutil, sys
from pathlib import Path
import pyro, torch
import vilvm
assert Path(vilvm.__file__).is_relative_to(sys.prefix), vilvm.__file__
for block in sorted(Path.cwd().glob("*.txt")):
    exec(compile(block.read_text(encoding="utf-8"), block.name, "exec"), {"__name__": "__main__"})
count = 0
for module in pkgutil.walk_packages(vilvm.__path__, "vilvm."):
    pyro.clear_param_store()
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(module.name))
    assert not result.failed, module.name
    count += result.attempted
import vilvm.models.vae
assert count > 50, count
"""


def run(*command, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {
            i.filename: i.CRC
            for i in archive.infolist()
            if "dist-info" not in i.filename
        }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(UV, "build", "--quiet", "--out-dir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_package_and_gallery(wheel, tmp_path):
    run(UV, "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT))
    assert contents(wheel) == contents(next(tmp_path.glob("*.whl")))
    expected = {
        p.relative_to(ROOT).as_posix() for p in ROOT.glob("vilvm/**/*") if p.is_file()
    }
    expected |= {
        f"vilvm/{p.relative_to(ROOT).as_posix()}"
        for p in ROOT.glob("models/**/*")
        if p.is_file()
    }
    assert set(contents(wheel)) == {
        name for name in expected if "__pycache__" not in name
    }


@pytest.mark.slow
def test_installed_wheel_runs_every_example(wheel, tmp_path):
    environment = tmp_path / "environment"
    run(UV, "venv", "--quiet", "--python", sys.executable, str(environment))
    python = environment / "bin" / "python"
    run(
        UV,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        str(python),
        str(wheel),
    )
    # The dependencies come from the present environment. Python does not read the .pth files in a
    # folder that a .pth file names, so the editable installation of vilvm is not found.
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(
        sysconfig.get_path("purelib"), encoding="utf-8"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    ):
        (elsewhere / f"readme-{number}.txt").write_text(block, encoding="utf-8")
    free = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    run(str(python), "-c", RUN_EXAMPLES, cwd=elsewhere, env=free)


@pytest.mark.slow
def test_imports_without_optional_dependencies():
    run(
        sys.executable, "-c", IMPORT_ALL.format(blocked=OPTIONAL, skipped=NEED_AN_EXTRA)
    )


def test_extra_all_names_every_extra_but_trackers():
    extras = PROJECT["optional-dependencies"]
    left_out = {"all", "tensorboard", "mlflow", "wandb"}
    assert extras["all"] == [
        f"vilvm[{','.join(name for name in extras if name not in left_out)}]"
    ]


def test_changelog_describes_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in changelog
