# The app, or any other command of snakecls, on a CPU. Build: docker build -t snakecls .
# Serve:  docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/runs/NAME/best:/bundle:ro" snakecls
# Train:  docker run --rm --user "$(id -u)" --shm-size 2g -v "$PWD:/work" snakecls snakecls train --data photos/
# Workers hand photos over through /dev/shm, of which Docker gives 64 MB: --shm-size 2g (or --ipc=host) gives more.
# Where it is too small, fewer of them read, and the run says: "2 of 4 processes read photos, as a batch takes 10 MB and the shared memory (/dev/shm) has …".
# HEALTHCHECK is Docker's own: podman and buildah keep it with --format docker.
# The cache of time savers lies in /tmp/cache; -v snakecls-cache:/tmp/cache keeps it between runs.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/cache/matplotlib \
    GRADIO_SERVER_NAME=0.0.0.0 \
    PORT=7860 \
    SNAKECLS_BUNDLE=/bundle

# where PyTorch comes from; with a GPU: --build-arg PYTORCH=https://download.pytorch.org/whl/cu130
ARG PYTORCH=https://download.pytorch.org/whl/cpu
WORKDIR /opt/snakecls
COPY settings.ini setup.py pyproject.toml README.md LICENSE app.py ./
COPY snakecls snakecls
RUN pip install "torch>=2.6" "torchvision>=0.21" --index-url "$PYTORCH" \
    && pip install . \
    && rm -rf build snakecls snakecls.egg-info \
    && useradd --uid 1000 --no-create-home snakecls \
    && mkdir -p /work /tmp/cache \
    && chown snakecls /work /tmp/cache \
    && chmod 1777 /tmp/cache

USER 1000
WORKDIR /work
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=8)"]
CMD ["python", "/opt/snakecls/app.py"]
