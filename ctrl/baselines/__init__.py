"""Memory cores to compare with: LSTM, GRU, minGRU and no memory at all."""
