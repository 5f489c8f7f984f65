"""Memory suite: all tasks, all cores, several seeds; results that go on after a stop."""
