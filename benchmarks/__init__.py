"""Peers: what a good user of each framework writes without this project, to be timed beside it by `runner bench`.

Every peer_<framework>.py can be read alone. It imports its framework and `shared`, no implementation, and holds

PEERS                    name -> class. `PEERS[name](workload, parameters, device)` builds the network from canonical
                         parameters (shared.layouts); ImplementationError: what this peer is not written for.
    kernel, device       what computes, in words, and where
    train(batches)       stacked NumPy batches [K, B, T] -> float64 [K], the loss of each step before its update. A step
                         is forward, backward, clipping by global norm 1, Adam; the state is carried, unless padded
    sample(first, length, greedy)
                         int [B] -> int [B, length]: the naive loop, one token at a time, from the zero state
multiplier(m, k, n)      a call that multiplies float32 matrices [m, k] and [k, n] once, and waits
transfer(arrays)         NumPy arrays to the device, and wait
operations(call)         where the framework can tell: name, seconds and calls of what a call does

The losses of the first five steps are compared with the reference before anything is timed. Where a library's own
default would compute something else, the peer says so beside the line that settles it: a second trained bias in
nn.LSTM, gradients of a Keras embedding that are not summed.
"""
