"""Label videos over HTTP: `inti-jax serve`.

`app` has the routes and `server` listens; `guard` refuses what browsers send for other sites. A video comes
by `uploads` or `urls` into a temporary file without a name, one of the processes of `decoders` makes a clip
of it by `decoding`, and `batching` runs the model on the clips of several requests at once. `limits` bounds
all this, and `metrics` counts it.
"""
