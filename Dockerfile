# The images of the project, a target each; `make images` builds them, docs/how-to/cluster.md says which runs what.
#   train     every stage of `amlp`; head and workers of RayJobs
#   stages    train and kfp: Kubeflow tasks that do a stage's work
#   pipeline  no torch and no CUDA: Kubeflow tasks that fetch, launch, decide and record; compiling and submitting
#   mlflow    the MLflow server
# Needs BuildKit: Docker 23 or later, or 20.10 with DOCKER_BUILDKIT=1. No frontend is fetched for it.
#
# A package index, proxy or certificate of your own is the builder's affair and stays out of the images:
#   --secret id=pip,src=pip.conf    pip's configuration, seen while packages are installed and not kept
# Don't pass an index with a password as --build-arg: an image's history keeps build arguments.

# Debian 12 with Python 3.11, pip and bash. By tag, so that a new build takes its security updates; to fix it, build with
# --build-arg BASE=python@sha256:... as your registry names it.
ARG BASE=python:3.11-slim-bookworm

# The locks, cut so that a layer changes only with what it holds: torch and CUDA, most of the bytes, change seldom.
# setuptools goes before the rest, for it builds the packages that are published as source alone.
FROM ${BASE} AS locks
COPY requirements.lock requirements-train.lock requirements-pipeline.lock /
RUN set -eu; \
    take() { awk -v names="^($1)" '/^[^ ]/ { wanted = $0 ~ names } wanted' "$2"; }; \
    take 'torch|triton==|nvidia-|cuda-|setuptools==' requirements-train.lock > torch.txt; \
    take 'setuptools==' requirements-pipeline.lock > setuptools.txt; \
    take 'hatchling==|packaging==|pathspec==|pluggy==|trove-classifiers==' requirements.lock > build.txt

FROM ${BASE} AS base
# On a cluster the root file system is read-only and /tmp is not: homes and caches go there, and bytecode is made now.
# The rest is what amlp.environment sets, for what runs here without amlp.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    DVC_SITE_CACHE_DIR=/tmp/dvc \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LANG=C.UTF-8 \
    LC_ALL=C.UTF-8 \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=true \
    GX_ANALYTICS_ENABLED=false \
    HF_HUB_OFFLINE=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    RAY_USAGE_STATS_ENABLED=0
# A login shell, which KubeRay can be set to use, would forget the PATH. Python's official images have no bytecode.
RUN set -eu; \
    groupadd --gid 10001 amlp; \
    useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin amlp; \
    echo 'PATH=/opt/venv/bin:$PATH' > /etc/profile.d/amlp.sh; \
    python3 -m venv --without-pip /opt/venv; \
    python3 -m compileall -q -x '/(site|dist)-packages/|/tests?/' "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"
WORKDIR /tmp

# amlp itself, built with what the lock has for it.
FROM base AS wheel
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,from=locks,source=/build.txt,target=/mnt/build.txt \
    pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes -r /mnt/build.txt
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE dvc.yaml params.yaml ./
COPY recipes recipes
COPY amlp amlp
RUN hatchling build -t wheel

FROM base AS train-packages
# KubeRay's probes run bash and wget in the image.
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,from=locks,source=/torch.txt,target=/mnt/torch.txt \
    pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes -r /mnt/torch.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,source=requirements-train.lock,target=/mnt/train.lock \
    pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes --no-build-isolation \
        -r /mnt/train.lock \
    && pip --python /opt/venv check

FROM train-packages AS train
RUN --mount=type=bind,from=wheel,source=/src/dist,target=/mnt/dist \
    pip --python /opt/venv install --no-cache-dir --no-deps --no-index /mnt/dist/*.whl
USER 10001:10001
CMD ["amlp", "--help"]
# What changes with every commit comes last. `register` records AMLP_GIT_COMMIT, as there is no repository to ask.
ARG COMMIT=""
ARG VERSION=""
ENV AMLP_GIT_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="amlp-train" \
      org.opencontainers.image.description="Stages of amlp, and RayJobs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT

# Not from `train`: kfp would then be installed and pushed anew after each change of amlp. Its lock and the one of
# training are parts of one lock, so only what training lacks is added.
FROM train-packages AS stages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,source=requirements-pipeline.lock,target=/mnt/pipeline.lock \
    pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes --no-build-isolation \
        -r /mnt/pipeline.lock \
    && pip --python /opt/venv check
# A task's source is a call of its function in `components`.
RUN --mount=type=bind,from=wheel,source=/src/dist,target=/mnt/dist \
    --mount=type=bind,source=components,target=/mnt/components \
    pip --python /opt/venv install --no-cache-dir --no-deps --no-index /mnt/dist/*.whl \
    && mkdir /opt/amlp \
    && cp -r /mnt/components /opt/amlp \
    && chmod -R u=rwX,go=rX /opt/amlp \
    && python3 -m compileall -q /opt/amlp
ENV PYTHONPATH=/opt/amlp
USER 10001:10001
CMD ["amlp", "--help"]
ARG COMMIT=""
ARG VERSION=""
ENV AMLP_GIT_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="amlp-stages" \
      org.opencontainers.image.description="Kubeflow tasks that do the work of a stage of amlp" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT

FROM base AS pipeline
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,from=locks,source=/setuptools.txt,target=/mnt/setuptools.txt \
    --mount=type=bind,source=requirements-pipeline.lock,target=/mnt/pipeline.lock \
    pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes -r /mnt/setuptools.txt \
    && pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes --no-build-isolation \
        -r /mnt/pipeline.lock \
    && pip --python /opt/venv check
# components and pipelines belong to no package: for tasks, and to compile and submit.
RUN --mount=type=bind,from=wheel,source=/src/dist,target=/mnt/dist \
    --mount=type=bind,source=components,target=/mnt/components \
    --mount=type=bind,source=pipelines,target=/mnt/pipelines \
    pip --python /opt/venv install --no-cache-dir --no-deps --no-index /mnt/dist/*.whl \
    && mkdir /opt/amlp \
    && cp -r /mnt/components /mnt/pipelines /opt/amlp \
    && chmod -R u=rwX,go=rX /opt/amlp \
    && python3 -m compileall -q /opt/amlp
ENV PYTHONPATH=/opt/amlp
USER 10001:10001
CMD ["python", "-m", "pipelines", "--help"]
ARG COMMIT=""
ARG VERSION=""
ENV AMLP_GIT_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="amlp-pipeline" \
      org.opencontainers.image.description="Light Kubeflow tasks of amlp; compiles and submits its pipelines" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT

FROM base AS mlflow
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/var/cache/pip \
    --mount=type=bind,source=requirements-mlflow.lock,target=/mnt/mlflow.lock \
    pip --python /opt/venv install --cache-dir /var/cache/pip --no-deps --require-hashes -r /mnt/mlflow.lock \
    && pip --python /opt/venv check
USER 10001:10001
CMD ["mlflow", "server", "--help"]
ARG COMMIT=""
ARG VERSION=""
LABEL org.opencontainers.image.title="amlp-mlflow" \
      org.opencontainers.image.description="MLflow server with accounts, for PostgreSQL and S3" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT
