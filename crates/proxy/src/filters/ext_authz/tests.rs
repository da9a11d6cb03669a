//! Questions and answers, without anybody who answers.
#![allow(deprecated)]

use std::time::{Duration, SystemTime};

use ::http::{HeaderMap, HeaderValue, Request};
use api::json::from_json;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::google::rpc::Status;
use prost::Message;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use super::*;
use crate::facts::{Direction, PeerFacts};
use crate::filter::Notes;

fn config(more: Value) -> Result<Compiled, String> {
    let mut config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    compile(&from_json(&config).unwrap())
}

fn over_grpc() -> Value {
    json!({"grpc_service": {"envoy_grpc": {"cluster_name": "outbound|1||opa.example"}, "timeout": "0.5s"}})
}

fn but(mut config: Value, more: Value) -> Value {
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn check(more: Value) -> Arc<dyn Question> {
    let Compiled::Filter(filter) = config(more).unwrap() else { panic!("no filter") };
    match with(|exchange| filter.on_request(exchange)).0 {
        Step::Ask(question) => question,
        _ => panic!("nobody is asked"),
    }
}

fn facts() -> ConnFacts {
    let peer = PeerFacts { uris: vec!["spiffe://td/ns/a/sa/b".into()], ..PeerFacts::default() };
    ConnFacts {
        direction: Direction::Inbound,
        remote: "10.0.0.9:40000".parse().unwrap(),
        destination: "[::ffff:10.0.0.1]:8080".parse().unwrap(),
        caller: None,
        server_name: None,
        alpn: None,
        tls: true,
        peer: Some(Arc::new(peer)),
        own_uri: Some("spiffe://td/ns/a/sa/own".into()),
        tls_version: None,
    }
}

/// Does something with a request, and says what became of it.
fn with<T>(act: impl FnOnce(&mut Exchange<'_>) -> T) -> (T, ::http::request::Parts, Notes) {
    let request = Request::post("/a/b?c=d&a=1").header("x-one", "1").header("x-two", "a").header("x-two", "b");
    let mut head = request.header("cookie", "a=b").header("cookie", "c=d").body(()).unwrap().into_parts().0;
    let (connection, mut notes) = (facts(), Notes::default());
    let done = act(&mut Exchange {
        head: &mut head,
        authority: "web.example",
        client: connection.remote.ip(),
        connection: &connection,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
        dice: &mut SmallRng::seed_from_u64(1),
        notes: &mut notes,
    });
    (done, head, notes)
}

fn answer(message: &CheckResponse) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Answer { status: 200, headers: HeaderMap::new(), body: framed(message), trailers }
}

fn ok(response: OkHttpResponse) -> Answer {
    let status = Some(Status::default());
    answer(&CheckResponse {
        status,
        http_response: Some(HttpResponse::OkResponse(response)),
        ..CheckResponse::default()
    })
}

#[test]
fn a_question_says_what_is_known_of_the_request() {
    let body = Beginning { bytes: Bytes::from_static(b"a\xff\xfeb"), read: 9, partial: true };
    let question = check(but(over_grpc(), json!({"with_request_body": {"max_request_bytes": 4}})));
    assert_eq!(question.addressee().authority, "opa.example");
    assert_eq!(question.addressee().timeout, Duration::from_millis(500));
    let asked = with(|exchange| question.ask(exchange, Some(&body))).0;
    assert_eq!(asked.head.uri.path(), "/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(asked.head.headers["content-type"], "application/grpc");
    let attributes = CheckRequest::decode(&asked.body[5..]).unwrap().attributes.unwrap();
    assert_eq!(attributes.source.unwrap().principal, "spiffe://td/ns/a/sa/b");
    assert_eq!(attributes.destination.unwrap().principal, "spiffe://td/ns/a/sa/own");
    let request = attributes.request.unwrap();
    assert_eq!(request.time.unwrap().seconds, 7);
    let http = request.http.unwrap();
    let told =
        (http.method.as_str(), http.path.as_str(), http.host.as_str(), http.scheme.as_str(), http.protocol.as_str());
    assert_eq!(told, ("POST", "/a/b?c=d&a=1", "web.example", "https", "HTTP/1.1"));
    assert_eq!((http.size, http.body.as_str(), http.raw_body.len()), (9, "a!!b", 0));
    let header = |name: &str| http.headers.get(name).map(String::as_str);
    assert_eq!(
        (header("x-two"), header("cookie"), header(":path")),
        (Some("a,b"), Some("a=b; c=d"), Some("/a/b?c=d&a=1"))
    );
    assert_eq!(header("x-envoy-auth-partial-body"), Some("true"));
}

#[test]
fn answers_change_the_request() {
    use api::xds::core::{HeaderValue as Pair, HeaderValueOption, QueryParameter};
    let option = |key: &str, append| HeaderValueOption {
        header: Some(Pair { key: key.into(), value: "new".into(), ..Pair::default() }),
        append,
        ..HeaderValueOption::default()
    };
    let response = OkHttpResponse {
        headers: vec![
            option("x-one", None),
            option(":path", None),
            option("Host", None),
            option("bad name", None),
            option(":x", None),
            option("content-length", None),
        ],
        headers_to_remove: vec!["x-two".into(), "host".into(), ":path".into()],
        response_headers_to_add: vec![option("x-answer", None)],
        query_parameters_to_set: vec![QueryParameter { key: "q".into(), value: "1".into() }],
        ..OkHttpResponse::default()
    };
    let question = check(but(over_grpc(), json!({"clear_route_cache": true})));
    let (reply, head, notes) = with(|exchange| question.take(Ok(ok(response)), exchange));
    assert!(reply.is_none());
    assert_eq!((head.headers["x-one"].to_str().unwrap(), head.headers.contains_key("x-two")), ("new", false));
    // Not a path: it stays as it is, and gets the parameter.
    assert_eq!(head.uri.to_string(), "/a/b?a=1&c=d&q=1");
    assert_eq!(notes.authority.unwrap(), "new");
    assert!(notes.rerouted && !head.headers.contains_key("content-length"));
    assert_eq!(notes.answer_edits.len(), 1);
    assert_eq!(notes.decided.asked, Asked { ok: 1, ..Asked::default() });
    let unchanged = with(|exchange| question.take(Ok(ok(OkHttpResponse::default())), exchange)).2;
    assert!(!unchanged.rerouted);
}

#[test]
fn what_is_no_answer_closes_or_opens() {
    let trailers = |status: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        trailers
    };
    let good = answer(&CheckResponse::default());
    let rows: [(Result<Answer, Failure>, &str); 8] = [
        (Err(Failure::ConnectRefused), "refused the connection"),
        (Ok(Answer { status: 503, ..good.clone() }), "HTTP status 503"),
        (Ok(Answer { trailers: HeaderMap::new(), ..good.clone() }), "broke its answer off"),
        (Ok(Answer { trailers: trailers("14"), ..good.clone() }), "gRPC status 14"),
        (Ok(Answer { body: Bytes::from_static(b"\0\0"), ..good.clone() }), "no message"),
        (Ok(Answer { body: Bytes::from_static(b"\0\0\0\0\x05a"), ..good.clone() }), "no message"),
        (Ok(Answer { body: Bytes::from_static(b"\x01\0\0\0\0"), ..good.clone() }), "no message"),
        (Ok(Answer { body: Bytes::from_static(b"\0\0\0\0\x01\xff"), ..good }), "cannot be read"),
    ];
    for (answered, says) in rows {
        let closed = check(but(over_grpc(), json!({"status_on_error": {"code": "BadGateway"}})));
        let (reply, _, notes) = with(|exchange| closed.take(answered.clone(), exchange));
        assert_eq!(
            reply.map(|reply| (reply.status, reply.failure)),
            Some((502, Some(Failure::ExternalError))),
            "{says}"
        );
        let told = notes.refusal.unwrap().sentence();
        assert!(told.contains(says), "{told}: {says}");
        let open = check(but(over_grpc(), json!({"failure_mode_allow": true, "failure_mode_allow_header_add": true})));
        let (reply, head, notes) = with(|exchange| open.take(answered, exchange));
        assert!(reply.is_none(), "{says}");
        assert_eq!(head.headers["x-envoy-auth-failure-mode-allowed"], "true");
        assert_eq!((notes.decided.asked.error, notes.decided.asked.failure_mode_allowed), (1, 1));
    }
}

#[test]
fn nobody_is_asked_where_it_is_not_enabled() {
    let enabled = json!({"filter": "envoy.filters.http.rbac", "path": [{"key": "p_shadow_effective_policy_id"}],
        "value": {"string_match": {"prefix": "istio-ext-authz-"}}});
    let Compiled::Filter(filter) = config(but(over_grpc(), json!({"filter_enabled_metadata": enabled}))).unwrap()
    else {
        panic!("no filter")
    };
    let (step, _, notes) = with(|exchange| filter.on_request(exchange));
    assert!(matches!(step, Step::Continue) && notes.decided.asked.disabled == 1);
    let noted = |policy: &str| {
        let policy = policy.to_owned();
        with(|exchange| {
            let key = "p_shadow_effective_policy_id".into();
            exchange.notes.metadata.tell("envoy.filters.http.rbac", &key, Arc::new(policy.into()));
            match filter.on_request(exchange) {
                Step::Ask(question) => {
                    question.take(Err(Failure::UpstreamTimeout), exchange);
                    exchange.notes.refusal.clone()
                }
                _ => None,
            }
        })
        .0
    };
    assert!(noted("other").is_none());
    let refusal = noted("istio-ext-authz-opa-ns[shop]-policy[ask]-rule[0]").unwrap();
    assert_eq!(refusal.object.as_deref(), Some("AuthorizationPolicy shop/ask"));
    assert!(
        refusal.sentence().contains("The provider opa (outbound|1||opa.example) gave no answer"),
        "{}",
        refusal.sentence()
    );
}

#[test]
fn what_is_not_built_is_refused_as_a_whole() {
    let http = |more: Value| {
        let service = but(json!({"server_uri": {"uri": "http://a", "cluster": "c", "timeout": "1s"}}), more);
        json!({"http_service": service})
    };
    let rows = [
        (json!({"failure_mode_allow": true}), "names no service"),
        (json!({"grpc_service": {"google_grpc": {"target_uri": "a", "stat_prefix": "b"}}}), "envoy_grpc"),
        (json!({"grpc_service": {"envoy_grpc": {"cluster_name": ""}}}), "no cluster"),
        (but(over_grpc(), json!({"transport_api_version": "V2"})), "version"),
        (but(over_grpc(), json!({"with_request_body": {"allow_partial_message": true}})), "max_request_bytes"),
        (but(over_grpc(), json!({"include_peer_certificate": true})), "are built"),
        (but(over_grpc(), json!({"metadata_context_namespaces": ["a"]})), "are built"),
        (but(over_grpc(), json!({"validate_mutations": true})), "are built"),
        (but(over_grpc(), json!({"allowed_headers": {"patterns": [{"safe_regex": {"regex": "("}}]}})), "compiled"),
        (http(json!({"path_override": "/x"})), "path_override"),
        (
            http(json!({"authorization_request": {"headers_to_add": [{"key": "a", "value": "%REQ(b)%"}]}})),
            "is no header",
        ),
        (json!({"http_service": {}}), "server_uri"),
    ];
    for (config, says) in rows {
        let error = self::config(config.clone()).err().unwrap_or_else(|| panic!("{config} is taken"));
        assert!(error.contains(says), "{error}: {says}");
    }
}

#[test]
fn refusals_over_http_are_framed_anew() {
    let service = json!({"http_service": {"server_uri": {"uri": "http://a", "cluster": "c", "timeout": "1s"}}});
    let question = check(service);
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("transfer-encoding", "chunked"), ("content-length", "99"), ("connection", "close"), ("x-a", "b")]
    {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let answer = Answer { status: 401, headers, body: Bytes::from_static(b"no"), trailers: HeaderMap::new() };
    let reply = with(|exchange| question.take(Ok(answer), exchange)).0.unwrap();
    assert_eq!((reply.status, &reply.body[..], reply.headers.len()), (401, &b"no"[..], 1));
    assert_eq!(reply.headers["x-a"], "b");
}
