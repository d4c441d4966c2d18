# Weir's image: the binary and the three libraries that it is linked to, and nothing else. No shell, no package manager.
#
#   docker build -t weir:0.1.0 .

FROM rust:1.95-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends clang libelf-dev zlib1g-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin weir
# What the image has, as a tree of its own.
RUN deploy/image/rootfs.sh target/release/weir /rootfs

FROM scratch
COPY --from=build /rootfs/ /
ENTRYPOINT ["/usr/bin/weir"]
CMD ["run", "--config", "/etc/weir/weir.yaml"]
