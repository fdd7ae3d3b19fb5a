"""What runs in the containers of a deployment: these files travel in every image and import nothing of this project.

`door` holds the port; `serve` starts the workers; `worker` is one of them, around `application`; `probe` is the question
that a worker answers before it takes requests; `ask` puts it from outside, and is the image's HEALTHCHECK.
"""

PORT = 8080  # in the containers
