"One of the processes that train a network together: `python -m torch.distributed.run --nproc-per-node 8 -m nrf_repro.experiment SPEC FOLDER`."
import sys

from nrf_repro.experiment.distributed import run_worker
from nrf_repro.experiment.run import train_run

if __name__ == '__main__': run_worker(train_run, *sys.argv[1:])
