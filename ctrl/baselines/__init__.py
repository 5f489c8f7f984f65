"""Memory cores to compare with.

The files, in the order in which to read them:

- `feedforward`: no memory at all
- `lstm_gru`: LSTM and GRU
- `mingru`: minGRU, a linear recurrence
"""
