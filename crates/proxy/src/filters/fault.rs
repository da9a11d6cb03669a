//! Delays and aborts on purpose (Envoy `HttpFault`).

use std::sync::Arc;
use std::time::Duration;

use api::xds::Any;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use rand::RngExt;

use super::Compiled;
use crate::failure::Failure;
use crate::filter::{Exchange, HttpFilter, Reply, Step};
use crate::leaf::{header_match, millionths};
use crate::snapshot::route::matcher::{HeaderMatch, RequestView};

#[derive(Debug)]
struct Fault {
    delay: Option<(Duration, u32)>,
    abort: Option<(Abort, u32)>,
    headers: Vec<HeaderMatch>,
}

#[derive(Clone, Copy, Debug)]
enum Abort {
    Http(u16),
    Grpc(u32),
}

/// Reads the configuration.
///
/// # Errors
/// What is not built: header-controlled faults, rate limits, restrictions to a cluster or to nodes.
pub fn compile(any: &Any) -> Result<Compiled, String> {
    let config: HttpFault = api::xds::unpack(any)?;
    if config.response_rate_limit.is_some()
        || !config.upstream_cluster.is_empty()
        || !config.downstream_nodes.is_empty()
        || config.max_active_faults.is_some()
    {
        return Err("of the fault filter only delay, abort and headers are built".to_owned());
    }
    let delay = match config.delay {
        None => None,
        Some(delay) => match &delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => {
                Some((crate::leaf::duration(time)?, delay.percentage.as_ref().map_or(0, millionths)))
            }
            Some(FaultDelaySecifier::HeaderDelay(_)) => {
                return Err("delays that a header asks for are not built".to_owned());
            }
            None => None,
        },
    };
    let abort = match config.abort {
        None => None,
        Some(abort) => {
            let share = abort.percentage.as_ref().map_or(0, millionths);
            match abort.error_type {
                Some(ErrorType::HttpStatus(status)) if (200..600).contains(&status) => {
                    Some((Abort::Http(status as u16), share))
                }
                Some(ErrorType::HttpStatus(status)) => {
                    return Err(format!("{status} is not an HTTP status between 200 and 599"));
                }
                Some(ErrorType::GrpcStatus(status)) => Some((Abort::Grpc(status), share)),
                Some(ErrorType::HeaderAbort(_)) => return Err("aborts that a header asks for are not built".to_owned()),
                None => None,
            }
        }
    };
    let headers = config.headers.iter().map(header_match).collect::<Result<_, _>>()?;
    if delay.is_none() && abort.is_none() {
        return Ok(Compiled::Idle);
    }
    Ok(Compiled::Filter(Arc::new(Fault { delay, abort, headers })))
}

impl HttpFilter for Fault {
    fn on_request(&self, exchange: &mut Exchange<'_>) -> Step {
        if !self.headers.is_empty() {
            let view = RequestView::of(exchange.head, exchange.authority, exchange.connection.tls);
            if !self.headers.iter().all(|header| header.matches(&view)) {
                return Step::Continue;
            }
        }
        let mut hit = |share: u32| exchange.dice.random_range(0..1_000_000) < share;
        let delay = self.delay.filter(|(_, share)| hit(*share)).map(|(time, _)| time);
        let reply = self.abort.filter(|(_, share)| hit(*share)).map(|(abort, _)| {
            Box::new(match abort {
                Abort::Http(status) => Reply { status, ..Reply::failure(Failure::FaultAbort) },
                Abort::Grpc(status) => {
                    Reply { status: 200, grpc_status: Some(status), ..Reply::failure(Failure::FaultAbort) }
                }
            })
        });
        match (delay, reply) {
            (None, None) => Step::Continue,
            (None, Some(reply)) => Step::Reply(reply),
            (Some(time), reply) => {
                exchange.notes.delayed = true;
                Step::Wait(Box::pin(async move {
                    tokio::time::sleep(time).await;
                    reply
                }))
            }
        }
    }
}
