"""Everything that runs in a deployment's containers: copied into every image, so it imports nothing of this project.

`listener` holds the port. `supervisor` starts the workers; each `worker` runs an `app` around one copy of the model, which
must pass the `smoke_test` before it takes requests. A request comes through uvicorn (`protocol` bounds its headers) to the
`gateway` (key, limits, log, metrics), the `server` and one of its `routes`; `bodies` reads it and `predictor` answers it.
`settings` are what the environment says. `healthcheck` asks the workers from outside and is the image's HEALTHCHECK.
`internals` holds the undocumented names of MLflow and uvicorn. In an image there is also `cpu`, which `deployments.build`
copies from `catdog_pyfunc`.
"""

PORT = 8080  # inside the containers
PING = "/ping"  # 200 from workers that have passed the smoke test
MODEL = "model"  # folder of the model, in the image's working folder
STARTUP_FAILED = 3  # exit code of a worker whose model failed to load or failed its smoke test
