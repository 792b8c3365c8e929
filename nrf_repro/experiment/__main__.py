"One of the processes that train a network together; torchrun starts it: `python -m torch.distributed.run --nproc-per-node 8 -m nrf_repro.experiment ...`."
import argparse
import json
from pathlib import Path

from nrf_repro.experiment.distributed import needs_sync_bn, run_worker
from nrf_repro.experiment.runs import Cell, build_folder, device_of, load_profile, train_run


def _arguments(argv):
    "The parsed arguments of a process."
    p = argparse.ArgumentParser('nrf_repro.experiment', description='One of the processes that train a network together; torchrun starts them.')
    p.add_argument('--profile', required=True, help='a name in reports/profiles or the path of a .yaml file')
    p.add_argument('--cell', required=True, help='the network as JSON: dataset, arch, width, norm, regime, seed')
    p.add_argument('--into', help='folder of the network; reports/build/<profile>/runs/<id> if it is left out')
    return p.parse_args(argv)


def _main(argv=None):
    "Train one network as a process of the group. Exits with one line if it cannot."
    given = _arguments(argv)
    profile, cell = load_profile(given.profile), Cell(**json.loads(given.cell))
    run = Path(given.into) if given.into else build_folder(profile) / 'runs' / cell.id
    run_worker(lambda group: train_run(profile, cell, run, progress=False, team=group), device_of(profile), needs_sync_bn(profile, cell))


if __name__ == '__main__': _main()
