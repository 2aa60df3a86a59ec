"""Per-sample losses and residuals of micro-batches, from their logits and their gradients."""
