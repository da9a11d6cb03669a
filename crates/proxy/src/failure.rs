//! The closed list of reasons for which a connection or request ends badly. Each has a status, Envoy's response flag and
//! response code details, a side, a retry rule and a sentence. No other file decides any of these.

#![deny(clippy::disallowed_methods)]

use std::sync::Arc;

/// Whose side a failure is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever called.
    Client,
    /// Whoever was called.
    Upstream,
    /// The mesh's configuration or the mesh itself.
    Mesh,
    /// A rule that someone wrote forbids or breaks it on purpose.
    Policy,
}

impl Side {
    /// The word that `/why` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Upstream => "upstream",
            Side::Mesh => "mesh",
            Side::Policy => "policy",
        }
    }
}

/// Which object explains a failure, among those that decided about the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// What chose the route: a VirtualService.
    Route,
    /// What says how the destination is called: a DestinationRule.
    Policy,
    /// The destination itself: a Service, a ServiceEntry, or a Sidecar's own port.
    Service,
    /// What says which connections are taken: a PeerAuthentication or a Gateway.
    Listener,
    /// What says who may do what: an AuthorizationPolicy or a RequestAuthentication.
    Authorization,
    /// The caller; no object is at fault.
    Nobody,
}

/// The objects that decided about a request, as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Objects<'a> {
    /// Of the route.
    pub route: Option<&'a str>,
    /// Of the cluster's policy.
    pub policy: Option<&'a str>,
    /// Of the cluster's service.
    pub service: Option<&'a str>,
    /// Of the listener.
    pub listener: Option<&'a str>,
    /// What refused the request.
    pub authorization: Option<&'a str>,
}

impl Objects<'_> {
    /// The one to blame: where there is no such object, the next that can be edited.
    pub fn to_blame(&self, failure: Failure) -> String {
        let found = match failure.blames() {
            Blame::Route => self.route.or(self.service),
            Blame::Policy => self.policy.or(self.service).or(self.route),
            Blame::Service => self.service.or(self.policy).or(self.route),
            Blame::Listener => self.listener,
            Blame::Authorization => self.authorization,
            Blame::Nobody => None,
        };
        found.unwrap_or_default().to_owned()
    }
}

/// Which policy refused, for the one who asks why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What happened.
    pub failure: Failure,
    /// Envoy's details, with the policy's name in them.
    pub details: Arc<str>,
    /// The object that the policy was made from.
    pub object: Option<Arc<str>>,
    /// More of why, as one sentence: what somebody else said.
    pub told: Option<Arc<str>>,
}

impl Refusal {
    /// What happened, whoever said it.
    pub fn sentence(&self) -> String {
        match &self.told {
            Some(told) => format!("{} {told}", self.failure.sentence()),
            None => self.failure.sentence().to_owned(),
        }
    }
}

macro_rules! failures {
    ($($variant:ident { status: $status:literal, flag: $flag:literal, details: $details:literal, side: $side:ident, body: $body:literal, sentence: $sentence:literal })*) => {
        /// Why a connection or request ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Failure { $(#[doc = $sentence] $variant),* }

        impl Failure {
            /// All of them.
            pub const ALL: &'static [Failure] = &[$(Failure::$variant),*];

            /// HTTP status of the local reply; 0 if nobody is left to answer.
            pub fn status(self) -> u16 { match self { $(Failure::$variant => $status),* } }

            /// Envoy's response flag.
            pub fn flag(self) -> &'static str { match self { $(Failure::$variant => $flag),* } }

            /// Envoy's response code details.
            pub fn details(self) -> &'static str { match self { $(Failure::$variant => $details),* } }

            /// Whose side.
            pub fn side(self) -> Side { match self { $(Failure::$variant => Side::$side),* } }

            /// Body of the local reply.
            pub fn body(self) -> &'static str { match self { $(Failure::$variant => $body),* } }

            /// What happened and what to do.
            pub fn sentence(self) -> &'static str { match self { $(Failure::$variant => $sentence),* } }

            /// The variant's name.
            pub fn name(self) -> &'static str { match self { $(Failure::$variant => stringify!($variant)),* } }
        }
    };
}

