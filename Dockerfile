# One image for every part: what a container does is the command it is given (see compose.yaml).
# Not built in this project's CI, which has no container engine.
FROM python:3.12-slim-bookworm

# Point this at PyTorch's CPU wheel index for an image without CUDA.
ARG TORCH_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/nirvana
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --constraint constraints.txt ".[gpu]" "$(grep '^flower==' constraints.txt)" \
 && useradd --system --create-home nirvana \
 && install --directory --owner nirvana /var/lib/nirvana/flower

USER nirvana
ENTRYPOINT ["nirvana"]
