# The image of the Ray nodes in kubernetes/: Python, the package, what torch.compile needs, data.
#
#   docker build -t registry.example.com/maml-dist:0.2.0 --build-arg DATA="omniglot" .
#   docker push registry.example.com/maml-dist:0.2.0
#
# torch's wheels bring CUDA; a node needs only NVIDIA's driver. DATA: the data sets that every node
# is to have, as `python -m maml_dist.data` names them; none by default.
FROM python:3.12-slim

# g++ is for torch.compile; wget is what KubeRay's health checks call.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 ray && install -d -o ray -g ray /data /runs
WORKDIR /opt/maml_dist
COPY pyproject.toml README.md LICENSE ./
COPY maml_dist maml_dist
RUN pip install --no-cache-dir .

ENV MAML_DIST_DATA=/data NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home/ray
ARG DATA=""
RUN for name in $DATA; do python -m maml_dist.data "$name" || exit 1; done