failures! {
    ClientGone { status: 0, flag: "DC", details: "downstream_remote_disconnect", side: Client, body: "",
        sentence: "The caller closed its connection before the answer was complete; look for a timeout in the caller." }
    BadRequest { status: 400, flag: "DPE", details: "http1.codec_error", side: Client, body: "Bad Request",
        sentence: "The request is not valid HTTP: it has no host, or its path cannot be read." }
    AmbiguousPath { status: 400, flag: "DPE", details: "path_normalization_failed", side: Client, body: "Bad Request",
        sentence: "The path has escaped slashes or cannot be normalised, and the policy is to refuse such paths." }
    HeadersTooLarge { status: 431, flag: "DPE", details: "http1.headers_too_large", side: Client, body: "Request Header Fields Too Large",
        sentence: "The request's headers are larger than 60 KiB." }
    RouteNotFound { status: 404, flag: "NR", details: "route_not_found", side: Mesh, body: "",
        sentence: "No route matches the request's host and path; check the hosts and matches of the VirtualService and the port that was called." }
    ClusterNotFound { status: 503, flag: "NC", details: "cluster_not_found", side: Mesh, body: "",
        sentence: "The route leads to a cluster that the proxy does not have; check that the destination's host, port and subset exist." }
    NoHealthyUpstream { status: 503, flag: "UH", details: "no_healthy_upstream", side: Upstream, body: "no healthy upstream",
        sentence: "The destination has no endpoint that may be called: no workload runs, none is ready, or all are ejected." }
    NamesUnknown { status: 503, flag: "UH", details: "no_healthy_upstream", side: Upstream, body: "no healthy upstream",
        sentence: "No name of the destination's endpoints could be looked up: the name server does not know them, fails or is silent; check the endpoints (or hosts) of the ServiceEntry, and the name server." }
    AllEjected { status: 503, flag: "UH", details: "no_healthy_upstream", side: Upstream, body: "no healthy upstream",
        sentence: "All endpoints of the destination are ejected because they kept failing; see the DestinationRule's outlierDetection and the application's own errors." }
    Overflow { status: 503, flag: "UO", details: "upstream_reset_before_response_started{overflow}", side: Policy, body: "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        sentence: "A limit of the destination's connection pool was reached; raise trafficPolicy.connectionPool of its DestinationRule or add workloads." }
    ConnectRefused { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The endpoint refused the connection; check that the application runs and listens on that port." }
    ConnectFailed { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The endpoint is unreachable or closed the connection at once; check its address and the network in between." }
    ConnectTimeout { status: 503, flag: "UF", details: "upstream_reset_before_response_started{connection_timeout}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
        sentence: "The endpoint did not accept the connection in time; check network policies and connectTimeout." }
    TlsUntrusted { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate:TLS_error_end}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The endpoint's certificate is not from an authority that we trust; check the caCertificates or credentialName of the DestinationRule, and the roots of the mesh." }
    TlsExpired { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0:_certificate_has_expired:TLS_error_end}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The endpoint's certificate has expired, or is not valid yet; renew it, and check the clocks. Sidecars renew theirs by themselves: if it is one of the mesh, the control plane was away for too long, or refuses the workload." }
    TlsWrongName { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher:TLS_error_end}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The endpoint's certificate is for another name than the expected; check the subjectAltNames of the DestinationRule, or the service accounts of the workloads." }
    TlsNotSpoken { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The endpoint does not speak TLS on that port; check the tls mode of the DestinationRule, and that the workload has a sidecar." }
    TlsFailed { status: 503, flag: "UF", details: "upstream_reset_before_response_started{remote_connection_failure|TLS_error}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        sentence: "The TLS handshake with the endpoint failed: it does not take our certificate, or there is no protocol that both know." }
    NoCertificate { status: 503, flag: "UF", details: "upstream_reset_before_response_started{connection_failure|TLS_error:_Secret_is_not_supplied_by_SDS}", side: Mesh,
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
        sentence: "The proxy has no certificate or no trust roots for this destination yet; check the certificate authority or the named secret." }
    UpstreamReset { status: 503, flag: "UR", details: "upstream_reset_before_response_started{remote_reset}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
        sentence: "The endpoint reset the stream before it answered." }
    UpstreamClosed { status: 503, flag: "UC", details: "upstream_reset_before_response_started{connection_termination}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        sentence: "The endpoint closed the connection before it answered; it crashed, restarted, or closes idle connections." }
    CertificateRefused { status: 503, flag: "UC", details: "upstream_reset_before_response_started{connection_termination}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        sentence: "The endpoint refused our certificate: it has expired, or is from an authority that the endpoint does not trust. Sidecars renew theirs by themselves: if it is one of the mesh, the control plane was away for too long, or refuses this workload." }
    UpstreamProtocol { status: 502, flag: "UPE", details: "upstream_reset_before_response_started{protocol_error}", side: Upstream,
        body: "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        sentence: "The endpoint's answer is not valid HTTP; check that the port's declared protocol is the one the application speaks." }
    UpstreamTruncated { status: 0, flag: "UPE", details: "upstream_reset_after_response_started{protocol_error}", side: Upstream, body: "",
        sentence: "The endpoint ended the connection in the middle of its answer: fewer bytes came than it had announced." }
    UpstreamBrokenOff { status: 0, flag: "UR", details: "upstream_reset_after_response_started{remote_reset}", side: Upstream, body: "",
        sentence: "The endpoint, or the proxy in front of it, reset the stream in the middle of its answer; `meshctl why` shows what the proxy in front of it saw." }
    UpstreamBroken { status: 0, flag: "UC", details: "upstream_reset_after_response_started{connection_termination}", side: Upstream, body: "",
        sentence: "The endpoint ended the connection while bytes were still on their way." }
    UpstreamTimeout { status: 504, flag: "UT", details: "response_timeout", side: Upstream, body: "upstream request timeout",
        sentence: "The answer did not come within the route's timeout." }
    PerTryTimeout { status: 504, flag: "UT", details: "upstream_per_try_timeout", side: Upstream, body: "upstream request timeout",
        sentence: "No try was answered within the route's perTryTimeout." }
    MaxDuration { status: 408, flag: "UMSDR", details: "upstream_max_stream_duration_reached", side: Client, body: "upstream max stream duration reached",
        sentence: "The stream lasted longer than its deadline (grpc-timeout or the route's maximum)." }
    StreamIdle { status: 408, flag: "SI", details: "stream_idle_timeout", side: Client, body: "stream timeout",
        sentence: "No byte moved in either direction for the idle timeout." }
    FaultAbort { status: 503, flag: "FI", details: "fault_filter_abort", side: Policy, body: "fault filter abort",
        sentence: "A fault rule aborted the request on purpose; see the VirtualService's fault." }
    FaultDelay { status: 0, flag: "DI", details: "fault_filter_delay", side: Policy, body: "",
        sentence: "A fault rule delayed the request on purpose; see the VirtualService's fault." }
    UpgradeRefused { status: 403, flag: "-", details: "upgrade_failed", side: Policy, body: "",
        sentence: "The route does not allow this kind of upgrade." }
    Misdirected { status: 421, flag: "NR", details: "misdirected_request", side: Client, body: "Misdirected Request",
        sentence: "The request's host is not one that this TLS connection's certificate is for; the caller should open another connection." }
    Denied { status: 403, flag: "-", details: "rbac_access_denied_matched_policy", side: Policy, body: "RBAC: access denied",
        sentence: "An AuthorizationPolicy with the action DENY forbids this; the details name its rule." }
    NotAllowed { status: 403, flag: "-", details: "rbac_access_denied_matched_policy[none]", side: Policy, body: "RBAC: access denied",
        sentence: "No AuthorizationPolicy allows this: there are some with the action ALLOW for the workload, and none of their rules matches the caller, the host, the method, the path or the port." }
    TokenMissing { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwt_is_missing}", side: Policy, body: "Jwt is missing",
        sentence: "The request carries no token, and one is required." }
    TokenUnreadable { status: 401, flag: "-", details: "jwt_authn_access_denied", side: Client, body: "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        sentence: "The request's token cannot be read as a JWT; the details say what of it. Perhaps something else stands where the RequestAuthentication expects the token." }
    TokenUnknownIssuer { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwt_issuer_is_not_configured}", side: Policy, body: "Jwt issuer is not configured",
        sentence: "The request's token is of an issuer (claim iss) that no jwtRules of the workload's RequestAuthentications name." }
    TokenNotYetValid { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwt_not_yet_valid}", side: Client, body: "Jwt not yet valid",
        sentence: "The request's token is not valid yet (claim nbf); check the clocks of its issuer and of this machine." }
    TokenExpired { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwt_is_expired}", side: Client, body: "Jwt is expired",
        sentence: "The request's token has expired (claim exp); the caller has to get a new one." }
    TokenWrongAudience { status: 403, flag: "-", details: "jwt_authn_access_denied{Audiences_in_Jwt_are_not_allowed}", side: Policy, body: "Audiences in Jwt are not allowed",
        sentence: "The request's token is for other audiences (claim aud) than those of the RequestAuthentication." }
    TokenNoKeys { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwks_doesn't_have_any_valid_public_key}", side: Mesh, body: "Jwks doesn't have any valid public key",
        sentence: "There is no key to check the token with: the issuer's keys could not be fetched by the control plane yet, or none of them can be used; the RequestAuthentication's problems say why." }
    TokenUnknownKey { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}", side: Policy, body: "Jwks doesn't have key to match kid or alg from Jwt",
        sentence: "The request's token names a key (kid) or algorithm (alg) that is not among the issuer's keys: it was signed by somebody else, or the issuer has new keys that are not known here yet." }
    TokenForged { status: 401, flag: "-", details: "jwt_authn_access_denied{Jwt_verification_fails}", side: Client, body: "Jwt verification fails",
        sentence: "The signature of the request's token is not one of the issuer's keys: the token was changed, or signed by somebody else." }
    ExternalDenied { status: 403, flag: "UAEX", details: "ext_authz_denied", side: Policy, body: "",
        sentence: "The provider that an AuthorizationPolicy has asked does not allow this." }
    ExternalError { status: 403, flag: "UAEX", details: "ext_authz_error", side: Mesh, body: "",
        sentence: "The provider that an AuthorizationPolicy has asked gave no answer that can be used, and requests do not pass without one; check that it runs and can be reached." }
    BodyTooLarge { status: 413, flag: "-", details: "request_payload_too_large", side: Policy, body: "Payload Too Large",
        sentence: "The request's body is larger than what the provider of the AuthorizationPolicy is sent at most; raise includeRequestBodyInCheck.maxRequestBytes in the mesh's settings, or set allowPartialMessage." }
    RateLimited { status: 429, flag: "RL", details: "local_rate_limited", side: Policy, body: "local_rate_limited",
        sentence: "The rate limit was exceeded." }
    NoFilterChain { status: 0, flag: "NR", details: "filter_chain_not_found", side: Policy, body: "",
        sentence: "The connection matches no filter chain of the listener: plaintext to a port where mutual TLS is STRICT, or an unknown server name." }
    DownstreamTls { status: 0, flag: "-", details: "downstream_tls_error", side: Client, body: "",
        sentence: "The TLS handshake with the caller failed: it showed no certificate that we trust, or did not trust ours." }
    RequestHeaderTimeout { status: 408, flag: "-", details: "request_header_timeout", side: Client, body: "",
        sentence: "The caller did not finish sending its request's headers in time." }
    TcpOverflow { status: 0, flag: "UO", details: "overflow", side: Policy, body: "",
        sentence: "The destination's limit of TCP connections was reached; raise connectionPool.tcp.maxConnections." }
}

impl Failure {
    /// Nothing of the request can have reached an application: repeating it is safe whatever its method.
    pub fn is_before_sending(self) -> bool {
        matches!(self, Failure::NoHealthyUpstream | Failure::NamesUnknown | Failure::AllEjected | Failure::Overflow)
            || self.is_connect_failure()
    }

    /// Which of the objects that decided about the request explains it.
    pub fn blames(self) -> Blame {
        match self {
            Failure::RouteNotFound
            | Failure::ClusterNotFound
            | Failure::UpstreamTimeout
            | Failure::PerTryTimeout
            | Failure::MaxDuration
            | Failure::StreamIdle
            | Failure::FaultAbort
            | Failure::FaultDelay
            | Failure::UpgradeRefused
            | Failure::Misdirected
            | Failure::RateLimited => Blame::Route,
            Failure::AllEjected
            | Failure::Overflow
            | Failure::TcpOverflow
            | Failure::ConnectTimeout
            | Failure::TlsUntrusted
            | Failure::TlsExpired
            | Failure::TlsWrongName
            | Failure::TlsNotSpoken
            | Failure::TlsFailed
            | Failure::CertificateRefused
            | Failure::NoCertificate => Blame::Policy,
            Failure::NoHealthyUpstream
            | Failure::NamesUnknown
            | Failure::ConnectRefused
            | Failure::ConnectFailed
            | Failure::UpstreamReset
            | Failure::UpstreamClosed
            | Failure::UpstreamProtocol
            | Failure::UpstreamTruncated
            | Failure::UpstreamBrokenOff
            | Failure::UpstreamBroken => Blame::Service,
            Failure::NoFilterChain | Failure::DownstreamTls => Blame::Listener,
            Failure::Denied
            | Failure::NotAllowed
            | Failure::TokenMissing
            | Failure::TokenUnreadable
            | Failure::TokenUnknownIssuer
            | Failure::TokenNotYetValid
            | Failure::TokenExpired
            | Failure::TokenWrongAudience
            | Failure::TokenNoKeys
            | Failure::TokenUnknownKey
            | Failure::TokenForged
            | Failure::ExternalDenied
            | Failure::ExternalError
            | Failure::BodyTooLarge => Blame::Authorization,
            Failure::ClientGone
            | Failure::BadRequest
            | Failure::AmbiguousPath
            | Failure::HeadersTooLarge
            | Failure::RequestHeaderTimeout => Blame::Nobody,
        }
    }

    /// The connection was never made (Envoy's `connect-failure`).
    pub fn is_connect_failure(self) -> bool {
        matches!(
            self,
            Failure::ConnectRefused
                | Failure::ConnectFailed
                | Failure::ConnectTimeout
                | Failure::TlsUntrusted
                | Failure::TlsExpired
                | Failure::TlsWrongName
                | Failure::TlsNotSpoken
                | Failure::TlsFailed
                | Failure::NoCertificate
        )
    }

    /// The connection or stream ended without an answer (Envoy's `reset`).
    pub fn is_reset(self) -> bool {
        self.is_connect_failure()
            || matches!(
                self,
                Failure::UpstreamReset
                    | Failure::UpstreamClosed
                    | Failure::CertificateRefused
                    | Failure::UpstreamProtocol
                    | Failure::PerTryTimeout
            )
    }

    /// What the proxy in front of an application tells the caller's proxy of the application (`x-mesh-application`), so that it
    /// knows whether the request can be sent to another endpoint: nothing else tells a 503 of the application's own from one
    /// that the application has never seen.
    pub fn of_application(self) -> Option<&'static str> {
        match self {
            // A pod that is deleted is told so before its processes have ended: its proxy has no cluster for it any more.
            Failure::ClusterNotFound | Failure::NoHealthyUpstream => Some("unreached"),
            _ if self.is_connect_failure() => Some("unreached"),
            Failure::UpstreamReset | Failure::UpstreamClosed => Some("lost"),
            _ => None,
        }
    }

    /// The failure that those words stand for, as the caller's proxy would have seen it without a proxy in between.
    pub fn told_of_application(word: &str) -> Option<Failure> {
        match word {
            "unreached" => Some(Failure::ConnectRefused),
            "lost" => Some(Failure::UpstreamClosed),
            _ => None,
        }
    }

    /// `UPSTREAM_TRANSPORT_FAILURE_REASON` of the access log.
    pub fn transport_reason(self) -> Option<&'static str> {
        // What the details say behind the bar (Envoy `UPSTREAM_TRANSPORT_FAILURE_REASON`).
        let (_, reason) = self.details().strip_suffix('}')?.split_once('|')?;
        self.is_connect_failure().then_some(reason)
    }
}

/// gRPC status of a local reply with this HTTP status (gRPC `http-grpc-status-mapping`).
pub fn grpc_status_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        408 => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_told_of_an_application_is_understood() {
        for failure in Failure::ALL {
            let Some(word) = failure.of_application() else { continue };
            let told = Failure::told_of_application(word).unwrap();
            let unsent = failure.is_before_sending() || *failure == Failure::ClusterNotFound;
            assert_eq!(told.is_before_sending(), unsent, "{failure:?}");
            assert_eq!(told.of_application(), Some(word));
        }
        assert_eq!(Failure::told_of_application("gone fishing"), None);
    }

    #[test]
    fn every_failure_is_told_apart_and_explained() {
        let names: HashSet<_> = Failure::ALL.iter().map(|failure| failure.name()).collect();
        assert_eq!(names.len(), Failure::ALL.len());
        for failure in Failure::ALL {
            assert!(failure.sentence().ends_with('.'), "{failure:?}");
            assert!(!failure.details().contains(' '), "{failure:?}: details are one word in the access log");
            assert!(failure.status() == 0 || (400..600).contains(&failure.status()), "{failure:?}");
            assert!(!failure.is_connect_failure() || failure.is_before_sending(), "{failure:?}");
            assert!(failure.status() != 0 || failure.body().is_empty(), "{failure:?}");
        }
    }
}
