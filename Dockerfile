# The study in a container: docker build -t e2d . && docker run --rm -v "$PWD/results:/study/results" e2d
# With a GPU: add --gpus all, and --ipc=host for its loaders. The wheels of requirements.lock carry the CUDA libraries, so
# that any base with Debian's or Ubuntu's packages and Python 3.11 or newer does; another one: --build-arg BASE=…
# JupyterLab: docker run --rm -p 8888:8888 e2d make lab
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv make git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /study
# The environment first: it changes less often than the study, so that its layer is kept.
COPY Makefile pyproject.toml requirements.lock README.md LICENSE ./
RUN mkdir e2d_lib && touch e2d_lib/__init__.py && make env
COPY . .

CMD ["make", "study"]
