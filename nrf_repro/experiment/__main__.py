"One of the processes that train a network together: `python -m torch.distributed.run --nproc-per-node 8 -m nrf_repro.experiment SPEC FOLDER`."
import sys

from nrf_repro.experiment.distributed import run_worker

if __name__ == '__main__': run_worker(*sys.argv[1:])
