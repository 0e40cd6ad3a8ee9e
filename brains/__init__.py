"""What supports dataset.py, modules.py and train.py: files with one job each, named in docs/structure.md."""

import os

# OpenMP reads it when TensorFlow loads; otherwise scikit-learn's threads spin while others need the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# TensorFlow has faster convolutions, which it leaves off on older processors
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
