"""TRAIN: tasks, data, metrics, transformers.Trainer."""
