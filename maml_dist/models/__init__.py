"""Models: plain `torch.nn.Module`s."""
