# Images for users who build with a container engine: docker build --target meshd --tag mesh/meshd:0.1.0 . (also proxy, shop,
# workload, bench). `cargo xtask image` makes the same without one.
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /mesh
COPY . .
# The target is named, so that compiler plug-ins stay dynamic while the programs are static.
RUN target="$(uname -m)-unknown-linux-gnu" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --workspace --bins --locked --release --target "$target" \
    && mkdir /out && cp target/"$target"/release/meshd target/"$target"/release/proxy target/"$target"/release/shop \
       target/"$target"/release/workload target/"$target"/release/bench /out/

FROM scratch AS meshd
COPY --from=build /out/meshd /usr/local/bin/meshd
COPY --from=build /out/meshd /usr/local/bin/pilot-discovery
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/meshd"]

# The proxy hands its rules to nft, or to iptables where the kernel has no nf_tables; they need the libraries of a distribution.
FROM debian:bookworm-slim AS proxy
RUN apt-get update && apt-get install -y --no-install-recommends nftables iptables iproute2 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/proxy /usr/local/bin/proxy
RUN ln -s proxy /usr/local/bin/pilot-agent
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-agent"]

FROM scratch AS shop
COPY --from=build /out/shop /usr/local/bin/shop
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/shop"]

# What the tests on Kubernetes put into pods.
FROM scratch AS workload
COPY --from=build /out/workload /usr/local/bin/workload
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/workload"]

# What is measured with on Kubernetes.
FROM scratch AS bench
COPY --from=build /out/bench /usr/local/bin/bench
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/bench"]
