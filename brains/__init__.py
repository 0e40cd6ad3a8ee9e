"""What supports dataset.py, modules.py and train.py: files with one job each, named in docs/structure.md."""
