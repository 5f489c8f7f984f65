"""Commands about tasks: list them, check an env, draw a contact sheet."""
