"One of the processes that train a network together; torchrun starts it: `python -m torch.distributed.run --nproc-per-node 8 -m nrf_repro.experiment ...`."
import argparse
from pathlib import Path

from nrf_repro.experiment.distributed import needs_sync_bn, run_worker
from nrf_repro.experiment.plan import RunSpec, resolve_device
from nrf_repro.experiment.run import train_run


def _arguments(argv):
    "The parsed arguments of a process."
    p = argparse.ArgumentParser('nrf_repro.experiment', description='One of the processes that train a network together; torchrun starts them.')
    p.add_argument('--spec', required=True, help='a JSON file with the run specification')
    p.add_argument('--into', required=True, help='folder of the network')
    return p.parse_args(argv)


def _main(argv=None):
    "Train one network as a process of the group. Exits with one line if it cannot."
    given = _arguments(argv)
    spec, run = RunSpec.model_validate_json(Path(given.spec).read_text(encoding='utf-8')), Path(given.into)
    run_worker(lambda group: train_run(spec, run, progress=False, team=group), resolve_device(spec), needs_sync_bn(spec))


if __name__ == '__main__': _main()
