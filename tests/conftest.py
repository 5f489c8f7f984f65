"""Settings for the whole test run."""

import torch

# The tests' tensors are tiny and the run is spread over processes: more threads per process only wait for each other.
torch.set_num_threads(1)
