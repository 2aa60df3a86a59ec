"""Where measurements go: TensorBoard, the log, the run folder. Nothing here computes."""
