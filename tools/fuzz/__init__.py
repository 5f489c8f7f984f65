"""Damaged files of every kind that is read: each must be refused in one line, in bounded time and memory."""
