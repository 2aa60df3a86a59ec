"""The train loader: which samples of the data set each batch holds.

`data_loader` follows a `DataLoader` in place and tells listeners what it hands out; `recorder` is
the listener that traces batches to samples and tells epochs. Another kind of loader is one more
file beside `data_loader`: something that tells the same `Listener` the same things.
"""
