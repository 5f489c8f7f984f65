"""Tables of the README and the docs, written from the results and the code that they show: `make docs-tables`."""
