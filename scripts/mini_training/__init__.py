"""The parts of `scripts/train_mini.py`: data in, training of both models, sample sheets, checkpoints, export."""
