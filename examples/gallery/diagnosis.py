"""Diagnoses a mean-field posterior of eight schools, and pictures it as the page does.

python -m examples.gallery.diagnosis docs/images/diagnosis.png
"""

import vilvm
from examples._options import console, rate, run
from examples._prescribed import MODELS, fit_case
from examples.gallery._options import parser_of
from vilvm import plots


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("diagnosis", __doc__, steps=2000)
    parser.add_argument("--budget", type=rate, default=120.0, help="seconds")
    args = parser.parse_args(argv)
    case = MODELS["eight_schools_centred"]("mean_field")
    fit_case(case, args.seed, args.steps)
    found = vilvm.diagnose(
        case.lvm,
        case.data,
        budget=args.budget,
        coords=case.coords,
        seed=args.seed,
    )
    console.print(str(found), highlight=False, markup=False)
    assert found.posterior is not None
    plots.forest(found.posterior).savefig(args.out, dpi=90)
    return 0


if __name__ == "__main__":
    run(main)
