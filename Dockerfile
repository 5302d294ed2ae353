# An image for the nodes of a cluster: Ray and this package, as pinned in constraints.txt.
#
#   docker build --tag registry.example.com/rlsparse:0.1.0 .
#   docker push registry.example.com/rlsparse:0.1.0
#
# Not built and not run so far: there was no Docker daemon where it was written.
# BASE has the Ray of constraints.txt. For GPUs, --build-arg BASE=rayproject/ray:2.60.0-py311-gpu and
# --build-arg TORCH_INDEX=https://pypi.org/simple.
ARG BASE=rayproject/ray:2.60.0-py311
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# the dependencies first: they change less often than the package; with what reproduce trains with
# (drop both extras where nothing is trained)
COPY --chown=ray constraints.txt pyproject.toml /tmp/rlsparse/
RUN python -c "import tomllib; \
project = tomllib.load(open('/tmp/rlsparse/pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
needed = project['dependencies'] + extras['train'] + extras['demo']; \
print(*[each for each in needed if not each.startswith(project['name'])], sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir --extra-index-url ${TORCH_INDEX} \
        --constraint /tmp/rlsparse/constraints.txt --requirement /tmp/requirements.txt

COPY --chown=ray LICENSE README.md /tmp/rlsparse/
COPY --chown=ray rlsparse_ray /tmp/rlsparse/rlsparse_ray
COPY --chown=ray queries /tmp/rlsparse/queries
RUN pip install --no-cache-dir --no-deps /tmp/rlsparse && rlsparse --version
