"""`edged compare`: Table 1 of arXiv 2509.05576 for a user's own checkpoint. Imports no torch."""

from __future__ import annotations

from argparse import Namespace

from edged.errors import UsageError
from edged.spelling import names_to_choose
from service.cli.offline import choice_of, input_overrides, listener_of, make_folder
from service.cli.output import print_result
from service.comparison.job import DEFAULT_METHODS, METHODS, PEERS, Measurement
from service.comparison.runner import compare as run
from service.comparison.runner import measurements
from service.comparison.table import as_text


def compare(options: Namespace) -> int:
    """Measure all methods on a checkpoint, one after another (`edged compare`)."""
    known = (*METHODS, *PEERS)
    methods = list(DEFAULT_METHODS) if options.methods is None else options.methods
    if unknown := [name for name in methods if name not in known]:
        raise UsageError(f"--methods has value {unknown[0]!r}; {names_to_choose(unknown[0], known, 'choose from')}")
    base = Measurement(
        checkpoint=options.checkpoint,
        calibration=options.calib,
        data=options.data,
        cache=make_folder(options.cache),
        arch=options.arch,
        choice=choice_of(options),
        input=input_overrides(options),
        images=options.images,
        iterations=options.iterations,
        seed=options.seed,
        threads=options.threads,
        device=options.device,
    )
    wanted = list(measurements(base, [*methods, *(PEERS if options.peers else ())], options.bits))
    print_result(options, run(wanted, options.out, listener_of(options)), as_text)
    return 0
