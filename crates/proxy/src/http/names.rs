//! Header names that are looked up for every request: made once, never parsed again.

use http::{HeaderName, HeaderValue};

macro_rules! names {
    ($($constant:ident = $name:literal;)*) => { $(#[doc = $name] pub static $constant: HeaderName = HeaderName::from_static($name);)* };
}

names! {
    REQUEST_ID = "x-request-id";
    FORWARDED_FOR = "x-forwarded-for";
    FORWARDED_PROTO = "x-forwarded-proto";
    FORWARDED_HOST = "x-forwarded-host";
    FORWARDED_CLIENT_CERT = "x-forwarded-client-cert";
    ATTEMPT_COUNT = "x-envoy-attempt-count";
    UPSTREAM_SERVICE_TIME = "x-envoy-upstream-service-time";
    DECORATOR_OPERATION = "x-envoy-decorator-operation";
    ORIGINAL_PATH = "x-envoy-original-path";
    ORIGINAL_HOST = "x-envoy-original-host";
    EXTERNAL_ADDRESS = "x-envoy-external-address";
    OVERLOADED = "x-envoy-overloaded";
    INTERNAL = "x-envoy-internal";
    EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms";
    UPSTREAM_TIMEOUT = "x-envoy-upstream-rq-timeout-ms";
    PER_TRY_TIMEOUT = "x-envoy-upstream-rq-per-try-timeout-ms";
    MAX_RETRIES = "x-envoy-max-retries";
    RETRY_ON = "x-envoy-retry-on";
    RETRY_GRPC_ON = "x-envoy-retry-grpc-on";
    PEER_METADATA = "x-envoy-peer-metadata";
    PEER_METADATA_ID = "x-envoy-peer-metadata-id";
    GRPC_STATUS = "grpc-status";
    GRPC_MESSAGE = "grpc-message";
    GRPC_TIMEOUT = "grpc-timeout";
    MESH_APPLICATION = "x-mesh-application";
    KEEP_ALIVE = "keep-alive";
    PROXY_CONNECTION = "proxy-connection";
}

/// A number as a header's value; small ones, which are the most, cost no memory.
pub fn number(number: u64) -> HeaderValue {
    const SMALL: [&str; 21] = [
        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19",
        "20",
    ];
    match usize::try_from(number).ok().and_then(|number| SMALL.get(number)) {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(number),
    }
}
