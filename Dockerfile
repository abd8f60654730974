# docker build -t streamdiffusion-backend .
# PyTorch's wheels bring CUDA's libraries with them, so a slim Python is base enough: the host supplies the
# driver. Everything below builds with Docker 20.10 and newer, with or without BuildKit.
FROM python:3.11-slim-bookworm AS packages

# Another index for torch, for a build without CUDA: https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=
# Which of requirements-<name>.txt to install.
ARG ACCELERATIONS="xformers tensorrt"

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The environment has no pip of its own: the base image's installs into it.
RUN python -m venv --without-pip /opt/venv

WORKDIR /build
COPY constraints.txt ./
# By itself, so that another requirement changes without fetching gigabytes again.
RUN pip --python /opt/venv/bin/python install -c constraints.txt \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY requirements*.txt ./
RUN set -- -r requirements.txt; \
    for name in $ACCELERATIONS; do set -- "$@" -r "requirements-$name.txt"; done; \
    pip --python /opt/venv/bin/python install -c constraints.txt "$@"


FROM python:3.11-slim-bookworm

# The accelerations `fused` and `compile` write their kernels when the server starts: in C for a GPU, in C++ for
# a CPU. Empty leaves 0.25 GB out, and `auto` then takes plain PyTorch on a GPU.
ARG COMPILERS="gcc g++"

# No versions: Debian keeps only the newest. The compilers are several words.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini $COMPILERS \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --user-group --home-dir /app --no-create-home streamdiffusion \
    && mkdir -p /app/engines /app/.cache/huggingface \
    && chown -R streamdiffusion: /app
COPY --from=packages /opt/venv /opt/venv

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/app \
    HF_HOME=/app/.cache/huggingface \
    TRITON_CACHE_DIR=/app/engines/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY deploy/docker/entrypoint deploy/docker/healthcheck /usr/local/bin/
# `python -m app.core.dependencies` compares with them.
COPY constraints.txt requirements*.txt ./
COPY models models
COPY web web
COPY app app

EXPOSE 8000
# The first start downloads the model and may compile engines; that counts as starting, not as failing.
HEALTHCHECK --interval=5s --timeout=5s --start-period=20m --retries=3 CMD ["healthcheck"]
# Starts as root, serves as streamdiffusion: see there.
ENTRYPOINT ["entrypoint"]
CMD ["python", "-m", "app.main"]
