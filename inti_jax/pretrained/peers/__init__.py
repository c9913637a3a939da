"""Read fine-tuned video checkpoints as the published methods wrote them.

- `methods` has a table of rules for each of AIM, ST-Adapter and ZeroI2V, between their names and ours, and
  infers the settings of the method from names and shapes.
- `others` recognises models that are not read, so that an error can name them.

Nothing here knows a run: `runs.peer_file` makes the file that the rest of the project takes.
"""
