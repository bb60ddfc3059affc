# The toolkit with all its dependencies, for any user id, without network at run time.
#   docker build --tag dpa-p2pnet .
#   docker run --rm dpa-p2pnet sh /opt/dpa-p2pnet/tests/smoke.sh
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u)" --volume "$PWD:/work" dpa-p2pnet python -m finetune --help
FROM python:3.12-slim

# torch from PyPI brings CUDA along; openslide-bin the OpenSlide library.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /opt/dpa-p2pnet
COPY pyproject.toml README.md LICENSE ./
COPY shared shared
COPY patch_extraction patch_extraction
COPY ssl_pretrain ssl_pretrain
COPY finetune finetune
COPY tests/smoke.sh tests/smoke.sh
RUN pip install --editable .

# Users of a cluster have no home in here; nothing is to be fetched from hubs.
ENV HOME=/tmp HF_HUB_OFFLINE=1
WORKDIR /work
USER 1000
CMD ["python", "-m", "shared.doctor"]
