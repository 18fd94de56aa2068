"""Torch: item encoder, GRU, Transformer, losses, Petastorm loader, Horovod trainer, encoding."""
