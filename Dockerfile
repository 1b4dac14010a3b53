# docker build -t ddbench .
# docker run --rm -v "$PWD:/work" ddbench run --method dm --method random --method whole --dataset digits --ipc 10
# With a GPU and the container toolkit of its maker: docker run --rm --gpus all -v "$PWD:/work" ddbench ...

FROM python:3.12-slim AS wheel
# The wheel says of which commit it is, so the build needs git and the folder .git.
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN git config --global --add safe.directory /source && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# Fused kernels are compiled for the GPU that is there: Triton needs a C compiler, and a CPU does not.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -rf /wheels
# What a run writes belongs to whoever started it: docker run --user "$(id -u):$(id -g)".
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["ddbench"]
CMD ["--help"]
