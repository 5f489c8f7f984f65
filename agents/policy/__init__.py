"""Policies with a memory core: acting, predicting, judging windows, explaining."""
