# e2net as a command, for a CPU; for an NVIDIA GPU a base that has PyTorch with CUDA:
# --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime
ARG BASE=python:3.12-slim

FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps -w /wheels .

FROM ${BASE}
# Further options of pip, such as an index with a smaller PyTorch that has no CUDA.
ARG PIP_OPTIONS=""
# Some bases have a Python of the system's, in which pip installs nothing unless told to.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir ${PIP_OPTIONS} /wheels/*.whl
# Mount your folder here: data, checkpoint/, runs/, and what comes from the Hub.
WORKDIR /work
ENV HF_HOME=/work/cache/huggingface
ENTRYPOINT ["e2net"]
CMD ["--help"]
