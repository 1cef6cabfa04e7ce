# aqaa in a container:
#
#   docker build --target cpu -t aqaa:cpu .       runs anywhere, about 2 GB
#   docker build --target cuda -t aqaa:cuda .     for GPU nodes (with the NVIDIA container toolkit)
#   docker run --rm -it -v "$PWD/runs:/aqaa/runs" aqaa:cpu walkthrough preset=walkthrough/smoke
#
# The pins of constraints.txt hold in both; only the build of torch differs. Written with care, but
# not built yet where this was made.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
# DeepSpeed's kernels are not used, so it is built without them and without a compiler. The pins are
# in the environment, so that they hold where pip builds packages too.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/aqaa/constraints.txt DS_BUILD_OPS=0
WORKDIR /aqaa
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE MANIFEST.in ./
# The pip of the Makefile: later ones do not keep to PIP_CONSTRAINT where they build packages.
RUN pip install pip==23.2.1
COPY conf conf
COPY aqaa aqaa

FROM base AS cpu
ENV DS_ACCELERATOR=cpu
# Alone: that index has not every pinned version of what torch needs, which comes with the rest.
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
RUN pip install -e '.[demo]'
ENTRYPOINT ["aqaa"]
CMD ["doctor"]

FROM base AS cuda
# The wheels bring CUDA and NCCL, the driver is the host's; flex_attention compiles with g++.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install -e '.[demo]'
ENTRYPOINT ["aqaa"]
CMD ["doctor"]
