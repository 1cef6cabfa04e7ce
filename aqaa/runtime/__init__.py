"""From a command to a running stage: configuration, the trainer, checkpoints, the walkthrough."""
