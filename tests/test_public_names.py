"""``import vilvm`` imports nothing; a public name imports all."""

import subprocess
import sys

import pytest

import vilvm


def in_a_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_vilvm_imports_no_library():
    code = "import sys, vilvm; print('torch' in sys.modules, 'pyro' in sys.modules)"
    assert in_a_new_process(code) == ["False", "False"]


@pytest.mark.slow
def test_public_names_after_a_room_was_imported_first():
    code = (
        "from vilvm.training import fit; import vilvm; "
        "print(vilvm.fit is fit, vilvm.data.__name__, 'save' in dir(vilvm))"
    )
    assert in_a_new_process(code) == ["True", "vilvm.data", "True"]


def test_every_public_name_exists():
    assert vilvm.__all__ == sorted(vilvm.__all__)
    assert all(getattr(vilvm, name) is not None for name in vilvm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vilvm.nothing  # noqa: B018
